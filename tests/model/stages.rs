//! The parts of a kernel update stage against modules of the official code (`tests/goldens/ops`, computed in
//! double precision and stored as f32).

use knet::checkpoint::{Checkpoint, seeded};
use knet::cpu::Weights;
use knet::cuda::lower::fuse_conv_tails;
use knet::cuda::lower::fuse_linears;
use knet::engine::source::{is_bookkeeping, parameters};
use knet::graph::passes::optimize;
use knet::graph::{Builder, Graph, Node, Param, Source};
use knet::isa::Isa;
use knet::model::config::MODEL_NAMES;
use knet::model::{Classes, Config, Objects, TapMode, build, kernel_update_head, kernel_updator};
use knet::ops::case::relative_l2;
use knet::ops::{Op, ValueType};
use knet::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use testkit::run::{Machine, reference_with};
use testkit::shared;

/// Some ten f32 layers of width 8 to 24 in a row, each with a few roundings of 6e-8 that norms scale up.
const TOLERANCE: f64 = 2e-6;

fn golden(op: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(goldens().join("ops").join(format!("{op}.safetensors"))).unwrap())
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// Runs a graph whose parameters are the golden's `<case>.<key>`, on every instruction set, and by reference
/// with its steps over rows fused, as GPUs fuse them.
fn check(file: &Arc<Checkpoint>, case: &str, graph: Graph, inputs: &[Tensor], wanted: &[&str]) {
    let graph = optimize(graph).unwrap();
    let mut fused = graph.clone();
    fuse_linears(&mut fused).unwrap();
    assert!(fused.nodes().iter().any(|node| matches!(node.op, Op::FusedLinear(_))));
    let load = |param: &Param| file.load_f32(&format!("{case}.{}", param.key));
    let compare = |by: &str, result: &[f64], name: &str| {
        let truth = file.load_f32(&format!("{case}.{name}")).unwrap().to_f64();
        let error = relative_l2(result, truth.data());
        assert!(error <= TOLERANCE, "{case} {name} by {by}: relative L2 {error:.2e}");
    };
    for isa in Isa::available() {
        let (source, prefix) = (file.clone(), case.to_string());
        let weights = Weights::new(Box::new(move |p| source.load_f32(&format!("{prefix}.{}", p.key))));
        let results = Machine::new(&graph, &weights, isa, 2).unwrap().run(inputs);
        results
            .iter()
            .zip(wanted)
            .for_each(|(result, name)| compare(&isa.to_string(), &result.to_f64(), name));
    }
    let results = reference_with(&fused, inputs, |param| load(param).unwrap());
    results.iter().zip(wanted).for_each(|(result, name)| compare("fused steps", result.data(), name));
}

#[test]
fn a_stage_of_fused_steps_has_a_third_of_them() {
    let network = build(&Config::named("knet_s3_r50_fpn").unwrap(), 1, [64, 64], TapMode::Off).unwrap();
    let mut graph = optimize(network.graph).unwrap();
    let stage = |graph: &Graph| {
        let of_stage = |node: &&Node| {
            let name = &graph.value(node.outputs[0]).name;
            // What acts on parameters alone runs once, before the first image.
            let constant = node.inputs.iter().all(|&id| matches!(graph.value(id).source, Source::Param(_)));
            name.starts_with("roi_head.mask_head.1.") && !constant
        };
        graph.nodes().iter().filter(of_stage).map(|node| node.op.name()).collect::<Vec<_>>()
    };
    assert_eq!(stage(&graph).len(), 31);
    fuse_linears(&mut graph).unwrap();
    let wanted = [
        "conv2d",
        "mask_pool",
        "fused_linear", // dynamic layer; the input layer is with the fully connected layers of the stage before
        "fused_linear", // both gates, over the product of what comes in
        "fused_linear", // fc layer over the gated sum
        "fused_linear", // in_proj over the norm
        "attention",
        "linear",
        "fused_linear", // first layer of the feed-forward network over the norm
        "linear",
        "fused_linear", // fully connected layers of the masks, and the next stage's input layer, over the norm
        "fused_linear", // fc_mask over the norm
        "mask_conv",
    ];
    assert_eq!(stage(&graph), wanted);
}

/// The map passes of GPUs on a whole model of few channels; the bound is that of a stage, over three of them
/// and a backbone.
#[test]
fn a_model_of_fused_maps_computes_the_same() {
    let mut config = Config::named("knet_s3_r50_fpn").unwrap();
    (config.neck.channels, config.head.norm_groups, config.head.feedforward_channels) = (32, 4, 64);
    let graph = optimize(build(&config, 1, [64, 96], TapMode::Off).unwrap().graph).unwrap();
    let mut fused = graph.clone();
    fuse_conv_tails(&mut fused).unwrap();
    assert!(fused.nodes().iter().any(|node| matches!(node.op, Op::NormSum(_))));
    let image = Tensor::from_fn([1, 64, 96, 3], |i| ((i[1] * 7 + i[2] * 5 + i[3]) as f32 / 9.0).sin());
    let load = |p: &Param| seeded::tensor(&p.key, &p.upstream_shape, 0);
    let [plain, fused] = [&graph, &fused]
        .map(|graph| reference_with(graph, std::slice::from_ref(&image), |param| load(param).unwrap()));
    for (plain, fused) in plain.iter().zip(&fused) {
        let error = relative_l2(fused.data(), plain.data());
        assert!(error <= 1e-12, "relative L2 {error:.2e}");
    }
}

