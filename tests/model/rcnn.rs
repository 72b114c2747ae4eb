//! Two-stage detectors against the official PyTorch code (mmdet): taps, proposals and detections as sets, as
//! ranking ties reorder them under the rounding of a float, and bits of masks.

use knet::checkpoint::seeded;
use knet::cpu::{self, Arithmetic, Executor, Selection, Weights};
use knet::engine::source::open;
use knet::engine::{Device, Model, ModelOptions, WeightSource};
use knet::error::Error;
use knet::graph::Param;
use knet::graph::passes::optimize;
use knet::image::instance::InstanceResult;
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::{Config, Network, Rcnn, ResNet, TapLayout, TapMode, build};
use knet::ops::case::relative_l2;
use knet::task::{AnyTask, Found, HostOutputs, Postprocess, PostprocessOptions};
use knet::tensor::Tensor;
use std::collections::HashMap;
use testkit::device;
use testkit::model::photo;
use testkit::model_golden::Golden;

/// As in `goldens.rs`, before anything is chosen by score.
const TAP_TOLERANCE: f64 = 1e-5;

/// What one run gives: taps by name, row-major in upstream's order, and instances.
struct Run {
    taps: HashMap<String, Vec<f32>>,
    found: InstanceResult,
}

fn run(golden: &Golden) -> Run {
    let (config, load) = open(&WeightSource::Seeded(0), Some(golden.model)).unwrap();
    let image = golden.image();
    let size = PreprocessConfig { size: None, divisor: config.size_divisor(), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(size).unwrap();
    let geometry = preprocessor.geometry(image.height() as usize, image.width() as usize);
    let geometry = Geometry { original: golden.original(), ..geometry };
    let Network { graph, taps } =
        build(&config, 1, [geometry.padded.0, geometry.padded.1], TapMode::All).unwrap();
    let selection = Selection { arithmetic: Arithmetic::Exact, ..Selection::new(Isa::detect(), 2) };
    let plan = cpu::plan(&optimize(graph).unwrap(), selection).unwrap();
    let mut executor = Executor::new(plan, &Weights::new(load)).unwrap();
    preprocessor.run(&image, executor.input_mut(0)).unwrap();
    executor.input_mut(1).copy_from_slice(&geometry.info());
    executor.run();
    let output = |name: &str| {
        let index = executor.output_index(name).unwrap();
        Tensor::new(executor.output_type(index).shape, executor.output(index).to_vec())
    };
    let upstream = |tensor: Tensor, layout| match layout {
        TapLayout::Features => tensor.permute(&[0, 3, 1, 2]).into_data(),
        _ => tensor.into_data(),
    };
    let taps = taps.iter().map(|tap| (tap.name.clone(), upstream(output(&tap.name), tap.layout))).collect();
    let network: &HostOutputs<'_> = &|name| {
        let index = executor.output_index(name).unwrap();
        Ok((executor.output_type(index).shape, executor.output(index)))
    };
    let mut found = Found::default();
    let mut task = AnyTask::new(&config, &PostprocessOptions::default()).unwrap();
    task.on_host(network, &geometry, &mut found).unwrap();
    let Found::Instance(found) = found else { panic!("{} gives instances", golden.model) };
    Run { taps, found }
}

/// For each wanted row the row of ours that is nearest in all its columns, with the largest distance.
fn nearest(
    ours: &[f32],
    wanted: &[f32],
    columns: usize,
    alike: impl Fn(usize, usize) -> bool,
) -> Vec<(usize, f32)> {
    let row = |rows: &[f32], index: usize| rows[index * columns..][..columns].to_vec();
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let of = |index: usize| {
        let wanted = row(wanted, index);
        let rows = (0..ours.len() / columns).filter(|&other| alike(other, index));
        let all = rows.map(|other| (other, distance(&row(ours, other), &wanted)));
        all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((usize::MAX, f32::INFINITY))
    };
    (0..wanted.len() / columns).map(of).collect()
}

/// How far a matched proposal or detection may be off, in pixels. PyTorch's own are up to 3e-4 off under noise
/// of 1e-6 (`sensitivity_to_1e6_input_noise`).
const PIXELS: f32 = 5e-3;

