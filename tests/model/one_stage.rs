//! SOLOv2 and CondInst against our own PyTorch, written from their papers (`tools/peer`): taps, detections
//! and bits of masks.

use knet::checkpoint::seeded;
use knet::cpu::{self, Arithmetic, Executor, Selection, Weights};
use knet::engine::source::{Opened, open};
use knet::engine::{Device, Model, ModelOptions, WeightSource};
use knet::error::Error;
use knet::graph::Param;
use knet::graph::passes::optimize;
use knet::image::RgbImage;
use knet::image::instance::{Instance, InstanceResult};
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::rcnn::IMAGE_INFO;
use knet::model::{CondInst, Config, ResNet, Solov2, TapLayout, TapMode, build};
use knet::ops::case::relative_l2;
use knet::task::{AnyTask, Found, HostOutputs, Postprocess, PostprocessOptions};
use knet::tensor::Tensor;
use std::collections::HashMap;
use testkit::device;
use testkit::model::photo;
use testkit::model_golden::Golden;

/// Error allowed in taps, in units of the error that PyTorch itself makes in float32. Two float32 evaluations
/// that round in another order are equally good, and scatter by less than a factor of two.
const TIMES_PYTORCHS: f64 = 2.5;

/// The same for taps of fewer values than these: the error of a handful is no average of many (the coarsest
/// map of a small photo has two pixels, whose centrality nearly cancels).
const FEW: (usize, f64) = (64, 6.0);

/// What one run gives: taps by name, row-major in upstream's order, and instances.
struct Run {
    taps: HashMap<String, Vec<f32>>,
    found: InstanceResult,
}

/// A model on a photo, whose masks are for one of another size if that is given.
fn run(
    config: &Config,
    load: impl Fn(&Param) -> knet::Result<Tensor> + Send + Sync + 'static,
    photo: &RgbImage,
    original: Option<(usize, usize)>,
    (isa, threads): (Isa, usize),
) -> Run {
    let size = PreprocessConfig { size: None, divisor: config.size_divisor(), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(size).unwrap();
    let geometry = preprocessor.geometry(photo.height() as usize, photo.width() as usize);
    let geometry = Geometry { original: original.unwrap_or(geometry.original), ..geometry };
    let network = build(config, 1, [geometry.padded.0, geometry.padded.1], TapMode::All).unwrap();
    let selection = Selection { arithmetic: Arithmetic::Exact, ..Selection::new(isa, threads) };
    let plan = cpu::plan(&optimize(network.graph).unwrap(), selection).unwrap();
    let mut executor = Executor::new(plan, &Weights::new(Box::new(load))).unwrap();
    preprocessor.run(photo, executor.input_mut(0)).unwrap();
    if let Some(place) = executor.plan().inputs.iter().position(|(name, _)| name == IMAGE_INFO) {
        executor.input_mut(place).copy_from_slice(&geometry.info());
    }
    executor.run();
    let output = |name: &str, layout| {
        let index = executor.output_index(name).unwrap();
        let tensor = Tensor::new(executor.output_type(index).shape, executor.output(index).to_vec());
        match layout {
            TapLayout::Features => tensor.permute(&[0, 3, 1, 2]).into_data(),
            _ => tensor.into_data(),
        }
    };
    let taps = network.taps.iter().map(|tap| (tap.name.clone(), output(&tap.name, tap.layout))).collect();
    let network: &HostOutputs<'_> = &|name| {
        let index = executor.output_index(name).unwrap();
        Ok((executor.output_type(index).shape, executor.output(index)))
    };
    let mut found = Found::default();
    let mut task = AnyTask::new(config, &PostprocessOptions::default()).unwrap();
    task.on_host(network, &geometry, &mut found).unwrap();
    let Found::Instance(found) = found else { panic!("{} gives instances", config.name) };
    Run { taps, found }
}

