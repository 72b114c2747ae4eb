//! The parts that networks of each family are compared in ([`Bench::check`]); together they are the network.
//!
//! On the emulator the deep maps of some take minutes, so that a few parts of those run by default; the others
//! are the ignored trials `parts/../rest`: `--include-ignored`. A GPU runs them all.

use crate::beside;
use crate::parts::{Bench, PROPOSAL_MASKS, Part};
use knet::cuda::gpu::Precision;
use knet::cuda::gpu::Precision::{Bf16, F16, F32};
use knet::model::backbone::Backbone;
use knet::model::decode_head::Generator;
use knet::model::{Config, IMAGE};
use libtest_mimic::{Failed, Trial};
use testkit::model_golden::Golden;

/// A model whose goldens the repository has.
struct Model {
    name: &'static str,
    /// Cases beside `a` on a GPU.
    more: &'static [&'static str],
    /// Precisions on a GPU.
    precisions: &'static [Precision],
    /// Precisions on the emulator.
    emulated: &'static [Precision],
    /// Parts that the emulator runs by default: the smallest map or the fewest layers of each kind that other
    /// models lack. All of them if there are none.
    quick: &'static [&'static str],
}

/// In f16 and bf16 on either device, two cases on a GPU.
const WHOLE: Model =
    Model { name: "", more: &["b"], precisions: &[F16, Bf16], emulated: &[F16, Bf16], quick: &[] };

/// In f32 and f16.
const OTHER: Model =
    Model { name: "", more: &[], precisions: &[F32, F16], emulated: &[F32, F16], quick: &[] };

const MODELS: [Model; 5] = [
    Model { name: "knet_s3_r50_fpn", ..WHOLE },
    // The backbone is that of the instance model.
    Model { name: "knet_s3_r50_fpn_panoptic", emulated: &[F16], ..WHOLE },
    // Deformable convolutions, one of them of stride 2.
    Model { name: "knet_s3_r101_dcn_panoptic", quick: &["C5"], ..OTHER },
    // Windows that are shifted, and larger than the map.
    Model { name: "knet_s3_upernet_swin-t", quick: &["C5", "pyramid pooling"], ..OTHER },
    // Kernels twice as wide as their updator.
    Model { name: "knet_s3_fcn_r50-d8", quick: &["stage 2"], ..OTHER },
];

const LEVELS: [&str; 4] = ["backbone.C2", "backbone.C3", "backbone.C4", "backbone.C5"];

/// From level to level. A Swin's levels are norms of what the next stage reads.
fn backbone_parts(config: &Config) -> Vec<Part> {
    let mut inputs = vec![IMAGE.to_string()];
    inputs.extend(LEVELS[..3].iter().enumerate().map(|(stage, level)| match &config.backbone {
        Backbone::Swin(swin) => {
            format!("backbone.stages.{stage}.blocks.{}.ffn", swin.depths[stage] - 1)
        }
        _ => level.to_string(),
    }));
    let part = |(input, level): (String, &str)| {
        let name = level.trim_start_matches("backbone.");
        Part::new(name, &[&input], &[level])
    };
    inputs.into_iter().zip(LEVELS).map(part).collect()
}

/// The pyramid, the kernel head and the stages of an instance or panoptic model.
fn object_parts(config: &Config) -> Vec<Part> {
    let pyramid = ["fpn.P2", "fpn.P3", "fpn.P4", "fpn.P5"];
    let mut parts = vec![
        Part::new("fpn", &LEVELS, &pyramid),
        Part::new("semantic fpn", &pyramid, &["rpn.sfpn_out0_loc", "rpn.sfpn_out1_sem"]),
        Part::new(
            "head features",
            &["rpn.sfpn_out0_loc", "rpn.sfpn_out1_sem"],
            &["rpn.loc_feats", "rpn.semantic_feats", "rpn.x_feats"],
        ),
        Part::new(
            "head masks",
            &["rpn.loc_feats", "rpn.semantic_feats"],
            &["rpn.mask_preds", "rpn.seg_preds"],
        ),
        Part::new("proposals", &["rpn.x_feats", PROPOSAL_MASKS], &["rpn.proposal_feats"]),
    ];
    let taps = [
        "x_feat",
        "feat_transform",
        "obj_feat_updator",
        "obj_feat_attn",
        "obj_feat_out",
        "cls_score",
        "mask_preds",
    ];
    let mut objects = ["rpn.proposal_feats".to_string(), "rpn.mask_preds".to_string()];
    for stage in 0..config.head.stages {
        let tap = |name: &str| format!("s{stage}.{name}");
        let [kernels, masks] = objects;
        parts.push(Part {
            name: format!("stage {stage}"),
            inputs: vec!["rpn.x_feats".to_string(), kernels, masks],
            outputs: taps.map(tap).to_vec(),
        });
        objects = [tap("obj_feat_out"), tap("mask_preds")];
    }
    parts
}

