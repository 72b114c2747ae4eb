//! The filters of a training step, laid out once for all that read them.

use super::{define, link};
use crate::cuda::ops::pack_filters::CHUNK;
use crate::error::Result;
use crate::graph::passes::eliminate_dead_code;
use crate::graph::{Graph, Node, Source, ValueId};
use crate::ops::pack_filters::{PackedFilter, turned_shape};
use crate::ops::{Conv2d, Conv2dInputGrad, FoldBatchNorm, Op, PackFilters, ValueType};
use crate::tensor::Shape;

/// Puts [`PackFilters`] nodes in front of a training step: they fold the frozen norms of filters that are
/// trained, and give the copies, as maps are stored, that convolutions and their gradients read. The gradient
/// of a map under stride 1 becomes the convolution that it is, of `dy` with the turned copy. Results keep
/// their bits where the same kernels run.
///
/// Without it each of them launches a kernel for each filter that it lays out, and one for each norm.
///
/// Run it on a whole step, for precisions that store maps in 16 bits: where they store f32, a convolution
/// reads the master itself.
///
/// # Errors
/// As [`Graph::verify`], if it broke an invariant.
pub fn pack_filters(graph: &mut Graph) -> Result<()> {
    let found: Vec<Found> = (0..graph.values.len()).filter_map(|index| find(graph, index)).collect();
    let mut packs = Vec::new();
    // What takes a value's place.
    let mut instead: Vec<ValueId> = (0..graph.values.len()).map(|index| ValueId(index as u32)).collect();
    for found in found.chunks(PackFilters::MOST) {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for Found { filter, operands, bias, packed, readers, gradients } in found {
            let (name, ty) = (graph.value(*filter).name.clone(), graph.value(*filter).ty);
            inputs.extend(operands);
            if packed.straight {
                let copy = define(graph, format!("{name}.packed"), ValueType::map(ty.shape));
                readers.iter().for_each(|&reader| graph.nodes[reader].inputs[1] = copy);
                outputs.push(copy);
            }
            if packed.turned {
                let copy = define(graph, format!("{name}.turned"), ValueType::map(turned_shape(ty.shape)));
                for (gradient, conv) in gradients {
                    graph.nodes[*gradient].op = (*conv).into();
                    graph.nodes[*gradient].inputs[1] = copy;
                }
                outputs.push(copy);
            }
            if let Some(bias) = bias {
                let ty = graph.value(*bias).ty;
                let copy = define(graph, format!("{name}.bias"), ty);
                instead[bias.index()] = copy;
                outputs.push(copy);
            }
        }
        let op = PackFilters { filters: found.iter().map(|found| found.packed).collect() }.into();
        packs.push(Node { op, inputs, outputs });
    }
    let fix = |id: &mut ValueId| *id = instead.get(id.index()).copied().unwrap_or(*id);
    graph.nodes.iter_mut().for_each(|node| node.inputs.iter_mut().for_each(fix));
    graph.outputs.iter_mut().for_each(|(_, id)| fix(id));
    graph.updates.iter_mut().for_each(|(_, id)| fix(id));
    graph.segments.iter_mut().filter(|(_, first)| *first > 0).for_each(|(_, first)| *first += packs.len());
    graph.nodes.splice(0..0, packs);
    link(graph);
    eliminate_dead_code(graph);
    graph.verify()
}

/// A filter that is trained, and who reads it.
struct Found {
    /// What they read now: a variable, or one with a norm folded into it.
    filter: ValueId,
    /// Those of the copies.
    operands: Vec<ValueId>,
    /// The bias of the norm.
    bias: Option<ValueId>,
    packed: PackedFilter,
    /// Nodes that are to read the straight copy as their second operand.
    readers: Vec<usize>,
    /// Gradients of maps, and the convolution of the turned copy that each is.
    gradients: Vec<(usize, Conv2d)>,
}