/// Which golden instance each of ours is: of those of its class that are not yet taken, the one with the
/// nearest score and, where there are boxes, the nearest box. Scores alone are too near each other.
fn matched(golden: &Golden, found: &InstanceResult, case: &str) -> Vec<usize> {
    let (labels, scores) = (golden.indices("final.labels"), golden.values("final.scores"));
    assert_eq!(found.instances().len(), labels.len(), "{case}: detections");
    let boxed = golden.tensors.names().any(|name| name == "final.boxes");
    let boxes = if boxed { golden.values("final.boxes") } else { Vec::new() };
    let mut taken = vec![false; labels.len()];
    let (mut score_off, mut box_off) = (0.0f32, 0.0f32);
    let of = |instance: &Instance| {
        let offs = |&i: &usize| {
            let found = found.detector_box(instance).unwrap_or_default();
            let sides = found.iter().zip(boxes.get(4 * i..).unwrap_or_default());
            [(scores[i] - instance.score).abs(), sides.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)]
        };
        let free = (0..labels.len()).filter(|&i| !taken[i] && labels[i] == instance.label);
        let distance = |i: &usize| offs(i).iter().sum::<f32>();
        let nearest = free.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("one of its class");
        let [score, sides] = offs(&nearest);
        (score_off, box_off) = (score_off.max(score), box_off.max(sides));
        taken[nearest] = true;
        nearest
    };
    let places = found.instances().iter().map(of).collect();
    println!("{case}: scores off by {score_off:.1e}, boxes by {box_off:.1e}");
    assert!(score_off < 1e-4 && box_off < 2e-3, "{case}: scores off by {score_off}, boxes by {box_off}");
    places
}

fn check(model: &'static str, case: &'static str, most_bits: u32) {
    if device::device() != Device::Cpu {
        return;
    }
    let golden = Golden::open(model, case);
    let Opened { config, load, .. } = open(&WeightSource::Seeded(0), Some(model)).unwrap();
    let run = run(&config, load, &golden.image(), Some(golden.original()), (Isa::detect(), 2));
    let case = format!("{model} {case}");
    let bounds = &golden.meta["fp32_vs_fp64"];
    for name in golden.tensors.names().filter(|name| !name.starts_with("final")) {
        let wanted: Vec<f64> = golden.values(name).into_iter().map(f64::from).collect();
        let error = relative_l2(&golden.sample(name, &run.taps[name]), &wanted);
        let times = if wanted.len() < FEW.0 { FEW.1 } else { TIMES_PYTORCHS };
        let bound = times * bounds[name].as_f64().unwrap();
        println!("{case} {name:<14} {error:.2e} of {bound:.2e}");
        assert!(error <= bound, "{case} {name}: relative L2 {error:.2e} above {bound:.2e}");
    }
    let places = matched(&golden, &run.found, &case);
    let masks = golden.masks();
    let mut different = 0;
    for (instance, &place) in run.found.instances().iter().zip(&places) {
        let Some(wanted) = masks.get(place) else { continue };
        let bytes = run.found.mask(instance).bytes().iter().zip(wanted.bytes());
        different += bytes.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    }
    println!("{case}: {different} mask bits differ");
    assert!(different <= most_bits, "{case}: {different} mask bits differ");
}

#[test]
fn solov2_a() {
    check("solov2_r50_fpn", "a", 10);
}

#[test]
fn solov2_b() {
    check("solov2_r50_fpn", "b", 10);
}

#[test]
fn condinst_a() {
    check("condinst_r50_fpn", "a", 10);
}

#[test]
fn condinst_b() {
    check("condinst_r50_fpn", "b", 10);
}

/// Seeded weights, changed.
fn changed(
    change: impl Fn(&str, &mut [f32]) + Send + Sync + 'static,
) -> impl Fn(&Param) -> knet::Result<Tensor> + Send + Sync + 'static {
    move |param| {
        let mut tensor = seeded::tensor(&param.key, &param.upstream_shape, 0)?;
        change(&param.key, tensor.data_mut());
        Ok(tensor)
    }
}

