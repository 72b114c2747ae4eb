//! Whole models in f16 and bf16 on the CUDA back end, where `KNET_TEST_DEVICE` names a GPU (a real one, or
//! the emulator's).
//!
//! **Part by part.** Each part of a network is given the values that precede it in the official code's run
//! and compared with those that follow, so that neither rounding errors nor K-Net's hard threshold (a logit
//! within rounding of 0 gives or takes a whole pixel) add up from part to part. Inputs are the goldens where
//! they are stored in full, else the f32 values of our CPU back end, which `tests/model/goldens.rs` compares
//! with the same goldens; results are compared with the goldens always.
//!
//! How far off a part may be follows from its length: see [`variances`].
//!
//! **End to end.** The masks of a *trained* model must be those of the CPU in f32 by an IoU of 0.995, with
//! the same objects in the same order. Seeded weights cannot be held to that by any arithmetic of 11 bits:
//! see [`check_seeded`].

use crate::beside;
use image::RgbImage;
use knet::Engine;
use knet::cuda::gpu::{Precision, Target};
use knet::cuda::{self, Executor, Runtime, stored};
use knet::engine::source::{self, WeightSource};
use knet::engine::{self, EngineBuilder, Segmentation};
use knet::graph::passes::optimize;
use knet::graph::{Graph, Source, ValueId};
use knet::image::bitmask::BitMask;
use knet::image::decode::{Limits, decode};
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use knet::model::{Config, Network, SIZE_DIVISOR, TapLayout, TapMode, build};
use knet::ops::Op;
use knet::ops::case::relative_l2;
use knet::tensor::{DType, Tensor};
use libtest_mimic::{Failed, Trial};
use std::collections::HashMap;
use std::path::Path;
use testkit::model_golden::Golden;
use testkit::parts::{cut, value_called};
use testkit::{device, model_golden, shared};

/// Least intersection over union of masks in a precision: f16's is asked for; bf16 rounds 8 times as
/// coarsely, and so moves 8 times as many pixels of the outlines at the most.
fn least_iou(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => 0.96,
        _ => 0.995,
    }
}

/// The precisions under test.
const HALF: [Precision; 2] = [Precision::F16, Precision::Bf16];

