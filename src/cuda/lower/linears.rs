//! Fewer, larger steps for the update of K-Net's kernels, for devices on which starting a step costs more
//! than running it.

use super::{define, link};
use crate::cuda::ops::fused_linear::{MAX_LAYERS, MAX_TERMS};
use crate::error::Result;
use crate::graph::passes::eliminate_dead_code;
use crate::graph::{Graph, Node, Source, Value, ValueId};
use crate::ops::activation::Activation;
use crate::ops::binary::BinaryKind;
use crate::ops::epilogue::Epilogue;
use crate::ops::fused_linear::Prologue;
use crate::ops::{Binary, FusedLinear, Linear, Op, Role, Slice, ValueType};
use std::collections::BTreeMap;

/// Makes [`FusedLinear`] nodes of linear layers, what makes their rows, and each other: layers whose results
/// are only used in slices become a layer a slice, and layers over the same rows become one node that makes
/// the rows as well, if those come of a layer norm, a product or the gates of the kernel update. Results stay
/// the same up to rounding.
///
/// Run it after [`optimize`](crate::graph::passes::optimize), whose fusions it builds upon, for inference
/// alone.
///
/// # Errors
/// As [`Graph::verify`], if it broke an invariant.
pub fn fuse_linears(graph: &mut Graph) -> Result<()> {
    split_slices(graph);
    params_first(graph);
    eliminate_dead_code(graph);
    graph.verify()?;
    fuse_groups(graph);
    eliminate_dead_code(graph);
    graph.verify()
}

/// Users of each value: positions of nodes, and whether it is an output.
struct Uses {
    nodes: Vec<Vec<usize>>,
    output: Vec<bool>,
}

impl Uses {
    fn of(graph: &Graph) -> Self {
        let mut uses =
            Uses { nodes: vec![Vec::new(); graph.values.len()], output: vec![false; graph.values.len()] };
        for (index, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|id| uses.nodes[id.index()].push(index));
        }
        graph.outputs.iter().for_each(|(_, id)| uses.output[id.index()] = true);
        uses
    }

    /// The only user.
    fn sole(&self, id: ValueId) -> Option<usize> {
        match self.nodes[id.index()][..] {
            [user] if !self.output[id.index()] => Some(user),
            _ => None,
        }
    }
}

/// The node that defines `id`, if it has that one result alone.
fn producer(graph: &Graph, id: ValueId) -> Option<usize> {
    match graph.value(id).source {
        Source::Node { node, .. } if graph.nodes[node].outputs.len() == 1 => Some(node),
        _ => None,
    }
}

fn is_param(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.value(id).source, Source::Param(_))
}

/// A linear layer over parameters of which only ranges of columns are used becomes a layer for each range.
fn split_slices(graph: &mut Graph) {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let Op::Linear(Linear { epilogue }) = graph.nodes[index].op else { continue };
        let Node { ref inputs, ref outputs, .. } = graph.nodes[index];
        let (inputs, y) = (inputs.clone(), outputs[0]);
        let axis = graph.value(y).ty.shape.rank() - 1;
        let cut = |&user: &usize| match graph.nodes[user].op {
            Op::Slice(slice) if slice.axis == axis => Some((user, slice)),
            _ => None,
        };
        let cuts: Option<Vec<(usize, Slice)>> = uses.nodes[y.index()].iter().map(cut).collect();
        let Some(cuts) = cuts.filter(|cuts| !cuts.is_empty()) else { continue };
        let plain = !epilogue.residual && inputs[1..].iter().all(|&id| is_param(graph, id));
        if uses.output[y.index()] || !plain {
            continue;
        }
        for (user, Slice { start, len, .. }) in cuts {
            let mut operands = vec![inputs[0]];
            for &param in &inputs[1..] {
                let Value { name, ty, .. } = graph.value(param).clone();
                let mut dims = ty.shape.dims().to_vec();
                dims[0] = len;
                let part = define(graph, format!("{name}.{start}"), ty.with_shape(dims.as_slice()));
                let op = Slice { axis: 0, start, len }.into();
                graph.nodes.push(Node { op, inputs: vec![param], outputs: vec![part] });
                operands.push(part);
            }
            graph.nodes[user].op = Linear { epilogue }.into();
            graph.nodes[user].inputs = operands;
        }
    }
    link(graph);
}

