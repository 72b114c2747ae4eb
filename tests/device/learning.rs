//! What bf16 makes of a training step, and what becomes of rounding over many updates: with weights that the
//! CPU has begun to teach two pictures. Nothing that computes otherwise can be held to a step of seeded
//! weights in bf16: a rounding of the filters alone moves its gradients by their own length, as masks crowd
//! around the threshold of what is pooled. Nor can a curve from fresh weights on: Adam's first updates are as
//! long for a gradient that is rounding as for any other, and ten of them make of an ulp some ten per cent.

use crate::beside;
use crate::training::{BATCH, Family, Learnt, SIZE, SLOTS, new_step, rounded_otherwise, tolerance};
use knet::engine::{Compute, Device, TrainingPrecision};
use knet::graph::Param;
use knet::graph::passes::DropRates;
use knet::model::{Config, Task};
use knet::ops::Op;
use knet::ops::case::relative_l2;
use knet::tensor::{DType, Tensor};
use knet::train::data::Batch;
use knet::train::run::config::StartConfig;
use knet::train::run::start::{Values, initial_values};
use knet::train::step::TrainStep;
use libtest_mimic::{Failed, Trial};

/// Steps differ by rounding alone.
const NO_DROPOUT: DropRates = DropRates { channel: 0.0, path: 0.0 };
const LR: f64 = 1e-3;

/// Two pictures of coloured boxes, whose edges lie between pixels of the targets.
fn pictures(config: &Config) -> Batch {
    let [height, width] = SIZE;
    let boxes: [&[[usize; 5]]; BATCH] = [&[[0, 8, 8, 40, 40], [1, 56, 16, 88, 56]], &[[2, 16, 16, 72, 48]]];
    let grey = |i: usize| ((i * 7919) % 255) as f32 / 1024.0;
    let mut images: Vec<f32> = (0..BATCH * height * width * 3).map(grey).collect();
    let plane = height * width / 16;
    let (mut masks, mut labels) = (vec![0.0; BATCH * SLOTS * plane], vec![-1; BATCH * SLOTS]);
    let mut classes = vec![3; BATCH * height * width];
    for (image, boxes) in boxes.iter().enumerate() {
        for (slot, &[class, left, top, right, bottom]) in boxes.iter().enumerate() {
            let slot = image * SLOTS + slot;
            labels[slot] = class as i32;
            for (y, x) in (top..bottom).flat_map(|y| (left..right).map(move |x| (y, x))) {
                let pixel = (image * height + y) * width + x;
                images[pixel * 3 + class] = 1.5;
                classes[pixel] = class as i32;
                masks[slot * plane + y / 4 * (width / 4) + x / 4] = 1.0;
            }
        }
    }
    let batch = Batch { size: SIZE, images, ids: vec![1, 2], ..Batch::default() };
    if config.task == Task::Semantic {
        return Batch { classes, ..batch };
    }
    let things = boxes.map(<[_]>::len).to_vec();
    Batch { masks, labels, objects: things.clone(), things, ..batch }
}

/// A step over weights as `change` leaves them.
fn step(
    config: &Config,
    values: &Values,
    compute: Compute,
    change: fn(&Param, Tensor) -> Tensor,
) -> knet::Result<TrainStep> {
    let values = values.clone();
    let load = move |param: &Param| Ok(change(param, values[&param.key].clone()));
    new_step(config, NO_DROPOUT, compute, Box::new(load))
}

fn as_it_is(_: &Param, weight: Tensor) -> Tensor {
    weight
}

/// What the CPU has made of fresh weights after so many updates: the step, and all parameters.
fn taught(config: &Config, batch: &Batch, updates: u64) -> knet::Result<(TrainStep, Values)> {
    let (mut values, _) = initial_values(config, &StartConfig::default(), 0)?;
    let mut taught = step(config, &values, Compute::cpu(2), as_it_is)?;
    for _ in 0..updates {
        taught.run(batch)?;
        taught.update(LR)?;
    }
    let learnt = taught.parameters()?.into_iter().map(|(param, value)| (param.key.clone(), value));
    values.extend(learnt.collect::<Vec<_>>());
    Ok((taught, values))
}

/// Filters, and what is a filter of one pixel, as tensor cores multiply with them in bf16.
fn short_filters(param: &Param, mut weight: Tensor) -> Tensor {
    let rank = param.upstream_shape.len();
    if rank == 4 || (rank == 2 && param.key.starts_with("backbone.")) {
        weight.data_mut().iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
    }
    weight
}

