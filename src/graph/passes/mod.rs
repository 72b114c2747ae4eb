//! Rewrites of a graph. Each keeps the results up to rounding; [`optimize`] verifies after each.

pub mod quantize;
mod recompute;
mod training;

pub use recompute::{Part, Stretch, order, recompute, stretches};
pub use training::{DropRates, TrainedDropout, TrainedNorm, train_batch_norm, train_dropout};

use super::{Graph, Node, Source, Value, ValueId};
use crate::error::Result;
use crate::ops::activation::{Activation, Reads};
use crate::ops::epilogue::Epilogue;
use crate::ops::{Activate, BatchNorm, Binary, DeformConv2d, FoldBatchNorm, Op, binary::BinaryKind};

/// All passes, in the order in which they enable each other.
///
/// # Errors
/// As [`Graph::verify`], if a pass breaks an invariant.
pub fn optimize(graph: Graph) -> Result<Graph> {
    run(graph, [eliminate_dropout, fold_batch_norm, fuse_residual, fuse_activation, eliminate_dead_code])
}

/// As [`optimize`], of a graph that is to be differentiated: activations whose gradient reads their operand
/// ([`Reads::Operand`]) stay by themselves, and so does the operand.
///
/// # Errors
/// As [`optimize`].
pub fn optimize_for_training(graph: Graph) -> Result<Graph> {
    let activations = fuse_activation_read_by_result;
    run(graph, [eliminate_dropout, fold_batch_norm, fuse_residual, activations, eliminate_dead_code])
}

fn run(mut graph: Graph, passes: [fn(&mut Graph); 5]) -> Result<Graph> {
    for pass in passes {
        pass(&mut graph);
        graph.verify()?;
    }
    Ok(graph)
}

/// Takes `dropout` nodes without factors away: what they give is what they take.
pub fn eliminate_dropout(graph: &mut Graph) {
    let mut same: Vec<ValueId> = (0..graph.values.len()).map(|index| ValueId(index as u32)).collect();
    for node in &graph.nodes {
        if let (Op::Dropout(_), [x]) = (&node.op, &node.inputs[..]) {
            same[node.outputs[0].index()] = same[x.index()];
        }
    }
    let fix = |id: &mut ValueId| *id = same[id.index()];
    graph.nodes.iter_mut().for_each(|node| node.inputs.iter_mut().for_each(fix));
    graph.outputs.iter_mut().for_each(|(_, id)| fix(id));
    let gone = |node: &Node| matches!(node.op, Op::Dropout(_)) && node.inputs.len() == 1;
    let keep: Vec<bool> = graph.nodes.iter().map(|node| !gone(node)).collect();
    let live = |(index, id): (usize, &ValueId)| id.index() == index;
    let live: Vec<bool> = same.iter().enumerate().map(live).collect();
    compact(graph, &keep, &live);
}