/// A small SOLOv2.
fn solov2() -> Config {
    let solov2 = Solov2 {
        hidden_channels: 32,
        feature_channels: 32,
        mask_channels: 32,
        candidates: 60,
        ..Solov2::default()
    };
    let mut config = Config::solov2(ResNet::new(50).into(), solov2, 5);
    (config.neck.channels, config.test.max_per_image) = (16, 30);
    config
}

/// A small CondInst.
fn condinst() -> Config {
    let condinst = CondInst { branch_channels: 16, candidates: 60, ..CondInst::default() };
    let mut config = Config::condinst(ResNet::new(50).into(), condinst, 5);
    (config.neck.channels, config.test.max_per_image) = (32, 30);
    config
}

/// What a small model finds whose parameters of this name have this value.
fn with(config: &Config, name: &'static str, value: f32, (height, width): (u32, u32)) -> InstanceResult {
    let load = changed(move |key, values| {
        if key.ends_with(name) {
            values.fill(value);
        }
    });
    run(config, load, &photo(height, width), None, (Isa::detect(), 1)).found
}

#[test]
fn no_scores_are_no_detections() {
    for config in [solov2(), condinst()] {
        for value in [-50.0, f32::NAN] {
            let found = with(&config, "conv_cls.bias", value, (40, 90));
            assert_eq!(found.instances().len(), 0, "{}: class logits around {value}", config.name);
        }
    }
}

#[test]
fn heads_without_numbers_are_no_panic() {
    let found = with(&solov2(), "conv_kernel.bias", f32::NAN, (64, 96));
    assert_eq!(found.instances().len(), 0, "kernels without numbers are no masks");
    let found = with(&condinst(), "conv_reg.bias", f32::NAN, (64, 96));
    assert_eq!(found.instances().len(), 0, "sides without numbers are no boxes");
    let found = with(&condinst(), "conv_centerness.bias", f32::NAN, (64, 96));
    assert_eq!(found.instances().len(), 0, "a score that is no number is none");
    for name in ["controller.bias", "conv_pred.bias"] {
        let found = with(&condinst(), name, f32::NAN, (64, 96));
        assert!(!found.instances().is_empty(), "{name}: boxes are there");
        assert!(found.instances().iter().all(|instance| instance.area <= 64 * 96), "{name}");
    }
}

#[test]
fn a_photo_may_be_smaller_than_anything() {
    for size in [(1, 1), (33, 7)] {
        for (config, bias) in [(solov2(), -2.0), (condinst(), 1.0)] {
            let found = with(&config, "conv_cls.bias", bias, size);
            let pixels = (size.0 * size.1) as usize;
            assert!(found.instances().iter().all(|instance| instance.area <= pixels), "{}", config.name);
            for instance in found.instances() {
                let Some([left, top, right, bottom]) = found.detector_box(instance) else { continue };
                assert!(
                    0.0 <= left && left < right && right <= size.1 as f32,
                    "{left} to {right} of {size:?}"
                );
                assert!(
                    0.0 <= top && top < bottom && bottom <= size.0 as f32,
                    "{top} to {bottom} of {size:?}"
                );
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_masks() {
    for (config, bias) in [(solov2(), -2.0), (condinst(), 1.0)] {
        let found = |threads: usize| {
            let load = changed(move |key, values| {
                if key.ends_with("conv_cls.bias") {
                    values.fill(bias);
                }
            });
            run(&config, load, &photo(33, 70), Some((50, 41)), (Isa::detect(), threads)).found
        };
        let one = found(1);
        assert!(one.instances().len() > 3, "{}: {} instances", config.name, one.instances().len());
        assert!(one == found(3), "{}", config.name);
    }
}

#[test]
fn a_gpu_is_refused_by_name() {
    for name in ["solov2_r50_fpn", "condinst_r50_fpn"] {
        let options =
            ModelOptions { name: Some(name.into()), device: Device::Cuda(0), ..ModelOptions::default() };
        let error = Model::load(&options).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(error.to_string().contains("runs on the CPU alone"), "{error}");
    }
}