fn check(golden: &Golden, most_others: usize, most_bits: u32) {
    let run = run(golden);
    let case = format!("{} {}", golden.model, golden.case);
    let chosen =
        |name: &str| ["stage", "mask", "final", "rpn.proposals"].iter().any(|start| name.starts_with(start));
    let mut compared = 0;
    for name in golden.tensors.names().filter(|name| !chosen(name)) {
        let wanted: Vec<f64> = golden.values(name).into_iter().map(f64::from).collect();
        let error = relative_l2(&golden.sample(name, &run.taps[name]), &wanted);
        println!("{case} {name:<14} {error:.2e}");
        assert!(error <= TAP_TOLERANCE, "{case} {name}: relative L2 {error:.2e}");
        compared += 1;
    }
    assert_eq!(compared, 19, "backbone, pyramid and proposal heads");

    let wanted = golden.values("rpn.proposals");
    let found = nearest(&run.taps["rpn.proposals"], &wanted, 5, |_, _| true);
    let others = found.iter().filter(|(_, off)| *off > PIXELS).count();
    let off = found.iter().map(|(_, off)| *off).filter(|off| *off <= PIXELS).fold(0.0, f32::max);
    println!("{case} proposals: {others} of {} differ, others off by {off:.1e}", found.len());
    assert!(others <= most_others, "{case}: {others} proposals differ");
    let classes = 81;
    for stage in (0..3).filter(|stage| run.taps.contains_key(&format!("stage{stage}.cls_score"))) {
        let name = format!("stage{stage}.cls_score");
        let (ours, theirs) = (&run.taps[&name], golden.values(&name));
        let same = found.iter().enumerate().filter(|(_, (_, off))| *off <= PIXELS);
        let [mut a, mut b] = [Vec::new(), Vec::new()];
        for (row, &(other, _)) in same {
            a.extend(ours[other * classes..][..classes].iter().copied().map(f64::from));
            b.extend(theirs[row * classes..][..classes].iter().copied().map(f64::from));
        }
        let error = relative_l2(&a, &b);
        println!("{case} {name} of the same proposals: {error:.2e}");
        assert!(error < 2e-5, "{case} {name}: relative L2 {error:.2e}");
    }

    let instances = run.found.instances();
    let labels = golden.indices("final.det_labels");
    let ours: Vec<f32> = instances
        .iter()
        .flat_map(|instance| {
            let [left, top, right, bottom] = run.found.detector_box(instance).unwrap();
            [left, top, right, bottom, instance.score]
        })
        .collect();
    let same = |ours: usize, theirs: usize| instances[ours].label == labels[theirs];
    let found = nearest(&ours, &golden.values("final.dets"), 5, same);
    assert_eq!(instances.len(), labels.len(), "{case}: detections");
    let others = found.iter().filter(|(_, off)| *off > PIXELS).count();
    let (masks, wanted_prob) = (golden.masks(), golden.values("final.mask_prob28"));
    let (mut different, mut probability, mut off) = (0, 0.0f32, 0.0f32);
    for (row, &(other, distance)) in found.iter().enumerate().filter(|(_, (_, off))| *off <= PIXELS) {
        let bytes = run.found.mask(&instances[other]).bytes().iter().zip(masks[row].bytes());
        different += bytes.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        let cells = wanted_prob[row * 784..][..784].iter();
        let ours = &run.taps["final.mask_prob28"][other * 784..][..784];
        probability = cells.zip(ours).map(|(a, b)| (a - b).abs()).fold(probability, f32::max);
        off = off.max(distance);
    }
    println!(
        "{case} detections: {others} of {} differ, others off by {off:.1e}; probabilities off by \
         {probability:.1e}, {different} mask bits differ",
        labels.len()
    );
    assert!(others <= most_others / 10, "{case}: {others} detections differ");
    assert!(probability < 2e-4, "{case}: probabilities off by {probability}");
    assert!(different <= most_bits, "{case}: {different} mask bits differ");
}

/// Goldens of two-stage detectors are not in the repository.
fn with_shared(model: &'static str, case: &'static str, most_others: usize, most_bits: u32) {
    if device::device() != Device::Cpu {
        return;
    }
    if let Some(golden) = Golden::find(model, case) {
        check(&golden, most_others, most_bits);
    }
}

#[test]
fn mask_rcnn_a() {
    with_shared("mask_rcnn_r50_fpn", "a", 0, 50);
}

#[test]
fn mask_rcnn_b() {
    with_shared("mask_rcnn_r50_fpn", "b", 0, 50);
}

#[test]
fn cascade_mask_rcnn_a() {
    with_shared("cascade_mask_rcnn_r50_fpn", "a", 0, 50);
}

#[test]
fn cascade_mask_rcnn_b() {
    with_shared("cascade_mask_rcnn_r50_fpn", "b", 0, 50);
}

