//! Whole models against the official PyTorch code: every tap and every final result of the goldens in
//! `tests/goldens/<model>` (see the README there), from the PNG to the masks, with seeded weights.

use knet::Engine;
use knet::cpu::Arithmetic;
use knet::cuda::gpu::Precision;
use knet::engine::{Device, WeightSource};
use knet::image::RgbImage;
use knet::image::bitmask::BitMask;
use knet::image::panoptic::PanopticResult;
use knet::image::semantic::SemanticResult;
use knet::ops::Resize;
use knet::ops::case::relative_l2;
use knet::ops::resize::ResizeMode;
use knet::tensor::Tensor;
use serde_json::Value;
use testkit::device;
use testkit::model_golden::Golden;

/// Relative L2 allowed for a tap. The goldens are float32 results of PyTorch, themselves 1e-7 to 5e-6 from
/// float64 (NOTES section 7); two independent float32 evaluations differ by about the sum.
const TAP_TOLERANCE: f64 = 1e-5;

/// As [`TAP_TOLERANCE`] where Winograd F(4x4, 3x3) convolutions run upstream of the tap: their transforms
/// multiply rounding errors by about 4 (tested in `src/cpu/conv/winograd/tests.rs`).
const WINOGRAD_TOLERANCE: f64 = 5e-5;

/// Mask bits that may differ, out of 2.4 M (case a) or 6.1 M (case b): pixels whose probability is within
/// rounding of the threshold. PyTorch in float32 differs from itself in float64 by up to 15.
const MASK_BITS: u32 = 50;

/// Where two objects of a pixel score this alike it depends on the order of sums (and on FMA) who wins: the
/// products of score and mask of PyTorch in float32 are up to 2.7e-5 from those in float64 (`final.prob`).
const NEAR_TIE: f64 = 3e-5;

fn engine(model: &str) -> Engine {
    device::builder().model(model).size(None).threads(2).build().unwrap()
}

/// What taps of this photo are allowed.
fn tolerance(engine: &Engine, image: &RgbImage) -> f64 {
    let size = (image.height() as usize, image.width() as usize);
    let plan = engine.session().plan(size, knet::model::TapMode::Off);
    let winograd = plan.is_ok_and(|(plan, _)| plan.steps.iter().any(|step| step.kernel.contains("winograd")));
    if winograd { WINOGRAD_TOLERANCE } else { TAP_TOLERANCE }
}

fn check_taps(golden: &Golden) {
    let mut engine = engine(golden.model);
    let image = golden.image();
    let tolerance = tolerance(&engine, &image);
    let taps = engine.session_mut().taps(&image).unwrap();
    taps.iter().for_each(|(name, tensor)| check_tap(golden, name, tensor, tolerance));
    let wanted = golden.tensors.names().filter(|name| !name.starts_with("final.")).count();
    assert_eq!(taps.len(), wanted, "taps compared");
}

fn check_instances(golden: &Golden) {
    let image = golden.image();
    let result = engine(golden.model).session_mut().segment_resized(&image, golden.original()).unwrap();
    let instances = result.instances();
    assert_eq!(instances.iter().map(|i| i.label).collect::<Vec<_>>(), golden.indices("final.labels"));
    let mask_indices: Vec<usize> = instances.iter().map(|i| i.mask_index).collect();
    assert_eq!(mask_indices, golden.indices("final.mask_indices"));
    for (instance, score) in instances.iter().zip(golden.values("final.scores")) {
        assert!((instance.score - score).abs() < 5e-5, "score {} for {score}", instance.score);
    }
    assert_eq!(result.size(), golden.original());
    let masks = golden.masks();
    assert_eq!(masks.len(), instances.len());
    let differing = |(instance, wanted): (_, &BitMask)| {
        let bytes = result.mask(instance).bytes().iter().zip(wanted.bytes());
        bytes.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
    };
    let different: u32 = instances.iter().zip(&masks).map(differing).sum();
    println!("{} {}: {different} mask bits differ", golden.model, golden.case);
    assert!(different <= MASK_BITS, "{different} mask bits differ");
}

/// Probability of an object at a pixel of the photo, by the formula of `src/image/mask_resize.rs` in double
/// precision.
fn probability(golden: &Golden, masks: &Tensor, object: usize, pixel: [usize; 2]) -> f64 {
    let side = |entry: &str, axis: usize| golden.meta[entry][axis].as_u64().unwrap() as usize;
    let [original, resized, padded] =
        ["ori_shape", "img_shape", "batch_input_shape"].map(|entry| [side(entry, 0), side(entry, 1)]);
    let logits = [masks.shape()[2], masks.shape()[3]];
    let stride4 = logits.map(|side| 2 * side);
    let logit = |at: [usize; 2]| f64::from(masks.at(&[0, object, at[0], at[1]]));
    let upsampled = |at| blend(logits, stride4, at, &logit);
    let soft = |at| 1.0 / (1.0 + (-upsampled(at)).exp());
    blend(resized, original, pixel, &|at| blend(stride4, padded, at, &soft))
}

