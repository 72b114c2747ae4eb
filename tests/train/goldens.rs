//! One training step of whole models against the official PyTorch code (`tests/goldens/<model>/train.*`):
//! costs, assignments, targets, every loss term, every parameter's gradient, and the first AdamW update.

use knet::checkpoint::{Checkpoint, seeded};
use knet::engine::Device;
use knet::graph::Param;
use knet::isa::Isa;
use knet::model::Config;
use knet::ops::case::relative_l2;
use knet::train::data::Batch;
use knet::train::network::{LossWeights, TrainSpec, Trained};
use knet::train::optimizer::AdamWConfig;
use knet::train::step::TrainStep;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::shared;

/// Upstream's `frozen_stages=1`.
const FROZEN: [&str; 3] = ["backbone.conv1.", "backbone.bn1.", "backbone.layer1."];
/// Slots of the plan, more than any image has targets.
const SLOTS: usize = 12;

/// Relative error of a loss term: the bound. PyTorch's own float32 is 1e-6 from its float64.
const LOSS: f64 = 1e-5;
/// Relative L2 of a parameter's sampled gradient for the worst parameter. One ReLU input near 0 falls on the
/// other side in float32 (PyTorch's float32 is up to 4.5e-3 from its float64; NOTES section 6 asks for 2 %).
const GRADIENT_WORST: f64 = 2e-2;

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

/// PyTorch's float32 logits of later rounds are up to 3e-4 from its float64 ones; the second-best assignment
/// costs at least 5e-3 more. The slope of a sample jumps where its point crosses from one pixel to the next, so
/// that gradients carry what single samples make of it: PyTorch's are 2.5e-3 off in the median (NOTES section
/// 6).
const DEFORMABLE: Bounds = Bounds { cost: 3e-4, gradient_most: 1e-3 };

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(model)
}

struct Golden {
    config: Config,
    tensors: Checkpoint,
    facts: Value,
}

/// What `tools/goldens/copy.py` keeps of the reference's `train.json`.
fn kept(facts: &Value) -> Value {
    let params = facts["params"].as_object().unwrap().iter();
    let trained: serde_json::Map<String, Value> = params
        .filter(|(_, param)| param["requires_grad"] == true)
        .map(|(key, param)| (key.clone(), param.clone()))
        .collect();
    json!({
        "losses": facts["fp64"]["losses"],
        "assignment": facts["assignment_[proposal,gt]"],
        "grad_norm": facts["total_grad_norm_before_clip"],
        "params": trained,
    })
}

impl Golden {
    fn open(model: &str) -> Golden {
        Golden::read(&folder(model), model)
    }

    /// As [`Golden::open`], of a model that the reference data alone hold; `None` without them.
    fn open_shared(model: &str) -> Option<Golden> {
        let folder = shared::reference(&format!("training of {model}"), model)?;
        let golden = Golden::read(&folder, model);
        Some(Golden { facts: kept(&golden.facts), ..golden })
    }

    fn read(folder: &Path, model: &str) -> Golden {
        let facts = std::fs::read_to_string(folder.join("train.json")).unwrap();
        Golden {
            config: Config::named(model).unwrap(),
            tensors: Checkpoint::open(folder.join("train.safetensors")).unwrap(),
            facts: serde_json::from_str(&facts).unwrap(),
        }
    }

    fn integers(&self, name: &str) -> Vec<i32> {
        let bytes = self.tensors.bytes(name).unwrap().chunks_exact(4);
        bytes.map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let bytes = self.tensors.bytes(name).unwrap().chunks_exact(8);
        bytes.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

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
            left_out: 0,
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
            optimizer: Some(&AdamWConfig::default()),
            accumulate: 1,
        };
        let load = Box::new(|param: &Param| seeded::tensor(&param.key, &param.upstream_shape, 0));
        TrainStep::new(&spec, load, Device::Cpu, 0).unwrap()
    }
}

/// The reference's sampling rule of representative parameters.
fn sample(values: &[f32]) -> Vec<f32> {
    let n = values.len();
    let head = values.iter().take(16).copied();
    let stride = (n / 16).max(1);
    head.chain((0..16).map(|i| values[i * stride % n])).collect()
}