/// A part of the network by the names of its taps.
struct Part {
    name: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Part {
    fn new(name: impl Into<String>, inputs: &[&str], outputs: &[&str]) -> Part {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Part { name: name.into(), inputs: owned(inputs), outputs: owned(outputs) }
    }
}

/// The masks that pool the first object features: those of the proposals, without the stuff maps of panoptic
/// models.
const PROPOSAL_MASKS: &str = "rpn_head.mask_preds";

/// All parts; together they are the network.
fn network_parts(config: &Config) -> Vec<Part> {
    let backbone = ["image", "backbone.C2", "backbone.C3", "backbone.C4", "backbone.C5"];
    let pyramid = ["fpn.P2", "fpn.P3", "fpn.P4", "fpn.P5"];
    let mut parts: Vec<Part> =
        backbone.windows(2).map(|pair| Part::new(pair[1], &pair[..1], &pair[1..])).collect();
    parts.push(Part::new("fpn", &backbone[1..], &pyramid));
    parts.push(Part::new("semantic fpn", &pyramid, &["rpn.sfpn_out0_loc", "rpn.sfpn_out1_sem"]));
    parts.push(Part::new(
        "head features",
        &["rpn.sfpn_out0_loc", "rpn.sfpn_out1_sem"],
        &["rpn.loc_feats", "rpn.semantic_feats", "rpn.x_feats"],
    ));
    parts.push(Part::new(
        "head masks",
        &["rpn.loc_feats", "rpn.semantic_feats"],
        &["rpn.mask_preds", "rpn.seg_preds"],
    ));
    parts.push(Part::new("proposals", &["rpn.x_feats", PROPOSAL_MASKS], &["rpn.proposal_feats"]));
    let mut objects = ["rpn.proposal_feats".to_string(), "rpn.mask_preds".to_string()];
    for stage in 0..config.head.stages {
        let tap = |name: &str| format!("s{stage}.{name}");
        let taps =
            ["x_feat", "feat_transform", "obj_feat_updator", "obj_feat_attn", "obj_feat_out", "cls_score"];
        let [kernels, masks] = objects;
        parts.push(Part {
            name: format!("stage {stage}"),
            inputs: vec!["rpn.x_feats".to_string(), kernels, masks],
            outputs: taps.into_iter().chain(["mask_preds"]).map(tap).collect(),
        });
        objects = [tap("obj_feat_out"), tap("mask_preds")];
    }
    parts
}

/// Square of the relative error allowed to each value of a part, from the rounding on the longest way to it.
///
/// Rounding to a type of unit roundoff u (2^-11 for f16, 2^-8 for bf16) makes an error of at most u, and of u
/// / 2.4 in the root mean square (uniform within an ulp, mantissas log-uniform). Errors of different layers
/// are independent, so that squares add: u^2 for each value that is stored in 16 bits, u^2 for a filter or
/// mask kernel that is, and twice 2^-22 for a product of rows of objects, both of whose factors are TF32.
/// Accumulation is in f32 throughout.
///
/// This takes each layer to hand on the relative error of its input as it is. In truth norms and sums of
/// opposite signs amplify it and averages damp it, within the factor 2.4 between u and what rounding makes of
/// it: results are 0.1 to 0.6 of this off.
fn variances(graph: &Graph, target: Target) -> HashMap<ValueId, f64> {
    let tf32 = 2f64.powi(-22);
    let square = |dtype| match dtype {
        DType::F16 => 2f64.powi(-22),
        DType::BF16 => 2f64.powi(-16),
        _ => 0.0,
    };
    let storage = square(target.precision.storage());
    let type_of = |id: ValueId| stored(target)(graph.value(id).ty).dtype;
    let mut variances = HashMap::new();
    for node in graph.nodes() {
        let of_operand = |&id: &ValueId| match graph.value(id).source {
            Source::Input => Some(square(type_of(id))),
            _ => variances.get(&id).copied(),
        };
        let variance = node.inputs.iter().filter_map(of_operand).reduce(f64::max);
        // What depends on parameters alone is computed once, in f64.
        let Some(variance) = variance else { continue };
        let factors = match node.op {
            Op::Conv2d(_) | Op::MaskConv(_) => storage,
            Op::Linear(_) | Op::Attention(_) if target.precision != Precision::F32 => 2.0 * tf32,
            _ => 0.0,
        };
        variances.extend(node.outputs.iter().map(|&id| (id, variance + factors + square(type_of(id)))));
    }
    variances
}

/// A network with what precedes and follows each of its parts.
struct Bench {
    golden: Golden,
    config: Config,
    network: Network,
    /// Every tap as the CPU computes it in f32, in upstream's layout.
    taps: HashMap<String, Tensor>,
    image: Tensor,
    runtime: Runtime,
}

impl Bench {
    fn new(golden: Golden, precision: Precision, ordinal: usize) -> knet::Result<Bench> {
        let (config, load) = source::open(&WeightSource::Seeded(0), Some(golden.model))?;
        let photo = golden.image();
        let mut cpu = Engine::builder().model(golden.model).device(engine::Device::Cpu).size(None).build()?;
        let taps = cpu.session_mut().taps(&photo)?.into_iter().collect();
        let mut preprocessor = Preprocessor::new(PreprocessConfig {
            size: None,
            mean: config.input.normalization.mean,
            std: config.input.normalization.std,
            divisor: SIZE_DIVISOR,
        })?;
        let geometry = preprocessor.geometry(photo.height() as usize, photo.width() as usize);
        let mut pixels = vec![0.0; geometry.input_len()];
        preprocessor.run(&photo, &mut pixels)?;
        let (height, width) = geometry.padded;
        Ok(Bench {
            network: build(&config, 1, [height, width], TapMode::All)?,
            image: Tensor::new([1, height, width, 3], pixels),
            runtime: Runtime::new(cuda::Device::open(ordinal)?, precision, load)?,
            golden,
            config,
            taps,
        })
    }