/// The value at pixel `at` of a map of `to` pixels, resized from one of `from` pixels.
fn blend(from: [usize; 2], to: [usize; 2], at: [usize; 2], value: &dyn Fn([usize; 2]) -> f64) -> f64 {
    let resize = Resize { mode: ResizeMode::Bilinear { align_corners: false }, size: to, step: None };
    let [v, h] = [0, 1].map(|axis| resize.taps(axis, from[axis], at[axis]));
    let row = |y| (1.0 - h.weight) * value([y, h.low]) + h.weight * value([y, h.high]);
    (1.0 - v.weight) * row(v.low) + v.weight * row(v.high)
}

fn check_panoptic(golden: &Golden) {
    let image = golden.image();
    let result = engine(golden.model).session_mut().segment_resized(&image, golden.original()).unwrap();
    compare_panoptic(golden, result.panoptic().unwrap(), || {
        let taps = engine(golden.model).session_mut().taps(&image).unwrap();
        taps.into_iter().find(|(tap, _)| tap == "s2.mask_preds").unwrap().1
    });
}

/// Compares a panoptic map, of these mask logits of the last stage.
pub fn compare_panoptic(golden: &Golden, panoptic: &PanopticResult, masks: impl FnOnce() -> Tensor) {
    let differing = |ours: &[u32], name: &str| {
        let theirs = golden.indices(name);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        ours.iter().zip(theirs).filter(|&(&a, b)| a as usize != b).count()
    };
    let trace = &panoptic.trace;
    assert_eq!(differing(&trace.sorted_inds, "final.sorted_inds"), 0, "order of objects");
    assert_eq!(differing(&trace.total_labels, "final.total_labels"), 0, "labels");
    for (score, wanted) in trace.total_scores.iter().zip(golden.values("final.total_scores")) {
        assert!((score - wanted).abs() < 5e-5, "score {score} for {wanted}");
    }
    let (width, wanted) = (panoptic.width, golden.indices("final.pan"));
    let winners = golden.indices("final.argmax_ids");
    let other = |i: &usize| trace.argmax_ids[*i] as usize != winners[*i];
    let others: Vec<usize> = (0..winners.len()).filter(other).collect();
    let map: Vec<usize> = (0..wanted.len()).filter(|&i| panoptic.map[i] as usize != wanted[i]).collect();
    println!("{} {}: arg-max pixels {others:?}, map pixels {map:?} differ", golden.model, golden.case);
    assert!(map.iter().all(|pixel| others.contains(pixel)), "panoptic map differs at {map:?}");
    if !others.is_empty() {
        let masks = masks();
        for pixel in others {
            let [ours, theirs] = [trace.argmax_ids[pixel] as usize, winners[pixel]].map(|object| {
                let at = [pixel / width, pixel % width];
                f64::from(trace.total_scores[object]) * probability(golden, &masks, object, at)
            });
            println!("{} {} pixel {pixel}: {ours} to {theirs}", golden.model, golden.case);
            assert!((ours - theirs).abs() <= NEAR_TIE, "pixel {pixel} of the map: {ours} against {theirs}");
        }
    }
    let categories: Vec<u64> = panoptic.segments.iter().map(|s| s.category as u64).collect();
    let segments = golden.meta["segments"].as_array().unwrap();
    assert_eq!(categories, segments.iter().map(|s| s["category"].as_u64().unwrap()).collect::<Vec<_>>());
}

