//! Training steps of tiny whole models on the device, held to the CPU's: losses, the assignment, all gradients,
//! and the losses after an update; and to themselves, bit by bit.

use crate::beside;
use knet::checkpoint::seeded;
use knet::dist::Share;
use knet::engine::{Compute, Device};
use knet::graph::Param;
use knet::graph::passes::DropRates;
use knet::model::{Classes, Config, DecodeHead, EfficientNetLite, Fpn, Generator, Head, Swin, Task};
use knet::ops::case::relative_l2;
use knet::plan::constants::ParamLoader;
use knet::tensor::Tensor;
use knet::train::data::Batch;
use knet::train::network::{LossWeights, TrainSpec, Trained};
use knet::train::optimizer::AdamWConfig;
use knet::train::step::TrainStep;
use libtest_mimic::{Failed, Trial};

/// Height and width of the images, which no tile divides.
pub const SIZE: [usize; 2] = [64, 96];
pub const BATCH: usize = 2;
pub const SLOTS: usize = 6;

/// A family of models, as small as one can be.
#[derive(Clone, Copy, Debug)]
pub enum Family {
    Instance,
    Panoptic,
    Semantic,
    Swin,
}

impl Family {
    pub const ALL: [Family; 4] = [Family::Instance, Family::Panoptic, Family::Semantic, Family::Swin];

    pub fn config(self) -> Config {
        let lite = EfficientNetLite::new(0);
        let detector = |backbone, classes| Config {
            neck: Fpn { channels: 32 },
            head: Head { feedforward_channels: 64, proposals: 10, stages: 2, heads: 4, norm_groups: 8 },
            ..Config::of(backbone, classes)
        };
        match self {
            Family::Instance => detector(lite.into(), Classes::new(3, 0)),
            Family::Panoptic => detector(lite.into(), Classes::new(3, 2)),
            Family::Swin => {
                let tiny = Swin { channels: 16, depths: [1, 1, 2, 1], heads: [1, 1, 2, 4], window: 4 };
                detector(tiny.into(), Classes::new(3, 0))
            }
            Family::Semantic => {
                let config = Config::semantic(lite.into(), Generator::Uper, 4);
                Config {
                    neck: Fpn { channels: 32 },
                    head: Head { feedforward_channels: 64, stages: 2, heads: 4, ..config.head },
                    decode_head: Some(DecodeHead {
                        updator_channels: 16,
                        auxiliary_channels: 8,
                        ..DecodeHead::new(Generator::Uper)
                    }),
                    ..config
                }
            }
        }
    }
}

/// Noise with rectangles as objects, or as classes of pixels.
pub fn batch(config: &Config) -> Batch {
    let [height, width] = SIZE;
    let images = (0..BATCH * height * width * 3).map(|i| ((i * 7919) % 255) as f32 / 128.0 - 1.0).collect();
    let batch = Batch { size: SIZE, images, ids: vec![1, 2], ..Batch::default() };
    if config.task == Task::Semantic {
        let class = |i: usize| if i.is_multiple_of(37) { -1 } else { (i / 11 % 4) as i32 };
        return Batch { classes: (0..BATCH * height * width).map(class).collect(), ..batch };
    }
    let plane = height * width / 16;
    let (mut masks, mut labels) = (vec![0.0; BATCH * SLOTS * plane], vec![-1; BATCH * SLOTS]);
    let stuff = usize::from(config.classes.stuff > 0);
    let things = [3, 1];
    for image in 0..BATCH {
        for slot in 0..things[image] + stuff {
            let at = image * SLOTS + slot;
            labels[at] = if slot < things[image] { slot as i32 } else { config.classes.things as i32 };
            masks[at * plane + slot * 40 + image * 7..][..90].fill(1.0);
        }
    }
    let objects = things.map(|count| count + stuff).to_vec();
    Batch { masks, labels, things: things.to_vec(), objects, ..batch }
}

/// Weights by their names, the same every time.
pub fn seeded_weight(param: &Param) -> knet::Result<Tensor> {
    seeded::tensor(&param.key, &param.upstream_shape, 0)
}

/// A step with an average of the weights, a frozen beginning, and these rates of dropout.
pub fn new_step(
    config: &Config,
    dropout: DropRates,
    compute: Compute,
    weight: Box<ParamLoader>,
) -> knet::Result<TrainStep> {
    let spec = TrainSpec {
        config,
        batch: BATCH,
        size: SIZE,
        max_objects: SLOTS,
        weights: LossWeights::default(),
        frozen: &["backbone._conv_stem.".to_string()],
        train_batch_norm: config.task == Task::Semantic,
        dropout,
        seed: 3,
        optimizer: Some(&AdamWConfig { ema: 0.9, ..AdamWConfig::default() }),
        accumulate: 1,
        recompute: 0,
        share: Share::ALONE,
    };
    TrainStep::new(&spec, weight, compute)
}

/// The loss terms of a step, the assignment of each round, and every gradient by its parameter's name.
pub struct Learnt {
    pub losses: Vec<(String, f32)>,
    pub matched: Vec<Option<usize>>,
    pub gradients: Vec<(String, Vec<f32>)>,
}

