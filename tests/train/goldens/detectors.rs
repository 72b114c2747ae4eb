//! Detectors: costs, assignments and targets besides.

use super::{Golden, LOSS, check_gradients, check_losses, check_update, folder};
use knet::checkpoint::seeded;
use knet::dist::Share;
use knet::engine::Device;
use knet::graph::Param;
use knet::graph::passes::DropRates;
use knet::isa::Isa;
use knet::train::data::Batch;
use knet::train::network::{LossWeights, TrainSpec};
use knet::train::optimizer::AdamWConfig;
use knet::train::step::TrainStep;
use serde_json::Value;
use std::process::Command;
use testkit::device;

/// Upstream's `frozen_stages=1`.
const FROZEN: [&str; 3] = ["backbone.conv1.", "backbone.bn1.", "backbone.layer1."];
/// Slots of the plan, more than any image has targets.
const SLOTS: usize = 12;

/// Bounds that depend on how noisy a model is.
struct Bounds {
    /// Absolute error of a matching cost.
    cost: f64,
    /// Relative L2 of a parameter's sampled gradient, for most parameters.
    gradient_most: f64,
}

/// Later rounds cost by logits that two float32 evaluations give with errors of 5e-6 of values up to 20; the
/// second-best assignment costs at least 2e-3 more.
const PLAIN: Bounds = Bounds { cost: 1e-4, gradient_most: 1e-4 };

/// Of the panoptic golden on another device than the CPU, whose sums as they are fall on PyTorch's side of the
/// bend of one ReLU. With every fifth or seventh value of the images an ulp larger they fall on the other: then
/// the CPU's own gradients are 2.9e-3 off in the median of the samples and 9.6e-3 at the worst
/// (`mask_head.0.attention.attn.in_proj_weight`), its losses no more than before. The emulated GPU's are off
/// by the same in the same parameters. What this cannot tell apart, the instance model's golden can.
const BENT: Bounds = Bounds { gradient_most: 5e-3, ..PLAIN };

/// PyTorch's float32 logits of later rounds are up to 3e-4 from its float64 ones; the second-best assignment
/// costs at least 5e-3 more. The slope of a sample jumps where its point crosses from one pixel to the next, so
/// that gradients carry what single samples make of it: PyTorch's are 2.5e-3 off in the median (NOTES section
/// 6).
const DEFORMABLE: Bounds = Bounds { cost: 3e-4, gradient_most: 1e-3 };

impl Golden {
    /// The golden batch, from the annotations at full size.
    fn batch(&self) -> Batch {
        let input = self.tensors.load_f32("input").unwrap();
        let [images, _, h, w] = [0, 1, 2, 3].map(|axis| input.shape()[axis]);
        let pixels = h * w;
        let mut batch = Batch {
            size: [h, w],
            images: vec![0.0; images * pixels * 3],
            masks: vec![0.0; images * SLOTS * pixels / 16],
            labels: vec![-1; images * SLOTS],
            things: Vec::new(),
            objects: Vec::new(),
            ids: (0..images as u64).collect(),
            ..Batch::default()
        };
        for (index, value) in batch.images.iter_mut().enumerate() {
            let (image, pixel, channel) = (index / 3 / pixels, index / 3 % pixels, index % 3);
            *value = input.data()[(image * 3 + channel) * pixels + pixel];
        }
        for image in 0..images {
            let masks = self.tensors.bytes(&format!("gt.{image}.masks_u8")).unwrap();
            let mut planes: Vec<Vec<u8>> = masks.chunks(pixels).map(<[u8]>::to_vec).collect();
            let mut labels: Vec<usize> =
                self.integers(&format!("gt.{image}.labels")).iter().map(|&l| l as usize).collect();
            batch.things.push(labels.len());
            let semantic = self.tensors.bytes(&format!("gt.{image}.semantic_u8")).unwrap_or_default();
            for class in self.config.classes.things..self.config.classes.count() {
                let plane: Vec<u8> = semantic.iter().map(|&v| u8::from(usize::from(v) == class)).collect();
                if plane.contains(&1) {
                    planes.push(plane);
                    labels.push(class);
                }
            }
            batch.objects.push(labels.len());
            for (slot, (plane, label)) in planes.iter().zip(labels).enumerate() {
                batch.labels[image * SLOTS + slot] = label as i32;
                let target = &mut batch.masks[(image * SLOTS + slot) * pixels / 16..][..pixels / 16];
                for (index, value) in target.iter_mut().enumerate() {
                    let (y, x) = (4 * (index / (w / 4)) + 1, 4 * (index % (w / 4)) + 1);
                    let sum = plane[y * w + x]
                        + plane[y * w + x + 1]
                        + plane[(y + 1) * w + x]
                        + plane[(y + 1) * w + x + 1];
                    *value = f32::from(sum) / 4.0;
                }
            }
        }
        batch
    }

    fn step(&self, batch: &Batch) -> TrainStep {
        let spec = TrainSpec {
            config: &self.config,
            batch: batch.ids.len(),
            size: batch.size,
            max_objects: SLOTS,
            weights: LossWeights::default(),
            frozen: &FROZEN.map(String::from),
            train_batch_norm: false,
            dropout: DropRates { channel: 0.0, path: 0.0 },
            seed: 0,
            optimizer: Some(&AdamWConfig::default()),
            accumulate: 1,
            recompute: 0,
            share: Share::ALONE,
        };
        let load = Box::new(|param: &Param| seeded::tensor(&param.key, &param.upstream_shape, 0));
        TrainStep::new(&spec, load, device::compute()).unwrap()
    }
}