/// A convolution, plain or deformable, followed by a frozen `batch_norm` becomes one with a scaled filter and
/// a bias; the scaling is a node over parameters alone, which a plan runs once.
pub fn fold_batch_norm(graph: &mut Graph) {
    let mut folded = Vec::new();
    let uses = count_uses(graph);
    for index in 0..graph.nodes.len() {
        let Op::BatchNorm(BatchNorm { eps }) = graph.nodes[index].op else { continue };
        let [x, gamma, beta, mean, variance] = graph.nodes[index].inputs[..] else { continue };
        let Some(producer) = sole_producer(graph, &uses, x) else { continue };
        let op = &graph.nodes[producer].op;
        if !matches!(op, Op::Conv2d(_) | Op::DeformConv2d(_))
            || epilogue_of(op) != Some(Epilogue::default())
            || graph.segment_of(producer) != graph.segment_of(index)
        {
            continue;
        }
        let [_, filter, ..] = graph.nodes[producer].inputs[..] else { continue };
        let constant = |id: ValueId| matches!(graph.value(id).source, Source::Param(_));
        if ![filter, gamma, beta, mean, variance].into_iter().all(constant) {
            continue;
        }
        folded.push((index, producer, eps, [filter, gamma, beta, mean, variance]));
    }
    for &(index, producer, eps, [filter, gamma, beta, mean, variance]) in &folded {
        // The convolution moves down to where the norm was; the fold takes the convolution's old place,
        // and with it a new pair of values.
        let first = graph.values.len() as u32;
        let outputs = vec![ValueId(first), ValueId(first + 1)];
        let name = graph.value(filter).name.clone();
        for (output, (suffix, source)) in [("folded", filter), ("folded_bias", beta)].into_iter().enumerate()
        {
            let ty = graph.value(source).ty;
            let name = format!("{name}.{suffix}");
            graph.values.push(Value { name, ty, source: Source::Node { node: producer, output } });
        }
        let fold = Node {
            op: FoldBatchNorm { eps }.into(),
            inputs: vec![filter, gamma, beta, mean, variance],
            outputs: outputs.clone(),
        };
        let mut conv = std::mem::replace(&mut graph.nodes[producer], fold);
        set_epilogue(&mut conv.op, Epilogue::BIAS);
        // A deformable convolution's offsets come behind.
        conv.inputs.splice(1..2, outputs);
        (graph.nodes[index].op, graph.nodes[index].inputs) = (conv.op, conv.inputs);
    }
    // The convolutions' old results have lost their definition.
    drop_orphans(graph);
}

/// `add(convolution or linear, y)` becomes the residual of the product's epilogue.
pub fn fuse_residual(graph: &mut Graph) {
    fuse(graph, |graph, uses, node| {
        let Op::Binary(Binary { kind: BinaryKind::Add }) = node.op else { return None };
        let [a, b] = node.inputs[..] else { return None };
        [(a, b), (b, a)].into_iter().find_map(|(product, residual)| {
            let producer = sole_producer(graph, uses, product)?;
            let epilogue = epilogue_of(&graph.nodes[producer].op)?;
            let fits = graph.value(product).ty.is_like(&graph.value(residual).ty)
                && !epilogue.residual
                && epilogue.activation.is_none()
                && product != residual;
            fits.then(|| {
                let mut fused = graph.nodes[producer].clone();
                set_epilogue(&mut fused.op, Epilogue { residual: true, ..epilogue });
                fused.inputs.insert(2 + epilogue.operands(), residual);
                (producer, fused)
            })
        })
    });
}

/// `activation(convolution or linear)` becomes the activation of the product's epilogue, and
/// `activation(group_norm or layer_norm)` that of the norm.
pub fn fuse_activation(graph: &mut Graph) {
    fuse_activations(graph, |_| true);
}

/// As [`fuse_activation`], of those whose gradient is told from their result.
pub fn fuse_activation_read_by_result(graph: &mut Graph) {
    fuse_activations(graph, |activation| activation.reads() == Reads::Result);
}

fn fuse_activations(graph: &mut Graph, wanted: impl Fn(Activation) -> bool) {
    fuse(graph, |graph, uses, node| {
        let Op::Activate(Activate { activation }) = node.op else { return None };
        if !wanted(activation) {
            return None;
        }
        let producer = sole_producer(graph, uses, node.inputs[0])?;
        let mut fused = graph.nodes[producer].clone();
        let slot = match &mut fused.op {
            Op::Conv2d(conv) => &mut conv.epilogue.activation,
            Op::DeformConv2d(op) => &mut op.conv.epilogue.activation,
            Op::Linear(linear) => &mut linear.epilogue.activation,
            Op::GroupNorm(norm) => &mut norm.activation,
            Op::LayerNorm(norm) => &mut norm.activation,
            _ => return None,
        };
        (slot.replace(activation).is_none()).then_some((producer, fused))
    });
}

/// Removes nodes and values that no output and no update depends on. Inputs and variables stay.
pub fn eliminate_dead_code(graph: &mut Graph) {
    let mut live = vec![false; graph.values.len()];
    let updated = graph.updates.iter().map(|(_, value)| value);
    for id in graph.outputs.iter().map(|(_, id)| id).chain(updated) {
        live[id.index()] = true;
    }
    let mut keep = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        keep[index] = node.outputs.iter().any(|id| live[id.index()]);
        if keep[index] {
            node.inputs.iter().chain(&node.outputs).for_each(|id| live[id.index()] = true);
        }
    }
    for (index, value) in graph.values.iter().enumerate() {
        live[index] |= matches!(value.source, Source::Input | Source::Variable(_));
    }
    compact(graph, &keep, &live);
}

