//! Training steps of tiny whole models on the device, held to the CPU's: losses, the assignment, every
//! gradient, running statistics and two updates; and to themselves, bit by bit.

use crate::beside;
use knet::checkpoint::seeded;
use knet::dist::Share;
use knet::engine::{Compute, Device};
use knet::graph::Param;
use knet::graph::passes::DropRates;
use knet::model::{Classes, Config, DecodeHead, EfficientNetLite, Fpn, Generator, Head, Swin, Task};
use knet::ops::case::relative_l2;
use knet::train::data::Batch;
use knet::train::network::{LossWeights, TrainSpec};
use knet::train::optimizer::AdamWConfig;
use knet::train::step::TrainStep;
use libtest_mimic::{Failed, Trial};

/// Height and width of the images, which no tile divides.
const SIZE: [usize; 2] = [64, 96];
const BATCH: usize = 2;
const SLOTS: usize = 6;

/// A family of models, as small as one can be.
#[derive(Clone, Copy, Debug)]
enum Family {
    Instance,
    Panoptic,
    Semantic,
    Swin,
}

impl Family {
    const ALL: [Family; 4] = [Family::Instance, Family::Panoptic, Family::Semantic, Family::Swin];

    fn config(self) -> Config {
        let lite = EfficientNetLite::new(0);
        let detector = |backbone, classes| Config {
            neck: Fpn { channels: 32 },
            head: Head {
                feedforward_channels: 64,
                proposals: 10,
                stages: 2,
                heads: 4,
                norm_groups: 8,
                ..Head::default()
            },
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
fn batch(config: &Config) -> Batch {
    let [height, width] = SIZE;
    let images = (0..BATCH * height * width * 3).map(|i| ((i * 7919) % 255) as f32 / 128.0 - 1.0).collect();
    let batch = Batch { size: SIZE, images, ids: vec![1, 2], ..Batch::default() };
    if config.task == Task::Semantic {
        let class = |i: usize| if i % 37 == 0 { -1 } else { (i / 11 % 4) as i32 };
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

/// What a step leaves behind.
struct Outcome {
    losses: Vec<(String, f32)>,
    matched: Vec<Option<usize>>,
    gradients: Vec<(String, Vec<f32>)>,
    /// After two updates.
    parameters: Vec<(String, Vec<f32>)>,
}

impl Outcome {
    fn of(config: &Config, compute: Compute) -> knet::Result<Outcome> {
        let optimizer = AdamWConfig { ema: 0.9, ..AdamWConfig::default() };
        let spec = TrainSpec {
            config,
            batch: BATCH,
            size: SIZE,
            max_objects: SLOTS,
            weights: LossWeights::default(),
            frozen: &["backbone._conv_stem.".to_string()],
            train_batch_norm: true,
            dropout: DropRates { channel: 0.1, path: 0.1 },
            seed: 3,
            optimizer: Some(&optimizer),
            accumulate: 1,
            share: Share::ALONE,
        };
        let load = Box::new(|param: &Param| seeded::tensor(&param.key, &param.upstream_shape, 0));
        let mut step = TrainStep::new(&spec, load, compute)?;
        let batch = batch(config);
        let losses = step.run(&batch)?.terms.clone();
        let gradients =
            step.trained().iter().map(|t| (t.param.key.clone(), step.gradient(t).to_vec())).collect();
        let rounds = if config.task == Task::Semantic { 0 } else { config.head.stages + 1 };
        let matched = (0..rounds).flat_map(|round| step.matched(round).to_vec()).collect();
        step.update(1e-3)?;
        step.run(&batch)?;
        step.update(1e-3)?;
        let parameters = step.parameters()?.into_iter();
        let parameters = parameters.map(|(param, value)| (param.key.clone(), value.into_data())).collect();
        Ok(Outcome { losses, matched, gradients, parameters })
    }
}

fn error(found: &[f32], wanted: &[f32]) -> f64 {
    let double = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    relative_l2(&double(found), &double(wanted))
}

fn check(family: Family, ordinal: usize) -> Result<(), Failed> {
    let config = family.config();
    let gpu = Compute { device: Device::Cuda(ordinal), ..Compute::cpu(2) };
    let (found, wanted) = (Outcome::of(&config, gpu)?, Outcome::of(&config, Compute::cpu(2))?);
    let mut faults = Vec::new();
    for ((name, found), (_, wanted)) in found.losses.iter().zip(&wanted.losses) {
        if (found - wanted).abs() > 1e-5 * wanted.abs().max(1e-3) {
            faults.push(format!("{name}: {found} instead of {wanted}"));
        }
    }
    if found.matched != wanted.matched {
        faults.push("objects are assigned otherwise".into());
    }
    let mut errors = Vec::new();
    for ((key, found), (_, wanted)) in found.gradients.iter().zip(&wanted.gradients) {
        errors.push((error(found, wanted), key));
    }
    errors.sort_by(|a, b| b.0.total_cmp(&a.0));
    let worst: Vec<String> = errors.iter().take(3).map(|(error, key)| format!("{key} {error:.1e}")).collect();
    println!("{family:?}: worst gradients {}; median {:.1e}", worst.join(", "), errors[errors.len() / 2].0);
    faults.extend(
        errors
            .iter()
            .filter(|(error, _)| !(*error <= 1e-3))
            .map(|(error, key)| format!("gradient of {key}: {error:.1e}")),
    );
    for ((key, found), (_, wanted)) in found.parameters.iter().zip(&wanted.parameters) {
        let error = error(found, wanted);
        if !(error <= 1e-4) {
            faults.push(format!("{key} after two updates: {error:.1e}"));
        }
    }
    let again = Outcome::of(&config, gpu)?;
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