/// The last stage over weights of other seeds, against PyTorch in float32 (`tests/goldens/seeds`).
fn check_seeds(model: &'static str, precision: Precision) {
    let numbers = testkit::root().join("tests/goldens/seeds/numbers.json");
    let numbers: Value = serde_json::from_str(&std::fs::read_to_string(numbers).unwrap()).unwrap();
    let image = image::imageops::crop_imm(&Golden::open(model, "a").image(), 0, 0, 64, 96).to_image();
    for (seed, wanted) in numbers[model].as_object().unwrap() {
        let weights = WeightSource::Seeded(seed.parse().unwrap());
        let builder = device::builder().weights(weights).model(model).size(None).threads(2);
        let mut engine = builder.arithmetic(Arithmetic::Exact).precision(precision).build().unwrap();
        let taps = engine.session_mut().taps(&image).unwrap();
        for name in ["s2.cls_score", "s2.mask_preds"] {
            let wanted: Vec<f64> = serde_json::from_value(wanted[name].clone()).unwrap();
            let values = taps.iter().find(|(tap, _)| tap == name).unwrap().1.data();
            let stride = values.len() / wanted.len();
            let found: Vec<f64> =
                wanted.iter().enumerate().map(|(i, _)| f64::from(values[i * stride])).collect();
            let error = relative_l2(&found, &wanted);
            println!("{model} seed {seed} {precision:?} {name}: {error:.1e}");
            assert!(
                error <= TAP_TOLERANCE,
                "{model} seed {seed} {precision:?} {name}: relative L2 {error:.1e}"
            );
        }
        if device::device() != Device::Cpu {
            // A second run would double what the emulator takes; how a GPU finishes logits is held by the
            // goldens below.
            continue;
        }
        let result = engine.segment(&image).unwrap();
        let labels: Vec<usize> = match result.panoptic() {
            Some(panoptic) => panoptic.trace.total_labels.iter().map(|&l| l as usize).collect(),
            None => result.instances().iter().map(|i| i.label).collect(),
        };
        let wanted: Vec<usize> = serde_json::from_value(wanted["labels"].clone()).unwrap();
        assert_eq!(labels, wanted, "{model} seed {seed} {precision:?}: labels");
    }
}

#[test]
fn instance_seeds() {
    check_seeds("knet_s3_r50_fpn", Precision::F32);
}

#[test]
fn panoptic_seeds() {
    check_seeds("knet_s3_r50_fpn_panoptic", Precision::F32);
}

/// The precision is a GPU's alone.
#[test]
fn instance_seeds_tf32x3() {
    if device::device() != Device::Cpu {
        check_seeds("knet_s3_r50_fpn", Precision::Tf32x3);
    }
}

#[test]
fn instance_taps_a() {
    check_taps(&Golden::open("knet_s3_r50_fpn", "a"));
}

#[test]
fn instance_taps_b() {
    check_taps(&Golden::open("knet_s3_r50_fpn", "b"));
}

#[test]
fn panoptic_taps_a() {
    check_taps(&Golden::open("knet_s3_r50_fpn_panoptic", "a"));
}

#[test]
fn panoptic_taps_b() {
    check_taps(&Golden::open("knet_s3_r50_fpn_panoptic", "b"));
}

#[test]
fn instances_a() {
    check_instances(&Golden::open("knet_s3_r50_fpn", "a"));
}

#[test]
fn instances_b() {
    check_instances(&Golden::open("knet_s3_r50_fpn", "b"));
}

#[test]
fn panoptic_map_a() {
    check_panoptic(&Golden::open("knet_s3_r50_fpn_panoptic", "a"));
}

#[test]
fn panoptic_map_b() {
    check_panoptic(&Golden::open("knet_s3_r50_fpn_panoptic", "b"));
}

/// What semantic goldens hold besides taps: inner values of backbones, whose levels are compared.
const NOT_TAPPED: [&str; 3] = ["input", "backbone.", "final."];

/// A semantic model: every tap of the golden's photo, then the class of every pixel, at the size of the input
/// and at that of the photo, where PyTorch's two largest logits or probabilities are further apart than its
/// own rounding.
fn check_semantic(engine: &mut Engine, golden: &Golden) {
    let image = golden.image();
    let size = (image.height() as usize, image.width() as usize);
    let tolerance = tolerance(engine, &image);
    let taps = engine.session_mut().taps(&image).unwrap();
    taps.iter().for_each(|(name, tensor)| check_tap(golden, name, tensor, tolerance));
    let inner = |name: &&str| {
        let level = name.strip_prefix("backbone.C").is_some_and(|level| level.len() == 1);
        !level && NOT_TAPPED.iter().any(|prefix| name.starts_with(prefix))
    };
    let wanted = golden.tensors.names().filter(|name| !inner(name)).count();
    assert_eq!(taps.len(), wanted, "taps compared");

    let sizes = [
        ("input_size", "margin_input_size", size),
        ("ori_size", "softmax_margin_ori_size", golden.original()),
    ];
    for ((which, margin, size), near) in sizes.into_iter().zip([1e-3, 1e-5]) {
        let result = engine.session_mut().segment_resized(&image, size).unwrap();
        let found = result.semantic().unwrap();
        let wanted = golden.indices(&format!("final.argmax_{which}"));
        let margins = golden.values(&format!("final.{margin}"));
        assert_eq!((found.map.len(), margins.len()), (wanted.len(), wanted.len()), "{which}");
        let differing: Vec<usize> =
            (0..wanted.len()).filter(|&i| usize::from(found.map[i]) != wanted[i]).collect();
        println!("{} {} {which}: pixels {differing:?} of {} differ", golden.model, golden.case, wanted.len());
        for pixel in differing {
            assert!(margins[pixel] < near, "{which}: pixel {pixel} differs, margin {}", margins[pixel]);
        }
        assert_eq!(found.areas.iter().sum::<usize>(), wanted.len());
        if which == "ori_size" {
            check_confidence(golden, found);
        }
    }
}