fn find(graph: &Graph, index: usize) -> Option<Found> {
    let filter = ValueId(index as u32);
    let value = graph.value(filter);
    let (operands, bias, norm) = match value.source {
        Source::Variable(_) => (vec![filter], None, None),
        Source::Node { node, output: 0 } => {
            let Node { op: Op::FoldBatchNorm(FoldBatchNorm { eps }), inputs, outputs } = &graph.nodes[node]
            else {
                return None;
            };
            // What no step changes is folded once, and packed once; what a step makes is not there in front.
            let source = |id: &ValueId| &graph.value(*id).source;
            let given = |id| matches!(source(id), Source::Variable(_) | Source::Param(_));
            let changes = |id| matches!(source(id), Source::Variable(_));
            if !inputs.iter().all(given) || !inputs.iter().any(changes) {
                return None;
            }
            (inputs.clone(), Some(outputs[1]), Some(*eps))
        }
        _ => return None,
    };
    let w = value.ty.shape;
    if w.rank() != 4 || w.is_empty() || !w[3].is_multiple_of(CHUNK) {
        return None;
    }
    let (mut readers, mut gradients) = (Vec::new(), Vec::new());
    for (at, node) in graph.nodes.iter().enumerate() {
        if node.inputs.get(1) != Some(&filter) {
            continue;
        }
        match node.op {
            Op::Conv2dInputGrad(grad) if w[0].is_multiple_of(CHUNK) => {
                match turned(&grad, w, graph.value(node.inputs[0]).ty.shape) {
                    Some(conv) => gradients.push((at, conv)),
                    None => readers.push(at),
                }
            }
            Op::Conv2d(_) | Op::Conv2dInputGrad(_) | Op::DeformConv2d(_) | Op::DeformConv2dInputGrad(_) => {
                readers.push(at);
            }
            _ => {}
        }
    }
    let packed = PackedFilter { norm, straight: !readers.is_empty(), turned: !gradients.is_empty() };
    (packed.straight || packed.turned).then_some(Found { filter, operands, bias, packed, readers, gradients })
}

