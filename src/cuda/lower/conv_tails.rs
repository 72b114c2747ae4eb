//! Fewer passes over feature maps, for devices whose memory is slower than their arithmetic.

use crate::cuda::ops::conv2d::MAX_GROUPS;
use crate::cuda::ops::norm_sum::MAX_TERMS;
use crate::error::Result;
use crate::graph::passes::{count_uses, eliminate_dead_code, sole_producer};
use crate::graph::{Graph, Node, Source, Value, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::fused_conv2d::moments_shape;
use crate::ops::resize::ResizeMode;
use crate::ops::{Binary, FusedConv2d, GroupNorm, NormSum, Op, Resize, ValueType};

/// Channels of a chunk of 16 bytes of a 16-bit type, of which groups of channels must be multiples.
const CHUNK: usize = 8;

/// Makes [`FusedConv2d`] nodes of convolutions whose residual is a map brought to twice its size by repeating
/// pixels, and of those that a group norm alone reads; and [`NormSum`] nodes of those norms and of the sums
/// of several. Results stay the same up to rounding.
///
/// Run it after [`optimize`](crate::graph::passes::optimize), whose fusions it builds upon, for inference in
/// 16-bit types alone: the moments that a norm is given have the digits of such.
///
/// # Errors
/// As [`Graph::verify`], if it broke an invariant.
pub fn fuse_conv_tails(graph: &mut Graph) -> Result<()> {
    fuse_upsampling(graph);
    fuse_moments(graph);
    fuse_sums(graph);
    eliminate_dead_code(graph);
    graph.verify()
}

/// The convolution at `node`, if kernels can give it a tail: pixels of whole chunks, channels that mix.
fn convolution(graph: &Graph, node: usize) -> Option<FusedConv2d> {
    let op = match graph.nodes[node].op {
        Op::Conv2d(conv) => FusedConv2d { conv, upsampled: false, groups: None },
        Op::FusedConv2d(op) => op,
        _ => return None,
    };
    let filter = graph.value(graph.nodes[node].inputs[1]).ty.shape;
    let whole = filter[0].is_multiple_of(CHUNK) && filter[3].is_multiple_of(CHUNK);
    (op.conv.groups == 1 && whole).then_some(op)
}

fn fuse_upsampling(graph: &mut Graph) {
    let uses = count_uses(graph);
    for index in 0..graph.nodes.len() {
        let Some(op) = convolution(graph, index) else { continue };
        let Some(place) = op.conv.epilogue.residual_input() else { continue };
        let Some(resize) = sole_producer(graph, &uses, graph.nodes[index].inputs[place]) else { continue };
        if let Some(small) = doubled(graph, resize) {
            graph.nodes[index].op = FusedConv2d { upsampled: true, ..op }.into();
            graph.nodes[index].inputs[place] = small;
        }
    }
}

/// The map of which `node` repeats every pixel twice in both directions.
fn doubled(graph: &Graph, node: usize) -> Option<ValueId> {
    let Node { op: Op::Resize(Resize { mode: ResizeMode::Nearest, size, step }), inputs, .. } =
        &graph.nodes[node]
    else {
        return None;
    };
    let x = graph.value(inputs[0]).ty.shape;
    let doubles = *size == [2 * x[1], 2 * x[2]] && step.is_none_or(|step| step == [0.5, 0.5]);
    doubles.then_some(inputs[0])
}

fn fuse_moments(graph: &mut Graph) {
    let uses = count_uses(graph);
    for index in 0..graph.nodes.len() {
        let Op::GroupNorm(GroupNorm { groups, eps, activation }) = graph.nodes[index].op else { continue };
        let [x, gamma, beta] = graph.nodes[index].inputs[..] else { continue };
        let Value { ty, name, .. } = graph.value(x).clone();
        let Some(producer) = sole_producer(graph, &uses, x) else { continue };
        let Some(op) = convolution(graph, producer) else { continue };
        if !(ty.shape[3] / groups).is_multiple_of(CHUNK) || groups > MAX_GROUPS {
            continue;
        }
        let moments = ValueId(graph.values.len() as u32);
        graph.values.push(Value {
            name: format!("{name}.moments"),
            ty: ValueType::exact(moments_shape(ty.shape, groups)),
            source: Source::Node { node: producer, output: 1 },
        });
        graph.nodes[producer].op = FusedConv2d { groups: Some(groups), ..op }.into();
        graph.nodes[producer].outputs.push(moments);
        graph.nodes[index].op = NormSum { groups, eps, activation, normalised: vec![true] }.into();
        graph.nodes[index].inputs = vec![x, moments, gamma, beta];
    }
}

/// Additions of which a norm is one side take it up; a norm that is itself such a sum brings all its terms.
fn fuse_sums(graph: &mut Graph) {
    let uses = count_uses(graph);
    for index in 0..graph.nodes.len() {
        let Op::Binary(Binary { kind: BinaryKind::Add }) = graph.nodes[index].op else { continue };
        let [a, b] = graph.nodes[index].inputs[..] else { continue };
        if !graph.value(a).ty.is_like(&graph.value(b).ty) {
            continue;
        }
        let sum = |id: ValueId| -> Option<(NormSum, Vec<ValueId>)> {
            let node = &graph.nodes[sole_producer(graph, &uses, id)?];
            let Op::NormSum(sum) = &node.op else { return None };
            Some((sum.clone(), node.inputs.clone()))
        };
        let (mut all, mut inputs, other) = match (sum(a), sum(b)) {
            (Some((sum, inputs)), _) => (sum, inputs, b),
            (None, Some((sum, inputs))) => (sum, inputs, a),
            (None, None) => continue,
        };
        // The other side's terms, if its norms are of the same kind; else its value.
        let same = |sum: &NormSum| NormSum { normalised: all.normalised.clone(), ..sum.clone() } == all;
        let (normalised, operands) = match sum(other) {
            Some((sum, inputs)) if same(&sum) => (sum.normalised, inputs),
            _ => (vec![false], vec![other]),
        };
        all.normalised.extend(normalised);
        inputs.extend(operands);
        if all.normalised.len() <= MAX_TERMS {
            graph.nodes[index].op = all.into();
            graph.nodes[index].inputs = inputs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::passes::optimize;
    use crate::model::{Config, TapMode, build};

    /// How many nodes of each kind of interest a model has after the pass.
    fn count(model: &str) -> [usize; 5] {
        let config = Config::named(model).unwrap();
        let mut graph = optimize(build(&config, 1, [64, 96], TapMode::Off).unwrap().graph).unwrap();
        fuse_conv_tails(&mut graph).unwrap();
        let count = |wanted: &dyn Fn(&Op) -> bool| graph.nodes().iter().filter(|n| wanted(&n.op)).count();
        [
            count(&|op| matches!(op, Op::GroupNorm(_))),
            count(&|op| matches!(op, Op::FusedConv2d(FusedConv2d { groups: Some(_), .. }))),
            count(&|op| matches!(op, Op::FusedConv2d(FusedConv2d { upsampled: true, .. }))),
            count(&|op| matches!(op, Op::NormSum(_))),
            count(&|op| matches!(op, Op::Resize(Resize { mode: ResizeMode::Nearest, .. }))),
        ]
    }

    #[test]
    fn norms_and_upsampling_of_models_are_fused() {
        // Seven norms of the pyramid, of which four end in one sum, two branches, and two maps of which the
        // semantic one is read by the sum of features alone.
        assert_eq!(count("knet_s3_r50_fpn"), [0, 11, 3, 8, 0]);
        // Stuff masks read it, too.
        assert_eq!(count("knet_s3_r50_fpn_panoptic"), [0, 11, 3, 8, 0]);
        // Groups of three channels are no chunks.
        assert_eq!(count("knet_s3_lite0_fpn")[0], 11);
    }

    #[test]
    fn values_that_others_read_stay() {
        let config = Config::named("knet_s3_r50_fpn").unwrap();
        let mut graph = optimize(build(&config, 1, [64, 96], TapMode::All).unwrap().graph).unwrap();
        let before: Vec<String> = graph.outputs().iter().map(|(name, _)| name.clone()).collect();
        fuse_conv_tails(&mut graph).unwrap();
        assert_eq!(before, graph.outputs().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    }
}