/// Puts the nodes over parameters alone in front, so that all others find their results wherever they move.
fn params_first(graph: &mut Graph) {
    let mut constant: Vec<bool> = graph.values.iter().map(|v| matches!(v.source, Source::Param(_))).collect();
    // New nodes stand at the end, behind those that use them; they use parameters alone.
    for node in &graph.nodes {
        let all = node.inputs.iter().all(|id| constant[id.index()]);
        node.outputs.iter().for_each(|id| constant[id.index()] = all);
    }
    let (mut first, rest): (Vec<Node>, Vec<Node>) =
        std::mem::take(&mut graph.nodes).into_iter().partition(|node| constant[node.outputs[0].index()]);
    first.extend(rest);
    graph.nodes = first;
    link(graph);
}

/// What makes the rows of a group of layers.
struct Rows {
    prologue: Prologue,
    inputs: Vec<ValueId>,
    /// The nodes it stands for, the last of them the one that defines the rows. None for [`Prologue::Rows`].
    nodes: Vec<usize>,
}

fn rows(graph: &Graph, uses: &Uses, x: ValueId) -> Rows {
    let plain = Rows { prologue: Prologue::Rows, inputs: vec![x], nodes: Vec::new() };
    let Some(last) = producer(graph, x) else { return plain };
    let inputs = || graph.nodes[last].inputs.clone();
    match graph.nodes[last].op {
        Op::LayerNorm(norm) => {
            let prologue = Prologue::Norm { eps: norm.eps, activation: norm.activation };
            Rows { prologue, inputs: inputs(), nodes: vec![last] }
        }
        Op::Binary(Binary { kind: BinaryKind::Mul }) if same_shapes(graph, last) => {
            Rows { prologue: Prologue::Product, inputs: inputs(), nodes: vec![last] }
        }
        Op::Binary(Binary { kind: BinaryKind::Add }) => gates(graph, uses, last).unwrap_or(plain),
        _ => plain,
    }
}

fn same_shapes(graph: &Graph, node: usize) -> bool {
    let inputs = &graph.nodes[node].inputs;
    graph.value(inputs[0]).ty.is_like(&graph.value(inputs[1]).ty)
}

/// `sigmoid(norm(a)) * norm(b) + sigmoid(norm(c)) * norm(d)`, all of it used here alone.
fn gates(graph: &Graph, uses: &Uses, sum: usize) -> Option<Rows> {
    let mut found = Rows { prologue: Prologue::Rows, inputs: Vec::new(), nodes: Vec::new() };
    let mut eps = None;
    for &product in &graph.nodes[sum].inputs {
        let node = producer(graph, product).filter(|_| uses.sole(product) == Some(sum))?;
        let Op::Binary(Binary { kind: BinaryKind::Mul }) = graph.nodes[node].op else { return None };
        let mut norms = Vec::new();
        for &factor in &graph.nodes[node].inputs {
            let norm = producer(graph, factor).filter(|_| uses.sole(factor) == Some(node))?;
            let Op::LayerNorm(op) = graph.nodes[norm].op else { return None };
            if *eps.get_or_insert(op.eps) != op.eps {
                return None;
            }
            norms.push((op.activation, norm));
        }
        // The gate first.
        norms.sort_by_key(|(activation, _)| activation.is_none());
        if norms.iter().map(|&(activation, _)| activation).ne([Some(Activation::Sigmoid), None]) {
            return None;
        }
        for (_, norm) in norms {
            found.inputs.extend(&graph.nodes[norm].inputs);
            found.nodes.push(norm);
        }
        found.nodes.push(node);
    }
    found.nodes.push(sum);
    found.prologue = Prologue::Gates { eps: eps? };
    Some(found)
}

