//! SOLOv2 against our own PyTorch, written from its paper (`tools/peer`): taps, detections and bits of masks.

use knet::checkpoint::seeded;
use knet::cpu::{self, Arithmetic, Executor, Selection, Weights};
use knet::engine::source::open;
use knet::engine::{Device, Model, ModelOptions, WeightSource};
use knet::error::Error;
use knet::graph::Param;
use knet::graph::passes::optimize;
use knet::image::RgbImage;
use knet::image::instance::InstanceResult;
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::rcnn::IMAGE_INFO;
use knet::model::{Config, ResNet, Solov2, TapLayout, TapMode, build};
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

/// Which golden instance each of ours is: the one of its class, and box if there are some, with the nearest
/// score among those not yet taken. Scores come in descending order, so rounding exchanges neighbours alone.
fn matched(golden: &Golden, found: &InstanceResult, case: &str) -> Vec<usize> {
    let (labels, scores) = (golden.indices("final.labels"), golden.values("final.scores"));
    assert_eq!(found.instances().len(), labels.len(), "{case}: detections");
    let mut taken = vec![false; labels.len()];
    let mut off = 0.0f32;
    let of = |instance: &knet::image::instance::Instance| {
        let free = (0..labels.len()).filter(|&i| !taken[i] && labels[i] == instance.label);
        let distance = |&i: &usize| (scores[i] - instance.score).abs();
        let nearest = free.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("one of its class");
        off = off.max(distance(&nearest));
        taken[nearest] = true;
        nearest
    };
    let places = found.instances().iter().map(of).collect();
    println!("{case}: scores off by {off:.1e}");
    assert!(off < 1e-4, "{case}: scores off by {off}");
    places
}

fn check(model: &'static str, case: &'static str, most_bits: u32) {
    if device::device() != Device::Cpu {
        return;
    }
    let golden = Golden::open(model, case);
    let (config, load) = open(&WeightSource::Seeded(0), Some(model)).unwrap();
    let run = run(&config, load, &golden.image(), Some(golden.original()), (Isa::detect(), 2));
    let case = format!("{model} {case}");
    let bounds = &golden.meta["fp32_vs_fp64"];
    for name in golden.tensors.names().filter(|name| !name.starts_with("final")) {
        let wanted: Vec<f64> = golden.values(name).into_iter().map(f64::from).collect();
        let error = relative_l2(&golden.sample(name, &run.taps[name]), &wanted);
        let bound = TIMES_PYTORCHS * bounds[name].as_f64().unwrap();
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
    let solov2 =
        Solov2 { hidden_channels: 32, feature_channels: 32, mask_channels: 32, candidates: 60, ..Solov2::default() };
    let mut config = Config::solov2(ResNet::new(50).into(), solov2, 5);
    (config.neck.channels, config.test.max_per_image) = (16, 30);
    config
}

#[test]
fn no_scores_are_no_detections() {
    let photo = photo(40, 90);
    for value in [-50.0, f32::NAN] {
        let load = changed(move |key, values| {
            if key.ends_with("conv_cls.bias") {
                values.fill(value);
            }
        });
        let found = run(&solov2(), load, &photo, None, (Isa::detect(), 1)).found;
        assert_eq!(found.instances().len(), 0, "class logits around {value}");
    }
}

#[test]
fn kernels_without_numbers_are_no_masks() {
    let load = changed(|key, values| {
        if key.ends_with("conv_kernel.bias") {
            values.fill(f32::NAN);
        }
    });
    let found = run(&solov2(), load, &photo(64, 96), None, (Isa::detect(), 1)).found;
    assert_eq!(found.instances().len(), 0);
}

#[test]
fn any_number_of_threads_gives_the_same_masks() {
    let raised = || {
        changed(|key, values| {
            if key.ends_with("conv_cls.bias") {
                values.fill(-2.0);
            }
        })
    };
    let photo = photo(33, 70);
    let one = run(&solov2(), raised(), &photo, Some((50, 41)), (Isa::detect(), 1)).found;
    let three = run(&solov2(), raised(), &photo, Some((50, 41)), (Isa::detect(), 3)).found;
    assert!(one.instances().len() > 3, "{} instances", one.instances().len());
    assert!(one == three);
}

#[test]
fn a_gpu_is_refused_by_name() {
    let options = ModelOptions {
        name: Some("solov2_r50_fpn".into()),
        device: Device::Cuda(0),
        ..ModelOptions::default()
    };
    let error = Model::load(&options).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert!(error.to_string().contains("runs on the CPU alone"), "{error}");
}