/// Applies a fusion to every node: `rule` gives the producer to absorb and the node that replaces both, at
/// the later one's place. What a segment makes stays in it.
fn fuse(graph: &mut Graph, rule: impl Fn(&Graph, &[usize], &Node) -> Option<(usize, Node)>) {
    let mut keep = vec![true; graph.nodes.len()];
    let uses = count_uses(graph);
    for index in 0..graph.nodes.len() {
        if let Some((producer, fused)) = rule(graph, &uses, &graph.nodes[index])
            && graph.segment_of(producer) == graph.segment_of(index)
        {
            graph.nodes[index] = Node { outputs: graph.nodes[index].outputs.clone(), ..fused };
            graph.nodes[producer].inputs.clear();
            keep[producer] = false;
        }
    }
    let mut live = vec![true; graph.values.len()];
    for (node, _) in graph.nodes.iter().zip(&keep).filter(|(_, keep)| !**keep) {
        node.outputs.iter().for_each(|id| live[id.index()] = false);
    }
    compact(graph, &keep, &live);
}

/// The node that defines `id`, if that value has one use, is no output and the node has one result.
pub(crate) fn sole_producer(graph: &Graph, uses: &[usize], id: ValueId) -> Option<usize> {
    match graph.value(id).source {
        Source::Node { node, .. } if uses[id.index()] == 1 && graph.nodes[node].outputs.len() == 1 => {
            Some(node)
        }
        _ => None,
    }
}

fn epilogue_of(op: &Op) -> Option<Epilogue> {
    match op {
        Op::Conv2d(conv) | Op::DeformConv2d(DeformConv2d { conv }) => Some(conv.epilogue),
        Op::Linear(linear) => Some(linear.epilogue),
        _ => None,
    }
}

fn set_epilogue(op: &mut Op, epilogue: Epilogue) {
    match op {
        Op::Conv2d(conv) | Op::DeformConv2d(DeformConv2d { conv }) => conv.epilogue = epilogue,
        Op::Linear(linear) => linear.epilogue = epilogue,
        _ => {}
    }
}

/// Uses of each value by nodes, outputs and updates.
pub(crate) fn count_uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.values.len()];
    let by_nodes = graph.nodes.iter().flat_map(|node| &node.inputs);
    let by_outputs = graph.outputs.iter().map(|(_, id)| id);
    let by_updates = graph.updates.iter().map(|(_, value)| value);
    by_nodes.chain(by_outputs).chain(by_updates).for_each(|id| uses[id.index()] += 1);
    uses
}

/// Drops values whose node no longer defines them.
fn drop_orphans(graph: &mut Graph) {
    let live: Vec<bool> = (0..graph.values.len())
        .map(|index| match graph.values[index].source {
            Source::Node { node, output } => {
                graph.nodes[node].outputs.get(output) == Some(&ValueId(index as u32))
            }
            _ => true,
        })
        .collect();
    compact(graph, &vec![true; graph.nodes.len()], &live);
}