/// The layer at `node`, if it can be one of a group.
fn layer(graph: &Graph, node: usize) -> Option<Epilogue> {
    let Node { op: Op::Linear(Linear { epilogue }), inputs, .. } = &graph.nodes[node] else { return None };
    let ValueType { shape: x, role, .. } = graph.value(inputs[0]).ty;
    // Rows are f32; maps may be stored otherwise, and a layer over one is a convolution.
    let fits = x.last().is_multiple_of(4) && x.last() <= MAX_TERMS && role != Role::Map;
    (fits && !epilogue.residual).then_some(*epilogue)
}

fn fuse_groups(graph: &mut Graph) {
    let uses = Uses::of(graph);
    // Layers by their rows and activation, in the order of the graph.
    let mut groups: BTreeMap<(ValueId, Option<u8>), Vec<usize>> = BTreeMap::new();
    for index in 0..graph.nodes.len() {
        if let Some(epilogue) = layer(graph, index) {
            let kind = epilogue.activation.map(|activation| activation as u8);
            groups.entry((graph.nodes[index].inputs[0], kind)).or_default().push(index);
        }
    }
    // Each node's place in the new order: those that are fused move up to where their rows are made.
    let mut fused: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    let mut gone = vec![false; graph.nodes.len()];
    let mut made: Vec<ValueId> = Vec::new();
    for ((x, _), members) in groups {
        // A second group over the same rows finds them made.
        let again = made.contains(&x);
        let rows =
            if again { None } else { Some(rows(graph, &uses, x)).filter(|rows| !rows.nodes.is_empty()) };
        let readers = uses.nodes[x.index()].len();
        for (chunk, members) in members.chunks(MAX_LAYERS).enumerate() {
            let own = rows.as_ref().filter(|_| chunk == 0);
            if own.is_none() && members.len() < 2 {
                continue;
            }
            let keep = own.is_some() && (uses.output[x.index()] || readers > members.len());
            let node = group(graph, own, x, members, keep);
            let place = own.map_or(members[0], |rows| rows.nodes[rows.nodes.len() - 1]);
            fused.entry(place).or_default().push(node);
            members.iter().for_each(|&member| gone[member] = true);
            if let Some(rows) = own {
                rows.nodes.iter().for_each(|&node| gone[node] = true);
                made.push(x);
            }
        }
    }
    let nodes = std::mem::take(&mut graph.nodes);
    for (index, node) in nodes.into_iter().enumerate() {
        // A group without rows of its own may follow, at the same place, the one that makes them.
        graph.nodes.extend(fused.remove(&index).into_iter().flatten());
        if !gone[index] {
            graph.nodes.push(node);
        }
    }
    link(graph);
}

/// One node for `members`, layers over `x`, and what makes `x`.
fn group(graph: &Graph, rows: Option<&Rows>, x: ValueId, members: &[usize], keep: bool) -> Node {
    let mut inputs = rows.map_or(vec![x], |rows| rows.inputs.clone());
    let (mut biases, mut outputs) = (Vec::new(), Vec::new());
    let mut activation = None;
    for &member in members {
        let node = &graph.nodes[member];
        let Op::Linear(Linear { epilogue }) = node.op else { unreachable!("members are layers") };
        inputs.extend(&node.inputs[1..]);
        outputs.push(node.outputs[0]);
        biases.push(epilogue.bias);
        activation = epilogue.activation;
    }
    outputs.extend(keep.then_some(x));
    let prologue = rows.map_or(Prologue::Rows, |rows| rows.prologue);
    Node { op: FusedLinear { prologue, biases, activation, keep }.into(), inputs, outputs }
}