/// The decode head of a semantic model with its stages, and the auxiliary head.
fn semantic_parts(config: &Config, generator: &Generator) -> Vec<Part> {
    let mut parts = vec![Part::new("auxiliary head", &LEVELS[2..3], &["aux.logits"])];
    match generator {
        Generator::Uper => {
            let laterals = ["gen.lateral_convs.0", "gen.lateral_convs.1", "gen.lateral_convs.2"];
            let sums = ["gen.topdown.0", "gen.topdown.1", "gen.topdown.2"];
            let pooled = ["gen.psp_modules.0", "gen.psp_modules.1", "gen.psp_modules.2", "gen.psp_modules.3"];
            parts.push(Part::new(
                "pyramid pooling",
                &LEVELS[3..],
                &[&pooled[..], &["gen.bottleneck"][..]].concat(),
            ));
            parts.push(Part::new("laterals", &LEVELS[..3], &laterals));
            let coarse = [&laterals[..], &["gen.bottleneck"][..]].concat();
            parts.push(Part::new("top down", &coarse, &sums));
            let levels = [&sums[..], &["gen.bottleneck"][..]].concat();
            let convs = ["gen.fpn_convs.0", "gen.fpn_convs.1", "gen.fpn_convs.2"];
            parts.push(Part::new("features", &levels, &[&convs[..], &["gen.feats"][..]].concat()));
        }
        _ => parts.push(Part::new("features", &LEVELS[3..], &["gen.convs.0", "gen.convs.1", "gen.feats"])),
    }
    parts.push(Part::new("logits", &["gen.feats"], &["gen.logits"]));
    let taps = [
        "feat_transform",
        "x_feat",
        "kernel_updator_out",
        "attention_norm_out",
        "obj_feat",
        "kernel",
        "logits",
    ];
    // The first stage's kernels are parameters.
    let mut objects = vec!["gen.logits".to_string()];
    for stage in 0..config.head.stages {
        let tap = |name: &str| format!("s{stage}.{name}");
        let inputs = [vec!["gen.feats".to_string()], objects].concat();
        parts.push(Part { name: format!("stage {stage}"), inputs, outputs: taps.map(tap).to_vec() });
        objects = vec![tap("obj_feat"), tap("logits")];
    }
    parts
}

fn network_parts(config: &Config) -> Vec<Part> {
    let heads = match &config.decode_head {
        Some(head) => semantic_parts(config, &head.generator),
        None => object_parts(config),
    };
    [backbone_parts(config), heads].concat()
}

/// Checks the parts whose names `chosen` takes; all faults are the trial's.
fn check(
    golden: Golden,
    precision: Precision,
    ordinal: usize,
    chosen: impl Fn(&str) -> bool,
) -> Result<(), Failed> {
    let bench = Bench::new(golden, precision, ordinal)?;
    let mut faults = Vec::new();
    for part in network_parts(&bench.config).iter().filter(|part| chosen(&part.name)) {
        faults.extend(bench.check(part).map_err(|error| format!("{}: {error}", part.name))?);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Its trials on the device under test.
pub fn trials(ordinal: usize, emulated: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for model in MODELS {
        let precisions = if emulated { model.emulated } else { model.precisions };
        let cases = if emulated { vec!["a"] } else { [&["a"], model.more].concat() };
        for (case, &precision) in cases.iter().flat_map(|&case| precisions.iter().map(move |p| (case, p))) {
            let name = format!("parts/{}/{case}/{}", model.name, precision.name());
            let golden = move || Golden::open(model.name, case);
            let quick = move |part: &str| model.quick.is_empty() || model.quick.contains(&part);
            if !model.quick.is_empty() {
                let rest = move || check(golden(), precision, ordinal, |part| !quick(part));
                trials.push(beside(format!("{name}/rest"), rest).with_ignored_flag(emulated));
            }
            trials.push(beside(name, move || check(golden(), precision, ordinal, quick)));
        }
    }
    trials
}