impl Learnt {
    /// Of a step that runs over a batch.
    pub fn of(step: &mut TrainStep, config: &Config, batch: &Batch) -> knet::Result<Learnt> {
        let losses = step.run(batch)?.terms.clone();
        let scale = step.loss_scale().map_or(1.0, |scale| scale.factor);
        let unscaled = |gradient: Vec<f32>| gradient.iter().map(|value| value / scale).collect();
        let of = |t: &Trained| Ok((t.param.key.clone(), unscaled(step.gradient(t)?)));
        let gradients = step.trained().iter().map(of).collect::<knet::Result<_>>()?;
        let rounds = if config.task == Task::Semantic { 0 } else { config.head.stages + 1 };
        let matched = (0..rounds).flat_map(|round| step.matched(round).to_vec()).collect();
        Ok(Learnt { losses, matched, gradients })
    }

    /// All gradients, one after the other.
    pub fn all_gradients(&self) -> Vec<f64> {
        self.gradients.iter().flat_map(|(_, values)| values.iter().map(|&v| f64::from(v))).collect()
    }
}

/// What steps leave behind.
struct Outcome {
    first: Learnt,
    /// Losses of the second step, after an update.
    second: Vec<(String, f32)>,
    /// After two updates.
    parameters: Vec<(String, Vec<f32>)>,
}

impl Outcome {
    fn of(config: &Config, batch: &Batch, compute: Compute) -> knet::Result<Outcome> {
        let mut step =
            new_step(config, DropRates { channel: 0.1, path: 0.1 }, compute, Box::new(seeded_weight))?;
        let first = Learnt::of(&mut step, config, batch)?;
        step.update(1e-3)?;
        let second = step.run(batch)?.terms.clone();
        step.update(1e-3)?;
        let parameters = step.parameters()?.into_iter();
        let parameters = parameters.map(|(param, value)| (param.key.clone(), value.into_data())).collect();
        Ok(Outcome { first, second, parameters })
    }
}

/// Relative L2 that all gradients together may be off by, if rounding the images otherwise moves them by
/// `sensitivity`: rounding in each of some hundred layers adds up to the root of a hundred times as much. (Batch
/// norms over a handful of values amplify it, a value that crosses the bend of a ReLU6 or the threshold of a mask
/// lets gradients jump. Single gradients may be noise altogether: in truth that of a bias before a batch norm, or
/// of a key's, is zero.)
pub fn tolerance(sensitivity: f64) -> f64 {
    1e-5 + 10.0 * sensitivity
}

/// The batch with every other pixel value an ulp larger.
pub fn rounded_otherwise(mut batch: Batch) -> Batch {
    batch.images.iter_mut().step_by(2).for_each(|value| *value = value.next_up());
    batch
}

fn check(family: Family, ordinal: usize) -> Result<(), Failed> {
    let config = family.config();
    let gpu = Compute { device: Device::Cuda(ordinal), ..Compute::cpu(2) };
    let batch = batch(&config);
    let (found, wanted) =
        (Outcome::of(&config, &batch, gpu)?, Outcome::of(&config, &batch, Compute::cpu(2))?);
    let otherwise = Outcome::of(&config, &rounded_otherwise(batch.clone()), Compute::cpu(2))?;
    let mut faults = Vec::new();
    // After an update, what AdamW makes of a gradient that is noise is in it.
    let losses = [(&found.first.losses, &wanted.first.losses, 1e-5), (&found.second, &wanted.second, 1e-3)];
    for (step, (found, wanted, bound)) in losses.into_iter().enumerate() {
        for ((name, found), (_, wanted)) in found.iter().zip(wanted) {
            let off = (found - wanted).abs() / wanted.abs().max(1e-2);
            if off.is_nan() || off > bound {
                faults.push(format!("step {step}, {name}: {found} instead of {wanted}"));
            }
        }
    }
    if found.first.matched != wanted.first.matched {
        faults.push("objects are assigned otherwise".into());
    }
    let all = wanted.first.all_gradients();
    let [error, sensitivity] =
        [&found, &otherwise].map(|other| relative_l2(&other.first.all_gradients(), &all));
    println!(
        "{family:?}: {} gradients, off by {error:.1e}; an ulp of the images moves them by {sensitivity:.1e}",
        found.first.gradients.len()
    );
    if error.is_nan() || error > tolerance(sensitivity) {
        faults.push(format!("gradients are off by {error:.1e}, at most {:.1e}", tolerance(sensitivity)));
    }
    let again = Outcome::of(&config, &batch, gpu)?;
    let bits = |outcome: &Outcome| -> Vec<u32> {
        outcome.parameters.iter().flat_map(|(_, values)| values.iter().map(|v| v.to_bits())).collect()
    };
    if bits(&found) != bits(&again) {
        faults.push("a second run has other bits".into());
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Trials of this file.
pub fn trials(ordinal: usize) -> Vec<Trial> {
    let trial = |family: Family| {
        beside(format!("training/{family:?}").to_lowercase(), move || check(family, ordinal))
    };
    Family::ALL.into_iter().map(trial).collect()
}
