//! A run of a whole two-stage detector against the official PyTorch code's: taps, and proposals and
//! detections as sets, as ranking ties reorder them under the rounding of a float. `tests/model` runs the
//! CPU, `tests/device` a GPU.

use knet::engine::WeightSource;
use knet::engine::source::{Opened, open};
use knet::graph::Graph;
use knet::graph::passes::optimize;
use knet::image::instance::InstanceResult;
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::model::{Network, TapLayout, TapMode, build};
use knet::ops::case::relative_l2;
use knet::plan::constants::ParamLoader;
use knet::task::{AnyTask, Found, HostOutputs, Postprocess, PostprocessOptions};
use knet::tensor::{Shape, Tensor};
use std::collections::HashMap;
use testkit::model_golden::Golden;

/// As in `goldens.rs`, before anything is chosen by score.
const TAP_TOLERANCE: f64 = 1e-5;

/// What one run gives: taps by name, row-major in upstream's order, and instances.
pub struct Run {
    taps: HashMap<String, Vec<f32>>,
    found: InstanceResult,
}

/// Results of a run by name; indices as the bits of floats.
pub type Results = HashMap<String, (Shape, Vec<f32>)>;

/// Runs the network on the golden's photo, by what executes a graph with these parameters over its inputs,
/// the photo and what the network is told of it. The CPU pastes masks.
pub fn run(
    golden: &Golden,
    execute: impl FnOnce(&Graph, Box<ParamLoader>, [&[f32]; 2]) -> knet::Result<Results>,
) -> knet::Result<Run> {
    let Opened { config, load, .. } = open(&WeightSource::Seeded(0), Some(golden.model))?;
    let image = golden.image();
    let size = PreprocessConfig { size: None, divisor: config.size_divisor(), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(size)?;
    let geometry = preprocessor.geometry(image.height() as usize, image.width() as usize);
    let geometry = Geometry { original: golden.original(), ..geometry };
    let Network { graph, taps } = build(&config, 1, [geometry.padded.0, geometry.padded.1], TapMode::All)?;
    let mut pixels = vec![0.0; geometry.input_len()];
    preprocessor.run(&image, &mut pixels)?;
    let results = execute(&optimize(graph)?, load, [&pixels, &geometry.info()])?;
    let upstream = |name: &str, layout| {
        let (shape, values) = &results[name];
        match layout {
            TapLayout::Features => Tensor::new(*shape, values.clone()).permute(&[0, 3, 1, 2]).into_data(),
            _ => values.clone(),
        }
    };
    let taps = taps.iter().map(|tap| (tap.name.clone(), upstream(&tap.name, tap.layout))).collect();
    let network: &HostOutputs<'_> = &|name| Ok((results[name].0, &results[name].1));
    let mut found = Found::default();
    AnyTask::new(&config, &PostprocessOptions::default())?.on_host(network, &geometry, &mut found)?;
    let Found::Instance(found) = found else { panic!("{} gives instances", golden.model) };
    Ok(Run { taps, found })
}

/// For each wanted row the row of ours that is nearest in all its columns, with the largest distance.
pub fn nearest(
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

/// How far a matched proposal or detection may be off, in pixels. PyTorch's own are up to 3e-4 off under
/// noise of 1e-6 (`sensitivity_to_1e6_input_noise`).
pub const PIXELS: f32 = 5e-3;

/// Compares a run, of which so many proposals, a tenth as many detections, and bits of masks may differ.
pub fn check(golden: &Golden, run: &Run, most_others: usize, most_bits: u32) {
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
