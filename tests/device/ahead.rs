//! A detector's forward pass that follows the last batch before anybody knows what came of it: the same bits
//! as batch after batch, whatever did.

use crate::beside;
use crate::training::{Family, batch, new_step, seeded_weight};
use knet::Error;
use knet::engine::{Compute, Device, TrainingPrecision};
use knet::graph::passes::DropRates;
use knet::tensor::Tensor;
use knet::train::data::Batch;
use knet::train::loss_scale::LossScale;
use knet::train::optimizer::Optimizer;
use knet::train::step::TrainStep;
use libtest_mimic::{Failed, Trial};

const LR: f64 = 1e-3;

fn step(family: Family, precision: TrainingPrecision, ordinal: usize) -> knet::Result<TrainStep> {
    let compute = Compute { device: Device::Cuda(ordinal), precision, ..Compute::cpu(2) };
    let dropout = DropRates { channel: 0.0, path: 0.5 };
    new_step(&family.config(), dropout, compute, Box::new(seeded_weight))
}

/// Different images of the same objects.
fn batches(family: Family) -> [Batch; 3] {
    [1.0, -0.5, 0.75].map(|factor| {
        let mut batch = batch(&family.config());
        batch.images.iter_mut().for_each(|value| *value *= factor);
        batch.ids.iter_mut().for_each(|id| *id += (100.0 * factor) as u64);
        batch
    })
}

/// All that an update changes.
fn bits(step: &TrainStep) -> knet::Result<Vec<u32>> {
    let mut values: Vec<f32> =
        step.parameters()?.into_iter().flat_map(|(_, value)| value.into_data()).collect();
    for slot in step.optimizer().into_iter().flat_map(Optimizer::slots) {
        for variable in [Some(slot.first), Some(slot.second), slot.average].into_iter().flatten() {
            values.extend(step.read(&slot.param, variable)?.data());
        }
    }
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// What a batch gives to the log, in bits, as floats that are not finite differ from themselves.
fn told(learnt: knet::train::step::Learnt<'_>) -> (Vec<u32>, Option<u64>) {
    let terms = learnt.losses.terms.iter().map(|(_, value)| value.to_bits());
    (terms.collect(), learnt.norm.map(f64::to_bits))
}

/// One batch after the other, and each begun while the last is at work. With paths that are dropped, which
/// hangs on the place of a batch; in f16 with a first update that overflows, after which losses are scaled by
/// less.
fn check_bits(family: Family, precision: TrainingPrecision, ordinal: usize) -> Result<(), Failed> {
    let batches = batches(family);
    let (mut plain, mut ahead) = (step(family, precision, ordinal)?, step(family, precision, ordinal)?);
    let short = precision == TrainingPrecision::F16;
    for step in [&mut plain, &mut ahead] {
        if short {
            step.set_loss_scale(LossScale { factor: (1u64 << 40) as f32, ..LossScale::default() });
        }
    }
    let mut norms = Vec::new();
    for (index, batch) in batches.iter().enumerate() {
        let wanted = plain.learn(batch, LR)?;
        norms.extend(wanted.norm);
        let wanted = told(wanted);
        ahead.begin(batch, Some(LR), None)?;
        if let Some(next) = batches.get(index + 1) {
            ahead.load(next)?;
        }
        assert!(told(ahead.finish()?) == wanted, "batch {index} has other losses");
        assert_eq!(ahead.loss_scale(), plain.loss_scale());
        assert!(bits(&ahead)? == bits(&plain)?, "batch {index} leaves other weights");
    }
    assert_eq!(norms.iter().any(|norm| !norm.is_finite()), short, "{norms:?}");
    Ok(())
}

/// A batch whose losses are not finite, which shows when the next one has begun, is named by its own images
/// and leaves no trace; and the next one is begun anew when the weights were written.
fn check_fault(ordinal: usize) -> Result<(), Failed> {
    let [first, second, _] = batches(Family::Instance);
    let new = || step(Family::Instance, TrainingPrecision::F32, ordinal);
    let mut faulty = new()?;
    // What no matching cost hangs on.
    let key = "rpn_head.conv_seg.bias";
    let changing = faulty.changing().find(|(param, _)| param.key == key);
    let (param, variable) =
        changing.map(|(param, variable)| (param.clone(), variable)).ok_or("no such bias")?;
    let good = faulty.read(&param, variable)?;
    faulty.write(&param, variable, &Tensor::from_fn(good.shape(), |_| f32::NAN))?;
    let before = bits(&faulty)?;
    faulty.begin(&first, Some(LR), None)?;
    faulty.load(&second)?;
    match faulty.finish() {
        Err(Error::Diverged { what, ids }) => assert_eq!((what.as_str(), ids), ("loss_rpn_seg", first.ids)),
        other => return Err(format!("a loss that is NaN: {other:?}").into()),
    }
    assert!(bits(&faulty)? == before, "a batch with a loss that is NaN leaves a trace");
    assert_eq!(faulty.optimizer().map(Optimizer::updates), Some(0));

    faulty.write(&param, variable, &good)?;
    let mut plain = new()?;
    let wanted = told(plain.learn(&second, LR)?);
    assert!(told(faulty.learn(&second, LR)?) == wanted, "what comes after is another batch");
    assert!(bits(&faulty)? == bits(&plain)?, "and leaves other weights");
    Ok(())
}

/// Trials of this file.
pub fn trials(ordinal: usize) -> Vec<Trial> {
    let bits = [(Family::Swin, TrainingPrecision::F32), (Family::Instance, TrainingPrecision::F16)];
    let bits = bits.map(|(family, precision)| {
        let name = format!("ahead/same_bits/{family:?}/{precision}").to_lowercase();
        beside(name, move || check_bits(family, precision, ordinal))
    });
    bits.into_iter().chain([beside("ahead/a_loss_that_is_nan", move || check_fault(ordinal))]).collect()
}