/// Keeps these nodes and values and renumbers.
fn compact(graph: &mut Graph, keep: &[bool], live: &[bool]) {
    let renumber = |flags: &[bool]| -> Vec<u32> {
        flags
            .iter()
            .scan(0, |next, &kept| {
                let number = *next;
                *next += u32::from(kept);
                Some(number)
            })
            .collect()
    };
    let (node_number, value_number) = (renumber(keep), renumber(live));
    let kept = keep.iter().filter(|&&kept| kept).count();
    for (_, first) in &mut graph.segments {
        *first = node_number.get(*first).map_or(kept, |&number| number as usize);
    }
    let mut index = 0..;
    graph.nodes.retain(|_| index.next().is_some_and(|i: usize| keep[i]));
    let mut index = 0..;
    graph.values.retain(|_| index.next().is_some_and(|i: usize| live[i]));
    let fix = |id: &mut ValueId| id.0 = value_number[id.index()];
    for node in &mut graph.nodes {
        node.inputs.iter_mut().for_each(fix);
        node.outputs.iter_mut().for_each(fix);
    }
    graph.outputs.iter_mut().for_each(|(_, id)| fix(id));
    graph.updates.iter_mut().for_each(|(variable, value)| {
        fix(variable);
        fix(value);
    });
    for value in &mut graph.values {
        if let Source::Node { node, .. } = &mut value.source {
            *node = node_number[*node] as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::autodiff::gradients;
    use crate::graph::{Builder, Layout};
    use crate::ops::{Conv2d, Linear, ValueType};

    #[test]
    fn what_a_gradient_reads_is_left_when_training() {
        let graph = |activation| {
            let mut b = Builder::new();
            let x = b.input("x", ValueType::rows([2, 3]));
            let weight = b.param("weight", &[4, 3], Layout::Plain).unwrap();
            let y = b.node("y", Linear::default(), &[x, weight]).unwrap();
            let z = b.node("z", Activate { activation }, &[y]).unwrap();
            b.output("z", z);
            b.finish().unwrap()
        };
        // Number of nodes, and whether the weight has a gradient.
        let trained = |graph: Graph| {
            let (nodes, z) = (graph.nodes.len(), graph.outputs[0].1);
            let weight = graph.nodes[0].inputs[1];
            let mut b = Builder::resume(graph);
            let ty = b.graph().value(z).ty;
            let seed = b.input("seed", ty);
            (nodes, gradients(&mut b, &[(z, seed)], &[weight]).map(|found| found[0].is_some()))
        };
        let (nodes, found) = trained(optimize(graph(Activation::Gelu)).unwrap());
        assert_eq!(nodes, 1);
        assert!(found.unwrap_err().to_string().contains("`z`: Gelu is fused"));
        let (nodes, found) = trained(optimize_for_training(graph(Activation::Gelu)).unwrap());
        assert_eq!((nodes, found.unwrap()), (2, true));
        let (nodes, found) = trained(optimize_for_training(graph(Activation::Relu)).unwrap());
        assert_eq!((nodes, found.unwrap()), (1, true));
    }

    #[test]
    fn deformable_convolutions_take_norm_residual_and_activation() {
        let mut b = Builder::new();
        let x = b.input("x", ValueType::map([1, 5, 4, 3]));
        let offset = b.input("offset", ValueType::map([1, 5, 4, 18]));
        let filter = b.param("weight", &[3, 3, 3, 3], Layout::Filter).unwrap();
        let op = DeformConv2d { conv: Conv2d::with(1, 1) };
        let mut operands = vec![b.node("y", op, &[x, filter, offset]).unwrap()];
        for field in ["gamma", "beta", "mean", "variance"] {
            operands.push(b.param(field, &[3], Layout::Plain).unwrap());
        }
        let y = b.node("norm", BatchNorm { eps: 1e-5 }, &operands).unwrap();
        let y = b.node("sum", Binary { kind: BinaryKind::Add }, &[y, x]).unwrap();
        let y = b.node("relu", Activate { activation: Activation::Relu }, &[y]).unwrap();
        b.output("y", y);
        let graph = optimize(b.finish().unwrap()).unwrap();
        let ops: Vec<&str> = graph.nodes.iter().map(|node| node.op.name()).collect();
        assert_eq!(ops, ["fold_batch_norm", "deform_conv2d"]);
        let names: Vec<&str> =
            graph.nodes[1].inputs.iter().map(|&id| graph.value(id).name.as_str()).collect();
        assert_eq!(names, ["x", "weight.folded", "weight.folded_bias", "x", "offset"]);
        let Op::DeformConv2d(DeformConv2d { conv }) = &graph.nodes[1].op else { unreachable!() };
        let all = Epilogue { residual: true, activation: Some(Activation::Relu), ..Epilogue::BIAS };
        assert_eq!(conv.epilogue, all);
    }
}
