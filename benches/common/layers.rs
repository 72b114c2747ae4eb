//! Layers of models as cases of their operators: what a kernel is for, at the sizes that it is for.

use knet::error::Result;
use knet::graph::passes::optimize;
use knet::graph::{Graph, Source, ValueId};
use knet::model::{Config, TapMode, build};
use knet::ops::case::{Case, Filling};
use knet::ops::{Op, ValueType, all_cases};
use knet::tensor::DType;

/// A layer of a model.
pub struct Layer {
    /// Its operator and operands. The name is that of the first step with them.
    pub case: Case,
    /// Steps of the model that have the same.
    pub steps: usize,
}

/// The distinct layers of a network at an input size, in the order of the first of each.
///
/// What an operator does with random numbers says something where its work depends on shapes alone. Of those
/// that find boxes, and look at them, the registry's own cases of this size stand in: their boxes are a photo's.
pub fn of(model: &str, size: [usize; 2]) -> Result<Vec<Layer>> {
    let graph = optimize(build(&Config::named(model)?, 1, size, TapMode::Off)?.graph)?;
    let mut constant = Vec::new();
    let mut layers: Vec<Layer> = Vec::new();
    for node in graph.nodes() {
        // What hangs on weights alone is computed when they are loaded.
        if node.inputs.iter().all(|&id| is_constant(&graph, &constant, id)) {
            constant.extend(&node.outputs);
            continue;
        }
        let name = &graph.value(node.outputs[0]).name;
        for case in cases(name, &node.op, graph.types(&node.inputs)) {
            let same = |layer: &&mut Layer| layer.case.op == case.op && layer.case.inputs == case.inputs;
            match layers.iter_mut().find(same) {
                Some(layer) => layer.steps += 1,
                None => layers.push(Layer { case, steps: 1 }),
            }
        }
    }
    Ok(layers)
}

fn is_constant(graph: &Graph, constant: &[ValueId], id: ValueId) -> bool {
    constant.contains(&id) || matches!(graph.value(id).source, Source::Param(_))
}

/// The layer as a case, or what stands in for it.
fn cases(name: &str, op: &Op, inputs: Vec<ValueType>) -> Vec<Case> {
    if matches!(
        op.name(),
        "decode_anchors" | "decode_boxes" | "scale_boxes" | "roi_align" | "non_max_suppression"
    ) {
        return all_cases().into_iter().filter(|case| case.bench && case.op.name() == op.name()).collect();
    }
    let fill = |ty: &ValueType| match ty.dtype {
        DType::I32 => Filling::Index(0, 1),
        _ => Filling::Uniform(-1.0, 1.0),
    };
    let fills = inputs.iter().map(fill).collect();
    let mut case = Case::new(name, op.clone(), &[]);
    (case.inputs, case.fills) = (inputs, fills);
    vec![case]
}