/// The convolution of `dy` with the turned filter that gives the gradient of a map under filter `w`; `None`
/// if it skips pixels, or takes zeros away where it should add some.
fn turned(grad: &Conv2dInputGrad, w: Shape, dy: Shape) -> Option<Conv2d> {
    if grad.stride != [1; 2] || grad.groups != 1 {
        return None;
    }
    let reach = [0, 1].map(|axis| grad.dilation[axis] * (w[1 + axis] - 1));
    let zeros = |axis: usize| {
        let before = reach[axis].checked_sub(grad.padding[axis])?;
        let after = (grad.size[axis] + grad.padding[axis]).checked_sub(dy[1 + axis])?;
        Some((before, after))
    };
    let [rows, columns] = [zeros(0)?, zeros(1)?];
    let (padding, padding_end) = ([rows.0, columns.0], [rows.1, columns.1]);
    Some(Conv2d { padding, padding_end, dilation: grad.dilation, ..Conv2d::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::autodiff::gradients;
    use crate::graph::passes::optimize_for_training;
    use crate::graph::{Builder, Layout};
    use crate::ops::BatchNorm;
    use crate::tensor::Tensor;

    /// Four convolutions with norms, of which the first is frozen and the third skips pixels, and one whose
    /// filters are no whole chunk; the gradients of what is trained, in a segment of their own.
    fn step() -> Graph {
        let mut b = Builder::new();
        let mut x = b.input("x", ValueType::map([2, 8, 8, 16]));
        for (layer, conv) in
            ["a", "b", "c", "d"].into_iter().zip([1, 1, 2, 1].map(|stride| Conv2d::with(stride, 1)))
        {
            let filter = b.param(&format!("{layer}.weight"), &[16, 16, 3, 3], Layout::Filter).unwrap();
            x = b.node(layer, conv, &[x, filter]).unwrap();
            let mut operands = vec![x];
            for field in ["weight", "bias", "running_mean", "running_var"] {
                operands.push(b.param(&format!("{layer}.bn.{field}"), &[16], Layout::Plain).unwrap());
            }
            x = b.node(&format!("{layer}.bn"), BatchNorm { eps: 1e-5 }, &operands).unwrap();
        }
        let filter = b.param("e.weight", &[5, 16, 1, 1], Layout::Filter).unwrap();
        let y = b.node("e", Conv2d::with(1, 0), &[x, filter]).unwrap();
        b.output("y", y);
        let mut graph = optimize_for_training(b.finish().unwrap()).unwrap();
        let trained =
            graph.make_variables(|param| !param.key.contains("running") && !param.key.starts_with("a."));
        let (y, first) = (graph.outputs[0].1, graph.nodes.len());
        let ty = graph.value(y).ty;
        let mut b = Builder::resume(graph);
        let dy = b.input("dy", ty);
        b.segment_from("forward", 0);
        b.segment_from("backward", first);
        for (i, grad) in gradients(&mut b, &[(y, dy)], &trained).unwrap().into_iter().enumerate() {
            b.output(&format!("gradient {i}"), grad.unwrap());
        }
        b.finish().unwrap()
    }

    #[test]
    fn a_step_lays_its_filters_out_once() {
        let mut graph = step();
        let before = graph.clone();
        pack_filters(&mut graph).unwrap();
        let names = |graph: &Graph| graph.nodes.iter().map(|node| node.op.name()).collect::<Vec<_>>();
        let count = |name: &str, graph: &Graph| names(graph).iter().filter(|&&op| op == name).count();
        // What is frozen is folded as before, once for all steps.
        assert_eq!((count("fold_batch_norm", &before), count("fold_batch_norm", &graph)), (4, 1));
        assert_eq!((count("conv2d_input_grad", &before), count("conv2d_input_grad", &graph)), (3, 2));
        assert_eq!(count("conv2d", &graph), count("conv2d", &before) + 1);
        let Op::PackFilters(pack) = &graph.nodes[0].op else { panic!("{}", graph.dump()) };
        let of = |norm, straight, turned| PackedFilter { norm, straight, turned };
        let mut filters = pack.filters.clone();
        filters.sort_by_key(|filter| (filter.norm.is_none(), filter.turned));
        // No gradient is taken of the map of `b`; `c` skips pixels, so its gradient reads the filter as it
        // is, by parities; and so does that of `e`.
        let straight = of(Some(1e-5), true, false);
        assert_eq!(filters, [straight, straight, of(Some(1e-5), true, true), of(None, true, false)]);
        // One node more in front; the second segment begins where it did.
        let name_of = |graph: &Graph, at: usize| graph.value(graph.nodes[at].outputs[0]).name.clone();
        let first = |graph: &Graph| name_of(graph, graph.segments[1].1);
        assert_eq!(graph.segments[0].1, 0);
        assert_eq!(first(&graph), first(&before));
    }

    #[test]
    fn results_stay_what_they_were() {
        let before = step();
        let mut after = before.clone();
        pack_filters(&mut after).unwrap();
        let [before, after] = [before, after].map(|graph| evaluate(&graph));
        for ((name, before), (_, after)) in before.iter().zip(&after) {
            let (before, after) = (before.data(), after.data());
            let difference = crate::ops::case::relative_l2(after, before);
            // Both are f64; the sums of a turned filter are taken in another order.
            assert!(difference < 1e-14, "{name}: {difference:.1e}");
        }
        assert_eq!(before.len(), after.len());
    }

    /// Every output, by the operators' own definitions in f64.
    fn evaluate(graph: &Graph) -> Vec<(String, Tensor<f64>)> {
        let mut values: Vec<Option<Tensor<f64>>> = vec![None; graph.values.len()];
        for (index, value) in graph.values.iter().enumerate() {
            // The same for a value of one name, whatever its place; variances above zero.
            let mut state =
                value.name.bytes().fold(7u64, |state, byte| state * 31 % 1_000_003 + u64::from(byte));
            let mut draw = |_: &[usize]| {
                state = (state * 48_271) % 2_147_483_647;
                state as f64 / 2_147_483_647.0 + 0.1
            };
            if !matches!(value.source, Source::Node { .. }) {
                values[index] = Some(Tensor::from_fn(value.ty.shape, &mut draw));
            }
        }
        for node in &graph.nodes {
            let inputs: Vec<&Tensor<f64>> =
                node.inputs.iter().map(|id| values[id.index()].as_ref().unwrap()).collect();
            let results = node.op.reference(&inputs);
            node.outputs.iter().zip(results).for_each(|(id, result)| values[id.index()] = Some(result));
        }
        graph.outputs.iter().map(|(name, id)| (name.clone(), values[id.index()].clone().unwrap())).collect()
    }
}
