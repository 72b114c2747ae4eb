//! Convolutions become quantized ones.

use crate::graph::{Graph, Node, Source, ValueId};
use crate::ops::levels::Levels;
use crate::ops::{Conv2d, Op, QuantizedConv2d, Role};
use std::collections::BTreeMap;

/// The levels of convolutions' maps, by the checkpoint's key of the filters.
pub type Quantization = BTreeMap<String, Levels>;

/// A convolution that can be quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The checkpoint's key of its filters.
    pub key: String,
    /// Position among the graph's nodes.
    pub node: usize,
    /// The map that it reads.
    pub map: ValueId,
}

/// Terms of filters up to which bf16 takes as long.
const FEW_TERMS: usize = 32;

/// The convolutions of an [optimized](super::optimize) graph that can be quantized, in order: those of maps,
/// without groups or depthwise, by filters of the checkpoint; but for those that read an input of the graph
/// or make one of its results, the first and last layers, through which every error goes, and those of
/// filters that are so short that they fill no more than half of what is multiplied at a time, unless a
/// depthwise convolution then reads codes, which are half as long as numbers. A depthwise one for which
/// none of them makes codes gains nothing: after the first layer, say, whose channels differ most.
pub fn candidates(graph: &Graph) -> Vec<Candidate> {
    let seen = graph.seen_by_callers();
    let convolution = |node: &Node| {
        let Op::Conv2d(conv @ Conv2d { role: Role::Map, .. }) = node.op else { return None };
        let (map, filter) = (node.inputs[0], graph.value(node.inputs[1]).ty.shape);
        let inside = !seen[map.index()] && !seen[node.outputs[0].index()];
        (inside && conv.is_quantizable(filter)).then_some((conv.groups > 1, map, filter))
    };
    let mut depthwise = vec![false; graph.values().len()];
    for (of_channels, map, _) in graph.nodes().iter().filter_map(convolution) {
        depthwise[map.index()] |= of_channels;
    }
    let mut codes = vec![false; graph.values().len()];
    let mut candidate = |(index, node): (usize, &Node)| {
        let (of_channels, map, filter) = convolution(node)?;
        let (terms, result) = (filter.dims()[1..].iter().product::<usize>(), node.outputs[0].index());
        let gains = if of_channels { codes[map.index()] } else { terms > FEW_TERMS || depthwise[result] };
        if !gains {
            return None;
        }
        let key = filter_key(graph, node.inputs[1])?.to_string();
        codes[result] = true;
        Some(Candidate { key, node: index, map })
    };
    graph.nodes().iter().enumerate().filter_map(&mut candidate).collect()
}

/// The checkpoint's key of filters: a parameter, or one with a norm folded into it.
fn filter_key(graph: &Graph, filter: ValueId) -> Option<&str> {
    match &graph.value(filter).source {
        Source::Param(param) => Some(&param.key),
        Source::Node { node, output: 0 } => {
            let node = &graph.nodes()[*node];
            let Op::FoldBatchNorm(_) = node.op else { return None };
            let Source::Param(param) = &graph.value(node.inputs[0]).source else { return None };
            Some(&param.key)
        }
        _ => None,
    }
}

/// Quantizes the convolutions of an [optimized](super::optimize) graph that `levels` names, whether or not
/// their results are the graph's too. A result that is read by such convolutions alone, at the same levels,
/// is brought to these where it is made.
pub fn quantize(graph: &mut Graph, levels: &Quantization) {
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Op::Conv2d(conv) = node.op else { continue };
        if !conv.is_quantizable(graph.value(node.inputs[1]).ty.shape) {
            continue;
        }
        let Some(&input) = filter_key(graph, node.inputs[1]).and_then(|key| levels.get(key)) else {
            continue;
        };
        graph.nodes[index].op = QuantizedConv2d { conv, input, residual: None, output: None }.into();
    }
    let readers = readers(graph);
    for (value, found) in readers.iter().enumerate() {
        let Readers::At(levels) = *found else { continue };
        let Source::Node { node, .. } = graph.values[value].source else { continue };
        if let Op::QuantizedConv2d(op) = &mut graph.nodes[node].op {
            op.output = Some(levels);
        }
    }
    for index in 0..graph.nodes.len() {
        let Op::QuantizedConv2d(op) = &graph.nodes[index].op else { continue };
        let Some(residual) = op.conv.epilogue.residual_input() else { continue };
        let Source::Node { node, .. } = graph.value(graph.nodes[index].inputs[residual]).source else {
            continue;
        };
        if let Op::QuantizedConv2d(QuantizedConv2d { output: levels @ Some(_), .. }) = graph.nodes[node].op
            && let Op::QuantizedConv2d(op) = &mut graph.nodes[index].op
        {
            op.residual = levels;
        }
    }
}

/// Who reads a value.
#[derive(Clone, Copy, PartialEq)]
enum Readers {
    /// Nobody, or quantized convolutions add it and nobody multiplies it.
    None,
    /// Quantized convolutions alone, at these levels.
    At(Levels),
    /// Others too, or at several levels.
    Others,
}

fn readers(graph: &Graph) -> Vec<Readers> {
    let mut readers = vec![Readers::None; graph.values.len()];
    for node in &graph.nodes {
        for (operand, id) in node.inputs.iter().enumerate() {
            let found = &mut readers[id.index()];
            *found = match (&node.op, *found) {
                (Op::QuantizedConv2d(op), Readers::None) if operand == 0 => Readers::At(op.input),
                (Op::QuantizedConv2d(op), Readers::At(levels)) if operand == 0 && levels == op.input => {
                    *found
                }
                (Op::QuantizedConv2d(op), found) if op.conv.epilogue.residual_input() == Some(operand) => {
                    found
                }
                _ => Readers::Others,
            };
        }
    }
    readers
}

/// For each value, whether it is at levels and all who read it know these, so that a plan can store codes.
pub fn read_as_codes(graph: &Graph) -> Vec<bool> {
    let of = |id: ValueId| match graph.value(id).source {
        Source::Node { node, .. } => match &graph.nodes[node].op {
            Op::QuantizedConv2d(op) => op.output,
            _ => None,
        },
        _ => None,
    };
    let mut coded: Vec<bool> =
        (0..graph.values.len()).map(|index| of(ValueId(index as u32)).is_some()).collect();
    for node in &graph.nodes {
        for (operand, &id) in node.inputs.iter().enumerate() {
            let knows = match &node.op {
                Op::QuantizedConv2d(op) if operand == 0 => of(id) == Some(op.input),
                Op::QuantizedConv2d(op) if op.conv.epilogue.residual_input() == Some(operand) => {
                    of(id) == op.residual
                }
                _ => false,
            };
            coded[id.index()] &= knows;
        }
    }
    coded
}