/// A small model on a photo of these sides, whose weights are changed.
fn detect(
    stages: usize,
    (height, width): (u32, u32),
    change: impl Fn(&str, &mut [f32]) + Send + Sync + 'static,
) -> InstanceResult {
    let rcnn = Rcnn { stages, proposals: 60, hidden_channels: 24, ..Rcnn::default() };
    let mut config = Config::two_stage(ResNet::new(50).into(), rcnn, 5);
    (config.neck.channels, config.test.max_per_image) = (16, 30);
    let load = move |param: &Param| {
        let mut tensor = seeded::tensor(&param.key, &param.upstream_shape, 0)?;
        change(&param.key, tensor.data_mut());
        Ok(tensor)
    };
    let size = PreprocessConfig { size: None, divisor: config.size_divisor(), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(size).unwrap();
    let geometry = preprocessor.geometry(height as usize, width as usize);
    let network = build(&config, 1, [geometry.padded.0, geometry.padded.1], TapMode::Off).unwrap();
    let plan = cpu::plan(&optimize(network.graph).unwrap(), Selection::new(Isa::detect(), 1)).unwrap();
    let mut executor = Executor::new(plan, &Weights::new(Box::new(load))).unwrap();
    preprocessor.run(&photo(height, width), executor.input_mut(0)).unwrap();
    executor.input_mut(1).copy_from_slice(&geometry.info());
    executor.run();
    let network: &HostOutputs<'_> = &|name| {
        let index = executor.output_index(name).unwrap();
        Ok((executor.output_type(index).shape, executor.output(index)))
    };
    let mut found = Found::default();
    let mut task = AnyTask::new(&config, &PostprocessOptions::default()).unwrap();
    task.on_host(network, &geometry, &mut found).unwrap();
    let Found::Instance(found) = found else { panic!("no instances") };
    found
}

/// Whether a parameter is of this layer.
fn is_of(key: &str, layer: &str) -> bool {
    key.rsplit_once('.').is_some_and(|(prefix, _)| prefix.ends_with(layer))
}

#[test]
fn no_proposals_are_no_detections() {
    for stages in [1, 3] {
        for layer in ["rpn_cls", "rpn_reg"] {
            let broken = detect(stages, (64, 96), move |key, values| {
                if is_of(key, layer) {
                    values.fill(f32::NAN);
                }
            });
            assert_eq!(broken.instances().len(), 0, "{layer} of {stages} stages is NaN");
        }
    }
}

#[test]
fn heads_without_numbers_are_no_panic() {
    for layer in ["fc_cls", "fc_reg", "shared_fcs.1", "conv_logits", "upsample"] {
        let broken = detect(1, (64, 96), move |key, values| {
            if is_of(key, layer) {
                values.fill(f32::NAN);
            }
        });
        if ["fc_cls", "shared_fcs.1"].contains(&layer) {
            assert_eq!(broken.instances().len(), 0, "a score that is no number is none: {layer}");
        }
        assert!(broken.instances().iter().all(|instance| instance.area <= 64 * 96));
    }
}

#[test]
fn all_detections_of_one_class_are_the_best_of_them() {
    let found = detect(1, (96, 64), |key, values| {
        if key.ends_with("fc_cls.weight") {
            values.fill(0.0);
        } else if key.ends_with("fc_cls.bias") {
            values.copy_from_slice(&[0.0, 0.0, 9.0, 0.0, 0.0, 0.0]);
        }
    });
    assert!(!found.instances().is_empty() && found.instances().len() <= 30);
    assert!(found.instances().iter().all(|instance| instance.label == 2 && instance.score > 0.9));
}

/// Anchors that stay where they are: most reach beyond the photo, and are clipped to it.
#[test]
fn boxes_lie_within_the_photo_and_a_photo_may_be_smaller_than_an_anchor() {
    for (height, width) in [(32, 32), (1, 1), (33, 7)] {
        let found = detect(3, (height, width), |key, values| {
            if is_of(key, "rpn_reg") {
                values.fill(0.0);
            }
        });
        assert!(!found.instances().is_empty(), "{height}x{width}");
        for instance in found.instances() {
            let [left, top, right, bottom] = found.detector_box(instance).unwrap();
            assert!(0.0 <= left && left <= right && right <= width as f32, "{left} to {right} of {width}");
            assert!(0.0 <= top && top <= bottom && bottom <= height as f32, "{top} to {bottom} of {height}");
        }
    }
}

#[test]
fn a_gpu_is_refused_by_name() {
    let options = ModelOptions {
        name: Some("mask_rcnn_r50_fpn".into()),
        device: Device::Cuda(0),
        ..ModelOptions::default()
    };
    let error = Model::load(&options).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert!(error.to_string().contains("runs on the CPU alone"), "{error}");
}