/// A gradient in the checkpoint's layout.
fn gradient(step: &TrainStep, trained: &Trained) -> Vec<f32> {
    let (values, param) = (step.gradient(trained), &trained.param);
    let shape = param.layout.apply_shape(&param.upstream_shape);
    let tensor = knet::tensor::Tensor::new(shape.as_slice(), values.to_vec());
    param.layout.invert(tensor, &param.upstream_shape).into_data()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
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

    let mut worst_loss = (0.0, String::new());
    for (name, wanted) in golden.facts["losses"].as_object().unwrap() {
        if name.ends_with("pos_acc") {
            continue;
        }
        let wanted = wanted.as_f64().unwrap();
        let found = f64::from(losses.term(name).unwrap_or_else(|| panic!("no loss {name}")));
        let off = ((found - wanted) / wanted).abs();
        assert!(off < LOSS, "{model}: {name} is {found}, {wanted} in PyTorch ({off:.1e})");
        worst_loss = worst_loss.max_by_value(off, name);
    }
    assert_eq!(losses.terms.len(), golden.facts["losses"].as_object().unwrap().len() - 3);

    let params = golden.facts["params"].as_object().unwrap();
    let mut keys: Vec<&str> = step.trained().iter().map(|trained| trained.param.key.as_str()).collect();
    keys.sort_unstable();
    let mut wanted_keys: Vec<&str> = params.keys().map(String::as_str).collect();
    wanted_keys.sort_unstable();
    assert_eq!(keys, wanted_keys, "{model}: trained parameters");
    let mut off_norms = Vec::new();
    let mut off_samples = Vec::new();
    for trained in step.trained() {
        let (param, grads) = (&trained.param, gradient(&step, trained));
        let wanted = params[&param.key]["grad_l2_f64"].as_f64().unwrap();
        let off = (norm(grads.iter().copied()) / wanted - 1.0).abs();
        off_norms.push((off, param.key.clone()));
        let name = format!("grad_f64.{}", param.key);
        if golden.tensors.info(&name).is_some() {
            let found: Vec<f64> = sample(&grads).into_iter().map(f64::from).collect();
            off_samples.push((relative_l2(&found, &golden.doubles(&name)), param.key.clone()));
        }
    }
    assert!(off_samples.len() > 60, "only {} sampled gradients", off_samples.len());
    for (what, off) in [("norm", &mut off_norms), ("samples", &mut off_samples)] {
        off.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("{model}: gradient {what}: worst {:?}, median {:.1e}", &off[..3], off[off.len() / 2].0);
        assert!(off[0].0 < GRADIENT_WORST, "{model}: gradient {what} {:?}", off[0]);
        let many = off.iter().filter(|(off, _)| *off > bounds.gradient_most).count();
        // Layers of the backbone behind the ReLUs that fall on the other side.
        assert!(
            many * 2 < off.len(),
            "{model}: {many} of {} gradient {what} above {}",
            off.len(),
            bounds.gradient_most
        );
    }
    println!("{model}: worst loss {worst_loss:?}");

    let parameters = step.parameters().unwrap();
    let before: Vec<Vec<f32>> = parameters.into_iter().map(|(_, tensor)| tensor.into_data()).collect();
    let grad_norm = step.update(1e-4).unwrap().unwrap();
    assert!(step.optimizer().unwrap().fault(step.executor()).is_none());
    let wanted = golden.facts["grad_norm"].as_f64().unwrap();
    assert!((grad_norm / wanted - 1.0).abs() < 1e-4, "{model}: gradient norm {grad_norm}, {wanted}");
    for ((param, after), before) in step.parameters().unwrap().into_iter().zip(&before) {
        let delta = norm(after.data().iter().zip(before).map(|(a, b)| a - b));
        let wanted = params[&param.key]["delta_l2_after_1"].as_f64().unwrap();
        // Elements whose clipped gradient is near eps move by an amount that depends on its last digits; and
        // the difference of two float32 parameters carries their rounding.
        let off = (delta - wanted).abs();
        let rounding = 1e-7 * norm(before.iter().copied());
        assert!(
            off < 0.01 * wanted + rounding,
            "{model}: {} moved by {delta}, {wanted} in PyTorch",
            param.key
        );
    }
    let second = step.run(&batch).unwrap().total;
    assert!(second < losses.total, "{model}: loss {} then {second}", losses.total);
}

trait MaxByValue {
    fn max_by_value(self, off: f64, name: &str) -> Self;
}

impl MaxByValue for (f64, String) {
    fn max_by_value(self, off: f64, name: &str) -> Self {
        if off > self.0 { (off, name.to_string()) } else { self }
    }
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

#[test]
fn knet_s3_r50_fpn_panoptic() {
    check_model(&Golden::open("knet_s3_r50_fpn_panoptic"), &PLAIN);
}

/// A mask logit of this batch, -5e-5, is nearer 0 than PyTorch's float32 is from its float64 (see
/// `tests/model/deformable.rs`): the sums of portable code fall on PyTorch's side, those of AVX2 on the other,
/// and all that follows with them. The instruction set is chosen once a process, so this takes one of its own.
#[test]
fn knet_s3_r101_dcn_panoptic() {
    let Some(golden) = Golden::open_shared("knet_s3_r101_dcn_panoptic") else { return };
    if Isa::detect() == Isa::Portable {
        return check_model(&golden, &DEFORMABLE);
    }
    let mut portable = Command::new(std::env::current_exe().unwrap());
    portable.env("KNET_ISA", "portable").args([
        "--exact",
        "goldens::knet_s3_r101_dcn_panoptic",
        "--nocapture",
    ]);
    let output = portable.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}