/// A confidence is the softmax of its pixel's class; PyTorch's samples are of all classes.
fn check_confidence(golden: &Golden, found: &SemanticResult) {
    let entry = &golden.meta["tensors"]["final.softmax_ori_size"];
    let stride = entry["stride"].as_u64().unwrap() as usize;
    let pixels = found.map.len();
    let mut compared = 0;
    for (index, wanted) in golden.values("final.softmax_ori_size").iter().enumerate() {
        let flat = if index < 64 { index } else { 64 + (index - 64) * stride };
        if usize::from(found.map[flat % pixels]) == flat / pixels {
            let confidence = found.confidence[flat % pixels];
            assert!((confidence - wanted).abs() < 2e-5, "confidence {confidence} for {wanted}");
            compared += 1;
        }
    }
    assert!(compared > 0, "no sample is of its pixel's class");
}

/// One tap against the golden's.
fn check_tap(golden: &Golden, name: &str, tensor: &Tensor, tolerance: f64) {
    let entry = &golden.meta["tensors"][name];
    let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
    assert_eq!(tensor.shape().dims(), shape, "{name}");
    let wanted: Vec<f64> = golden.values(name).into_iter().map(f64::from).collect();
    let error = relative_l2(&golden.sample(name, tensor.data()), &wanted);
    println!("{} {} {name:<24} {error:.2e}", golden.model, golden.case);
    assert!(error <= tolerance, "{} {} {name}: relative L2 {error:.2e}", golden.model, golden.case);
}

/// A model whose goldens the repository may not hold. The CPU alone is asked: at the full width of such a
/// model the emulator would take hours. Parts of some run there: `tests/device/parts.rs`.
fn shared(model: &'static str, case: &'static str) -> Option<Golden> {
    if device::device() == Device::Cpu { Golden::find(model, case) } else { None }
}

fn with_shared(model: &'static str, case: &'static str, check: fn(&Golden)) {
    if let Some(golden) = shared(model, case) {
        check(&golden);
    }
}

#[test]
fn swin_l_panoptic_taps_a() {
    with_shared("knet_s3_swin_l_panoptic", "a", check_taps);
}

#[test]
fn swin_l_panoptic_taps_b() {
    with_shared("knet_s3_swin_l_panoptic", "b", check_taps);
}

#[test]
fn swin_l_panoptic_map_a() {
    with_shared("knet_s3_swin_l_panoptic", "a", check_panoptic);
}

#[test]
fn swin_l_panoptic_map_b() {
    with_shared("knet_s3_swin_l_panoptic", "b", check_panoptic);
}

/// A test of its own for each semantic model, both cases, taps and classes.
macro_rules! semantic_models {
    ($($name:ident = $model:literal;)*) => {
        mod semantic {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let goldens = ["a", "odd"].map(|case| shared($model, case));
                    if goldens.iter().all(Option::is_none) {
                        return;
                    }
                    let builder = device::builder().model($model).size(None).threads(2).confidence(true);
                    let mut engine = builder.build().unwrap();
                    goldens.iter().flatten().for_each(|golden| check_semantic(&mut engine, golden));
                }
            )*
        }
    };
}
semantic_models! {
    knet_s3_fcn_r50_d8 = "knet_s3_fcn_r50-d8";
    knet_s3_pspnet_r50_d8 = "knet_s3_pspnet_r50-d8";
    knet_s3_deeplabv3_r50_d8 = "knet_s3_deeplabv3_r50-d8";
    knet_s3_upernet_r50 = "knet_s3_upernet_r50";
    knet_s3_upernet_swin_t = "knet_s3_upernet_swin-t";
    knet_s3_upernet_swin_l = "knet_s3_upernet_swin-l";
    mmseg_knet_s3_upernet_r50 = "mmseg_knet_s3_upernet_r50";
    mmseg_knet_s3_upernet_swin_t = "mmseg_knet_s3_upernet_swin-t";
    fcn_r50_d8 = "fcn_r50-d8";
    pspnet_r50_d8 = "pspnet_r50-d8";
    deeplabv3_r50_d8 = "deeplabv3_r50-d8";
    upernet_r50 = "upernet_r50";
}