fn check_model(golden: &Golden, bounds: &Bounds) {
    let model = &golden.config.name;
    let batch = golden.batch();
    for image in 0..2 {
        let wanted = golden.tensors.load_f32(&format!("gt.{image}.masks_stride4")).unwrap();
        let found = &batch.masks[image * SLOTS * 1536..][..wanted.data().len()];
        assert_eq!(found, wanted.data(), "targets of image {image}");
    }
    let mut step = golden.step(&batch);
    let plan = step.executor().described();
    let forward = plan.steps.iter().filter(|step| step.op.name() == "conv2d");
    let coarse = forward.clone().find(|step| step.kernel.starts_with("winograd-f4"));
    assert!(forward.count() > 50);
    assert!(coarse.is_none(), "the forward pass rounds as coarsely as F(4x4): {coarse:?}");
    let losses = step.run(&batch).unwrap().clone();

    let proposals = golden.config.head.proposals;
    for round in 0..4 {
        let stage = if round == 0 { "rpn".to_string() } else { format!("s{}", round - 1) };
        for image in 0..2 {
            let costs = step.costs(round);
            let wanted = golden.tensors.load_f32(&format!("assign.{stage}.img{image}.cost")).unwrap();
            let things = batch.things[image];
            for (index, &wanted) in wanted.data().iter().enumerate() {
                let (proposal, slot) = (index / things, index % things);
                let found = costs[(image * proposals + proposal) * SLOTS + slot];
                let off = f64::from((found - wanted).abs());
                assert!(
                    off < bounds.cost,
                    "{model} {stage} cost of {proposal} and {slot}: {found}, {wanted}"
                );
            }
            let objects = step.matched(round).len() / 2;
            let found: Vec<[u64; 2]> = step.matched(round)[image * objects..][..proposals]
                .iter()
                .enumerate()
                .filter_map(|(proposal, slot)| slot.map(|slot| [proposal as u64, slot as u64]))
                .collect();
            let wanted: Vec<[u64; 2]> =
                serde_json::from_value(golden.facts["assignment"][format!("{stage}.img{image}")].clone())
                    .unwrap();
            assert_eq!(found, wanted, "{model}: assignment of {stage}, image {image}");
        }
    }

    check_losses(golden, &losses);
    check_gradients(golden, &step, bounds.gradient_most);
    check_update(golden, &mut step, 1e-4);
    let second = step.run(&batch).unwrap().total;
    assert!(second < losses.total, "{model}: loss {} then {second}", losses.total);
}

/// The first step of `knet bench --train` over weights of other seeds, against PyTorch in float64
/// (`tests/goldens/seeds`).
fn check_seeds(model: &str) {
    let numbers = std::fs::read_to_string(folder("seeds").join("numbers.json")).unwrap();
    let numbers: Value = serde_json::from_str(&numbers).unwrap();
    for (seed, wanted) in numbers[model].as_object().unwrap() {
        let weights = format!("seeded:{seed}");
        let output = Command::new(env!("CARGO_BIN_EXE_knet"))
            .args(["bench", "--train", "--model", model, "--weights", &weights, "--size", "128x192"])
            .args(["--batch", "2", "--objects", "7", "--runs", "1", "--no-steps", "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let off = |found: &Value, wanted: &Value| found.as_f64().unwrap() / wanted.as_f64().unwrap() - 1.0;
        let losses = wanted["losses"].as_object().unwrap();
        assert_eq!(found["losses"].as_object().unwrap().len(), losses.len());
        for (term, wanted) in losses {
            let off = off(&found["losses"][term], wanted).abs();
            assert!(off < LOSS, "{model}, seed {seed}: {term} is off by {off:.1e}");
        }
        let off = off(&found["grad_norm"], &wanted["grad_norm"]).abs();
        assert!(off < 1e-4, "{model}, seed {seed}: norm of the gradients off by {off:.1e}");
    }
}

#[test]
fn knet_s3_r50_fpn_seeds() {
    check_seeds("knet_s3_r50_fpn");
}

#[test]
fn knet_s3_r50_fpn_panoptic_seeds() {
    check_seeds("knet_s3_r50_fpn_panoptic");
}

#[test]
fn knet_s3_r50_fpn() {
    check_model(&Golden::open("knet_s3_r50_fpn"), &PLAIN);
}

/// The largest of them, and the one with attention within windows.
#[test]
fn knet_s3_swin_l_panoptic() {
    let Some(golden) = Golden::open_shared("knet_s3_swin_l_panoptic") else { return };
    check_model(&golden, &PLAIN);
}

#[test]
fn knet_s3_r50_fpn_panoptic() {
    let bounds = if device::device() == Device::Cpu { PLAIN } else { BENT };
    check_model(&Golden::open("knet_s3_r50_fpn_panoptic"), &bounds);
}

/// A mask logit of this batch, -5e-5, is nearer 0 than PyTorch's float32 is from its float64 (see
/// `tests/model/deformable.rs`): the sums of portable code fall on PyTorch's side, those of AVX2 on the other,
/// and all that follows with them. The instruction set is chosen once a process, so this takes one of its own.
#[test]
#[ignore = "portable code takes four minutes for it; by name: --ignored goldens::detectors::knet_s3_r101_dcn_panoptic"]
fn knet_s3_r101_dcn_panoptic() {
    let Some(golden) = Golden::open_shared("knet_s3_r101_dcn_panoptic") else { return };
    if Isa::detect() == Isa::Portable {
        return check_model(&golden, &DEFORMABLE);
    }
    let mut portable = Command::new(std::env::current_exe().unwrap());
    portable.env("KNET_ISA", "portable").args([
        "--exact",
        "goldens::detectors::knet_s3_r101_dcn_panoptic",
        "--ignored",
        "--nocapture",
    ]);
    let output = portable.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}
