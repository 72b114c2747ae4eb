//! Parts of a network: the nodes between some of its values, to be fed with known values at one end and
//! compared at the other ([`bench`](crate::bench)); and those that networks of each family are compared in.

use crate::run::times_one;
use knet::graph::{Builder, Graph, Source, ValueId};
use knet::model::backbone::Backbone;
use knet::model::decode_head::Generator;
use knet::model::{Config, IMAGE};
use std::collections::{HashMap, HashSet};

/// What of `graph` lies between `inputs` and `outputs`, both by name and value: a graph with these inputs, in
/// this order, and these results. The other operands of its nodes must be parameters.
pub fn cut(graph: &Graph, inputs: &[(String, ValueId)], outputs: &[(String, ValueId)]) -> Graph {
    cut_between(graph, inputs, outputs, |_, _, id| id)
}

/// `graph` between maps that a back end stores as it likes, as it does within a model: its results, and its
/// inputs but for those that `kept` names, [times one](times_one).
pub fn inner(graph: &Graph, kept: impl Fn(&str) -> bool) -> Graph {
    let inputs: Vec<_> = graph.inputs().map(|(_, id)| (graph.value(id).name.clone(), id)).collect();
    let end = |builder: &mut Builder, name: &str, id| {
        if kept(name) { id } else { times_one(builder, id).unwrap() }
    };
    cut_between(graph, &inputs, graph.outputs(), end)
}

/// [`cut`] with something between what lies inside and each input and result.
fn cut_between(
    graph: &Graph,
    inputs: &[(String, ValueId)],
    outputs: &[(String, ValueId)],
    end: impl Fn(&mut Builder, &str, ValueId) -> ValueId,
) -> Graph {
    let given: HashSet<ValueId> = inputs.iter().map(|&(_, id)| id).collect();
    let mut needed: HashSet<ValueId> = outputs.iter().map(|&(_, id)| id).collect();
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|id| needed.contains(id) && !given.contains(id)) {
            needed.extend(&node.inputs);
        }
    }
    let mut builder = Builder::new();
    let mut known: HashMap<ValueId, ValueId> = HashMap::new();
    for (name, id) in inputs {
        let input = builder.input(name, graph.value(*id).ty);
        known.insert(*id, end(&mut builder, name, input));
    }
    for node in graph.nodes() {
        if !node.outputs.iter().any(|id| needed.contains(id) && !given.contains(id)) {
            continue;
        }
        let mut operands = Vec::new();
        for &id in &node.inputs {
            let operand = match (known.get(&id), &graph.value(id).source) {
                (Some(&operand), _) => operand,
                (None, Source::Param(param)) => {
                    builder.param(&param.key, &param.upstream_shape, param.layout).unwrap()
                }
                (None, _) => panic!("`{}` is needed and not given", graph.value(id).name),
            };
            operands.push(operand);
        }
        let name = &graph.value(node.outputs[0]).name;
        let results = builder.nodes(name, node.op.clone(), &operands).unwrap();
        known.extend(node.outputs.iter().copied().zip(results));
    }
    for (name, id) in outputs {
        let result = end(&mut builder, name, known[id]);
        builder.output(name, result);
    }
    builder.finish().unwrap()
}

/// The value called `name`.
pub fn value_called(graph: &Graph, name: &str) -> ValueId {
    let ids = graph.nodes().iter().flat_map(|node| &node.outputs);
    let found = ids.copied().find(|&id| graph.value(id).name == name);
    found.unwrap_or_else(|| panic!("no value `{name}`"))
}

/// A part of the network by the names of its taps, or of values of the graph that are none.
#[derive(Clone)]
pub struct Part {
    /// For people.
    pub name: String,
    /// What it is given.
    pub inputs: Vec<String>,
    /// What it makes.
    pub outputs: Vec<String>,
}

impl Part {
    /// A part between these values.
    pub fn new(name: impl Into<String>, inputs: &[&str], outputs: &[&str]) -> Part {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Part { name: name.into(), inputs: owned(inputs), outputs: owned(outputs) }
    }
}

/// The masks that pool the first object features: those of the proposals, without the stuff maps of panoptic
/// models.
pub const PROPOSAL_MASKS: &str = "rpn_head.mask_preds";

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

/// The parts that together are the network.
pub fn network_parts(config: &Config) -> Vec<Part> {
    let heads = match &config.decode_head {
        Some(head) => semantic_parts(config, &head.generator),
        None => object_parts(config),
    };
    [backbone_parts(config), heads].concat()
}