#[test]
fn kernel_updator_matches_upstream() {
    let file = golden("kernel_updator");
    // Case `k3` is of 3x3 instance kernels, which no K-Net detector has.
    for (case, channels) in [("k1", 12), ("one", 8), ("seg512", 16)] {
        let load = |name: &str| {
            let tensor = file.load_f32(&format!("{case}.{name}")).unwrap();
            let rows = tensor.data().len() / channels;
            tensor.reshape([1, rows, channels])
        };
        let inputs = [load("update_feature"), load("input_feature")];
        let mut b = Builder::new();
        let x_feat = b.input("update_feature", ValueType::rows(inputs[0].shape()));
        let kernels = b.input("input_feature", ValueType::rows(inputs[1].shape()));
        let y = kernel_updator(&mut b, "p", x_feat, kernels).unwrap();
        b.output("y", y);
        check(&file, case, b.finish().unwrap(), &inputs, &["y"]);
    }
}

#[test]
fn kernel_update_head_matches_upstream() {
    let file = golden("kernel_update_head_det");
    let mut config = Config::named("knet_s3_r50_fpn").unwrap();
    config.neck.channels = 12;
    config.classes = Classes::new(5, 0);
    (config.head.heads, config.head.feedforward_channels) = (4, 24);
    for case in ["a", "resized_mask", "one"] {
        let load = |name: &str| file.load_f32(&format!("{case}.{name}")).unwrap();
        let kernels = load("proposal_feat");
        let &[batch, objects, channels, ..] = kernels.shape().dims() else { panic!("{}", kernels.shape()) };
        let inputs = [
            load("x").permute(&[0, 2, 3, 1]),
            kernels.reshape([batch, objects, channels]),
            load("mask_preds"),
        ];
        let mut b = Builder::new();
        let objects = Objects {
            features: b.input("x", ValueType::map(inputs[0].shape())),
            kernels: b.input("kernels", ValueType::rows(inputs[1].shape())),
            masks: b.input("masks", ValueType::map(inputs[2].shape())),
        };
        let out = kernel_update_head(&mut b, &config, "p", objects).unwrap();
        b.output("cls_score", out.cls_score);
        b.output("new_mask_preds", out.objects.masks);
        b.output("obj_feat", out.objects.kernels);
        check(&file, case, b.finish().unwrap(), &inputs, &["cls_score", "new_mask_preds", "obj_feat"]);
    }
}

/// Compares a model's parameters with an official `state_dict` (key -> shape).
fn check_names(model: &str, official: &BTreeMap<String, Vec<usize>>) {
    let ours: BTreeMap<String, Vec<usize>> = parameters(&Config::named(model).unwrap())
        .unwrap()
        .into_iter()
        .map(|p| (p.key, p.upstream_shape))
        .collect();
    let theirs: BTreeMap<String, Vec<usize>> =
        official.iter().filter(|(k, _)| !is_bookkeeping(k)).map(|(k, s)| (k.clone(), s.clone())).collect();
    let keys = |m: &BTreeMap<String, Vec<usize>>| m.keys().cloned().collect::<BTreeSet<_>>();
    let missing: Vec<_> = keys(&theirs).difference(&keys(&ours)).cloned().collect();
    let extra: Vec<_> = keys(&ours).difference(&keys(&theirs)).cloned().collect();
    assert!(missing.is_empty() && extra.is_empty(), "{model}: missing {missing:?}, extra {extra:?}");
    assert_eq!(ours, theirs, "{model}: shapes");
}

fn state_dict(
    path: &Path,
    shape: impl Fn(&serde_json::Value) -> &serde_json::Value,
) -> BTreeMap<String, Vec<usize>> {
    let meta: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let entries = meta["state_dict"].as_object().unwrap();
    let read = |(key, entry): (&String, &serde_json::Value)| {
        (key.clone(), serde_json::from_value(shape(entry).clone()).unwrap())
    };
    entries.iter().map(read).collect()
}

#[test]
fn parameters_are_named_as_in_official_checkpoints() {
    let held = [
        "knet_s3_r50_fpn",
        "knet_s3_r50_fpn_panoptic",
        "knet_s3_r101_dcn_panoptic",
        "knet_s3_fcn_r50-d8",
        "knet_s3_upernet_swin-t",
        "solov2_r50_fpn",
        "condinst_r50_fpn",
    ];
    for model in held {
        let meta = goldens().join(model).join("meta.json");
        check_names(model, &state_dict(&meta, |entry| &entry[0]));
    }
}

#[test]
fn names_of_models_that_the_reference_data_hold() {
    let held = |name: &&&str| {
        let others =
            ["knet_s3_r101_fpn", "rcnn_r101", "lite", "mmseg_knet_s3_upernet_swin-l", "solov2", "condinst"];
        !others.iter().any(|no| name.contains(no))
    };
    for model in MODEL_NAMES.iter().filter(held) {
        let Some(meta) = shared::reference("names", &format!("{model}/meta.json")) else { return };
        check_names(model, &state_dict(&meta, |entry| &entry["shape"]));
    }
}

/// No R101 without deformable convolutions is in the reference data; all but theirs are its names, too.
#[test]
fn resnet101_names() {
    let meta = "knet_s3_r101_dcn_panoptic/meta.json";
    let Some(meta) = shared::reference("resnet101_names", meta) else { return };
    let mut official = state_dict(&meta, |entry| &entry["shape"]);
    check_names("knet_s3_r101_dcn_panoptic", &official);
    official.retain(|key, _| !key.contains(".conv_offset."));
    check_names("knet_s3_r101_fpn_panoptic", &official);
    assert!(MODEL_NAMES.contains(&"knet_s3_r101_fpn"));
}