    /// A value of the network by the name of its tap, and the tap's layout upstream.
    fn value(&self, name: &str) -> (ValueId, TapLayout) {
        let tap = self.network.taps.iter().find(|tap| tap.name == name);
        tap.map_or_else(
            || (value_called(&self.network.graph, name), TapLayout::Same),
            |tap| (tap.value, tap.layout),
        )
    }

    /// What the official code has for a value, as the network lays it out.
    fn known(&self, name: &str, shape: &[usize], layout: TapLayout) -> Vec<f32> {
        if name == "image" {
            return self.image.data().to_vec();
        }
        if name == PROPOSAL_MASKS {
            let mut masks = self.known("rpn.mask_preds", shape, layout);
            masks.truncate(shape.iter().product());
            return masks;
        }
        let full = self.golden.meta["tensors"][name]["stored"] == "full";
        let tensor = if full { self.golden.tensors.load_f32(name).unwrap() } else { self.taps[name].clone() };
        match layout {
            TapLayout::Features => tensor.permute(&[0, 2, 3, 1]).into_data(),
            _ => tensor.into_data(),
        }
    }

    /// Runs a part and gives a line for each result that is further off than it may be.
    fn check(&self, part: &Part) -> knet::Result<Vec<String>> {
        let graph = &self.network.graph;
        let ends = |names: &[String]| -> Vec<(String, ValueId)> {
            names.iter().map(|name| (name.clone(), self.end(name))).collect()
        };
        let (inputs, outputs) = (ends(&part.inputs), ends(&part.outputs));
        let graph = optimize(cut(graph, &inputs, &outputs))?;
        let target = self.runtime.target();
        let variances = variances(&graph, target);
        let mut executor = Executor::with_floats(cuda::plan(&graph, target)?, &self.runtime)?;
        for (index, (name, id)) in inputs.iter().enumerate() {
            let layout = if name == "image" { TapLayout::Same } else { self.value(name).1 };
            let shape = self.network.graph.value(*id).ty.shape;
            executor.input_mut(index).copy_from_slice(&self.known(name, shape.dims(), layout));
        }
        executor.run()?;
        let mut faults = Vec::new();
        for (index, (name, id)) in graph.outputs().iter().enumerate() {
            let tensor = Tensor::new(executor.output_type(index).shape, executor.output(index).to_vec());
            let (found, wanted) = (self.upstream(name, tensor), self.golden.values(name));
            let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
            let sample = self.golden.sample(name, &found);
            let (error, bound) = (relative_l2(&sample, &wanted), variances[id].sqrt());
            let mut line = format!(
                "{} {} {} {name:<22} {error:.2e} of {bound:.2e}",
                self.golden.model,
                self.golden.case,
                target.precision.name()
            );
            let mut good = error <= bound;
            if name.ends_with("mask_preds") {
                let iou = iou_of_signs(&found, self.taps[name].data());
                line += &format!(", mask IoU {iou:.5}");
                good &= iou >= least_iou(target.precision);
            }
            println!("{line}");
            if !good {
                faults.push(line);
            }
        }
        Ok(faults)
    }

    fn end(&self, name: &str) -> ValueId {
        if name != "image" {
            return self.value(name).0;
        }
        let operands = self.network.graph.nodes().iter().flat_map(|node| &node.inputs);
        let is_input = |id: &&ValueId| self.network.graph.value(**id).source == Source::Input;
        *operands.into_iter().find(is_input).expect("a network has an input")
    }