/// One step in bf16 against the CPU's in f32. How far off it may be is measured: by what it makes of a step on
/// the CPU that every filter is rounded to bf16, which is one independent error a layer, in forward pass and
/// gradients. A step in bf16 has these errors, and one of the same size for each map that it stores, forward
/// and backward: so many times the square. The norm of all gradients is a sum over so many errors that it
/// scatters little; the losses are a few numbers, whose norm may be twice what is expected of it.
///
/// Assignments have to be the same, as there are no near ties: the CPU has taught one proposal each box.
fn check_bf16(family: Family, ordinal: usize) -> Result<(), Failed> {
    let config = family.config();
    let batch = pictures(&config);
    let (_, values) = taught(&config, &batch, 40)?;
    let learnt = |step: &mut TrainStep| Learnt::of(step, &config, &batch);
    let cpu = Compute::cpu(2);
    let wanted = learnt(&mut step(&config, &values, cpu, as_it_is)?)?;
    let rounded = learnt(&mut step(&config, &values, cpu, short_filters)?)?;
    let gpu = Compute { device: Device::Cuda(ordinal), precision: TrainingPrecision::Bf16, ..cpu };
    let mut gpu = step(&config, &values, gpu, as_it_is)?;
    let plan = gpu.executor().described();
    let found = learnt(&mut gpu)?;

    let outputs = plan.steps.iter().flat_map(|step| &step.outputs);
    let maps = outputs.filter(|output| output.ty.dtype == DType::BF16).count();
    let filters = plan.steps.iter().filter(|step| matches!(step.op, Op::Conv2d(_))).count();
    let factor = (1.0 + maps as f64 / filters as f64).sqrt();
    let losses = |learnt: &Learnt| learnt.losses.iter().map(|(_, v)| f64::from(*v)).collect::<Vec<f64>>();
    let gradients = Learnt::all_gradients;
    let mut faults = Vec::new();
    for (what, factor, [found, rounded, wanted]) in [
        ("losses", 2.0 * factor, [&found, &rounded, &wanted].map(losses)),
        ("gradients", factor, [&found, &rounded, &wanted].map(gradients)),
    ] {
        let (error, effect) = (relative_l2(&found, &wanted), relative_l2(&rounded, &wanted));
        let line = format!(
            "{family:?} in bf16: {what} off by {error:.1e}; filters in bf16 move them by {effect:.1e}, {maps} maps \
             for {filters} filters allow {factor:.1} times as much"
        );
        println!("{line}");
        if error.is_nan() || error > factor * effect {
            faults.push(line);
        }
    }
    if found.matched != wanted.matched {
        faults.push("objects are assigned otherwise".into());
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Updates before and in the curve that is compared.
const BEFORE: u64 = 40;
const UPDATES: usize = 10;

/// Gives `to` the weights' moments and averages as `from` has them after [`BEFORE`] updates.
fn go_on(from: &TrainStep, to: &mut TrainStep) -> knet::Result<()> {
    let slots = from.optimizer().map(|optimizer| optimizer.slots().to_vec()).unwrap_or_default();
    for slot in slots {
        for variable in [Some(slot.first), Some(slot.second), slot.average].into_iter().flatten() {
            to.write(&slot.param, variable, &from.read(&slot.param, variable)?)?;
        }
    }
    to.set_updates(BEFORE);
    Ok(())
}

/// Total losses of updates on one batch.
fn curve(step: &mut TrainStep, batch: &Batch) -> knet::Result<Vec<f64>> {
    let mut losses = Vec::new();
    for _ in 0..UPDATES {
        losses.push(f64::from(step.run(batch)?.total));
        step.update(LR)?;
    }
    Ok(losses)
}

/// Two pictures that the CPU has begun to learn are learnt by heart on the device as they are on the CPU:
/// after so many updates the loss may be off by [`tolerance`], as gradients of one step may be, of the most
/// that an ulp of the images has made of the CPU's own losses until then.
fn check_curve(ordinal: usize) -> Result<(), Failed> {
    let config = Family::Swin.config();
    let batch = pictures(&config);
    let cpu = Compute::cpu(2);
    let (mut known, values) = taught(&config, &batch, BEFORE)?;
    let on = |compute: Compute, batch: &Batch| -> knet::Result<Vec<f64>> {
        let mut step = step(&config, &values, compute, as_it_is)?;
        go_on(&known, &mut step)?;
        curve(&mut step, batch)
    };
    let otherwise = on(cpu, &rounded_otherwise(batch.clone()))?;
    let found = on(Compute { device: Device::Cuda(ordinal), ..cpu }, &batch)?;
    let wanted = curve(&mut known, &batch)?;
    let mut sensitivity = 0f64;
    let mut faults = Vec::new();
    for (update, wanted) in wanted.iter().enumerate() {
        let [error, effect] = [&found, &otherwise].map(|other| (other[update] / wanted - 1.0).abs());
        sensitivity = sensitivity.max(effect);
        let line =
            format!("after {update} updates {wanted:.5}, off by {error:.1e}, an ulp makes {effect:.1e}");
        println!("{line}");
        if error.is_nan() || error > tolerance(sensitivity) {
            faults.push(line);
        }
    }
    if found[UPDATES - 1] > 0.9 * found[0] {
        faults.push(format!("the loss does not fall: {found:?}"));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Trials of this file.
pub fn trials(ordinal: usize) -> Vec<Trial> {
    // An instance model has nothing that a panoptic one has not.
    let bf16 = [Family::Panoptic, Family::Semantic, Family::Swin].map(|family| {
        beside(format!("learning/bf16/{family:?}").to_lowercase(), move || check_bf16(family, ordinal))
    });
    let curve = beside("learning/two_pictures_by_heart", move || check_curve(ordinal));
    bf16.into_iter().chain([curve]).collect()
}