    fn upstream(&self, name: &str, tensor: Tensor) -> Vec<f32> {
        match self.value(name).1 {
            TapLayout::Features => tensor.permute(&[0, 3, 1, 2]).into_data(),
            _ => tensor.into_data(),
        }
    }
}

/// Intersection over union of the masks of two sets of logits.
fn iou_of_signs(a: &[f32], b: &[f32]) -> f64 {
    let count = |of: fn(bool, bool) -> bool| a.iter().zip(b).filter(|&(&a, &b)| of(a > 0.0, b > 0.0)).count();
    count(|a, b| a & b) as f64 / count(|a, b| a | b) as f64
}

fn check_parts(golden: Golden, precision: Precision, ordinal: usize) -> Result<(), Failed> {
    let bench = Bench::new(golden, precision, ordinal)?;
    let mut faults = Vec::new();
    for part in network_parts(&bench.config) {
        faults.extend(bench.check(&part).map_err(|error| format!("{}: {error}", part.name))?);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Intersection and union of masks, summed over pairs.
fn overlap<'a>(pairs: impl IntoIterator<Item = (&'a BitMask, &'a BitMask)>) -> f64 {
    let (mut intersection, mut union) = (0, 0);
    for (a, b) in pairs {
        for (a, b) in a.bytes().iter().zip(b.bytes()) {
            intersection += (a & b).count_ones();
            union += (a | b).count_ones();
        }
    }
    if union == 0 { 1.0 } else { f64::from(intersection) / f64::from(union) }
}

fn engine_on(device: engine::Device, precision: Precision) -> EngineBuilder {
    Engine::builder().device(device).precision(precision)
}

/// The trained model that ships, on a photo brought into `size`: what it finds with a score of half or more
/// is what the CPU finds in f32, in the same order, with the same masks.
fn check_trained(photo: &RgbImage, size: (usize, usize), precision: Precision) -> Result<(), Failed> {
    let weights = testkit::root().join("weights/knet_s3_lite0_person.safetensors");
    let run = |device| -> knet::Result<Segmentation> {
        engine_on(device, precision).weights(weights.as_path()).size(Some(size)).build()?.segment(photo)
    };
    let (wanted, found) = (run(engine::Device::Cpu)?, run(device::device())?);
    let sure = wanted.instances().iter().take_while(|instance| instance.score >= 0.5).count();
    let objects = |result: &Segmentation| {
        result.instances()[..sure].iter().map(|i| (i.label, i.mask_index)).collect::<Vec<_>>()
    };
    let pairs = wanted.instances()[..sure].iter().zip(&found.instances()[..sure]);
    let iou = overlap(pairs.clone().map(|(a, b)| (wanted.mask(a), found.mask(b))));
    let off = pairs.map(|(a, b)| (a.score - b.score).abs()).fold(0.0, f32::max);
    println!("{} {size:?}: {sure} objects, mask IoU {iou:.5}, scores {off:.4} off", precision.name());
    if objects(&wanted) != objects(&found) {
        return Err(format!("{:?} instead of {:?}", objects(&found), objects(&wanted)).into());
    }
    // A score moves by a quarter of what its logit does.
    let tolerance = if precision == Precision::Bf16 { 0.04 } else { 0.01 };
    if sure == 0 || iou < least_iou(precision) || off > tolerance {
        return Err(format!("{sure} objects, mask IoU {iou:.5}, scores {off:.4} off").into());
    }
    Ok(())
}

/// The goldens in f16 from the photo to the masks. The weights are random: logits crowd around 0, so that
/// rounding moves whole pixels over the hard threshold, stage after stage. PyTorch 2.15 in f16
/// (`tools/peer/knet_torch.py`, on the CPU) has a mask IoU of 0.967 here, and of 0.986 if nothing but the
/// weights are rounded to f16 and all is computed in f32. So no more than this is asked: the best objects,
/// whose scores differ by more than the error of 0.02, in the same order; nine in ten of all.
fn check_seeded() -> Result<(), Failed> {
    let golden = Golden::open("knet_s3_r50_fpn", "a");
    let builder = engine_on(device::device(), Precision::F16);
    let mut engine = builder.model(golden.model).size(None).build()?;
    let found = engine.session_mut().segment_resized(&golden.image(), golden.original())?;
    let (indices, masks) = (golden.indices("final.mask_indices"), golden.masks());
    let wanted: Vec<(usize, usize)> = golden.indices("final.labels").into_iter().zip(indices).collect();
    let objects: Vec<(usize, usize)> = found.instances().iter().map(|i| (i.label, i.mask_index)).collect();
    let in_order = objects.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let common: Vec<(&BitMask, &BitMask)> = objects
        .iter()
        .zip(found.instances())
        .filter_map(|(object, instance)| {
            let place = wanted.iter().position(|other| other == object)?;
            Some((found.mask(instance), &masks[place]))
        })
        .collect();
    let (count, iou) = (common.len(), overlap(common));
    let line = format!("{in_order} objects in order, {count} of 100 common, mask IoU {iou:.5}");
    println!("{line}");
    if in_order < 5 || count < 90 || iou < 0.95 { Err(line.into()) } else { Ok(()) }
}

/// As [`check_seeded`] for the panoptic model: which object wins a pixel. With nothing but the weights
/// rounded to f16, PyTorch in f32 has another one in 20 % of the pixels, and in 4 % if it computes in f16
/// altogether: it is a matter of chance which object a rounding pushes over a threshold.
fn check_seeded_panoptic() -> Result<(), Failed> {
    let golden = Golden::open("knet_s3_r50_fpn_panoptic", "a");
    let builder = engine_on(device::device(), Precision::F16);
    let mut engine = builder.model(golden.model).size(None).build()?;
    let found = engine.session_mut().segment_resized(&golden.image(), golden.original())?;
    let winners = &found.panoptic().ok_or("no panoptic result")?.trace.argmax_ids;
    let wanted = golden.indices("final.argmax_ids");
    let same = winners.iter().zip(&wanted).filter(|&(&a, &b)| a as usize == b).count();
    let share = same as f64 / wanted.len() as f64;
    println!("{share:.4} of the pixels have the same object");
    if share < 0.75 { Err(format!("{share:.4} of the pixels have the same object").into()) } else { Ok(()) }
}

/// Photos of people for the trained model, and the size to bring them to: on the emulator one, small.
fn photos(emulated: bool) -> Vec<(String, RgbImage, (usize, usize))> {
    let read = |path: &Path| decode(path, &Limits::default()).expect("a photo");
    let street = read(&model_golden::goldens().join("inputs/a.png"));
    let sized = |size: (usize, usize)| (format!("street/{}x{}", size.0, size.1), street.clone(), size);
    let mut photos = vec![sized((128, 192)), sized((256, 384))];
    if emulated {
        return photos;
    }
    photos.push(sized((384, 512)));
    for name in ["skimage_astronaut", "coco_000000000790"] {
        if let Some(path) = shared::data("trained", &format!("demo-photos/{name}.jpg")) {
            photos.push((name.to_string(), read(&path), (384, 512)));
        }
    }
    photos
}

/// Its trials on the device under test.
pub fn trials(ordinal: usize, emulated: bool) -> Vec<Trial> {
    let mut trials = vec![
        beside("half/seeded/instance", check_seeded),
        beside("half/seeded/panoptic", check_seeded_panoptic),
    ];
    for (name, photo, size) in photos(emulated) {
        for precision in HALF {
            let (name, photo) = (format!("half/trained/{name}/{}", precision.name()), photo.clone());
            trials.push(beside(name, move || check_trained(&photo, size, precision)));
        }
    }
    for model in ["knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic"] {
        for case in if emulated { &["a"][..] } else { &["a", "b"] } {
            for precision in HALF {
                // The backbone is that of the instance model.
                if emulated && model.ends_with("panoptic") && precision == Precision::Bf16 {
                    continue;
                }
                let check = move || check_parts(Golden::open(model, case), precision, ordinal);
                trials.push(beside(format!("half/parts/{model}/{case}/{}", precision.name()), check));
            }
        }
    }
    trials
}
