//! Gradients of ranks on GPUs, in buckets that are summed over ranks while the backward pass goes on.

use super::Trained;
use crate::graph::{Builder, Graph, SegmentId, ValueId};
use crate::ops::Op;
use crate::train::optimizer::Weight;

/// Buckets of a model at most. Each is a graph to launch and a sum to begin, 0.1 ms together, and the last is
/// summed when nothing is left to do beside it: a quarter of the gradients.
const MOST: usize = 4;

/// Gradients that are whole, and read no more, when a segment of the backward pass ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// That segment.
    pub segment: SegmentId,
    /// Positions among the trained parameters.
    pub trained: Vec<usize>,
}

impl Bucket {
    /// Its parameters.
    pub fn of<'a>(&'a self, trained: &'a [Trained]) -> impl Iterator<Item = &'a Trained> {
        self.trained.iter().map(|&index| &trained[index])
    }
}

/// Divides the last segment, `backward`, after the nodes that end a bucket: of about as many floats each, in
/// the order in which gradients are ready. It depends on the graph alone.
pub(super) fn divide(b: &mut Builder, backward: SegmentId, weights: &[Weight]) -> Vec<Bucket> {
    let last = last_touch(b.graph());
    let mut order: Vec<(usize, usize)> =
        weights.iter().enumerate().map(|(index, weight)| (last[weight.gradient.index()], index)).collect();
    order.sort_unstable();
    let floats = |index: usize| b.graph().value(weights[index].gradient).ty.shape.len();
    let total: usize = (0..weights.len()).map(floats).sum();
    let mut ends = Vec::new();
    let (mut done, mut bucket) = (0, Vec::new());
    for (at, &(ready, index)) in order.iter().enumerate() {
        done += floats(index);
        bucket.push(index);
        let next = order.get(at + 1).map(|&(ready, _)| ready);
        if next.is_none() || next != Some(ready) && done * MOST >= total * (ends.len() + 1) {
            ends.push((ready + 1, std::mem::take(&mut bucket)));
        }
    }
    let mut segment = backward;
    let count = ends.len();
    let mut buckets = Vec::new();
    for (number, (end, trained)) in ends.into_iter().enumerate() {
        buckets.push(Bucket { segment, trained });
        if number + 1 < count {
            segment = b.segment_from(&format!("backward.{}", number + 1), end);
        }
    }
    buckets
}

/// Of each value the last node that makes or reads it, or what may lie in the same memory: operands and
/// results of nodes that a plan joins.
fn last_touch(graph: &Graph) -> Vec<usize> {
    let mut joined: Vec<usize> = (0..graph.values().len()).collect();
    fn root(joined: &mut [usize], mut at: usize) -> usize {
        while joined[at] != at {
            joined[at] = joined[joined[at]];
            at = joined[at];
        }
        at
    }
    let ends = |node: &crate::graph::Node| -> Vec<ValueId> { [&node.inputs[..], &node.outputs[..]].concat() };
    for node in graph.nodes().iter().filter(|node| matches!(node.op, Op::Reshape(_) | Op::Concat(_))) {
        let first = root(&mut joined, node.outputs[0].index());
        for id in ends(node) {
            let other = root(&mut joined, id.index());
            joined[other] = first;
        }
    }
    let mut last = vec![0; joined.len()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for id in ends(node) {
            let root = root(&mut joined, id.index());
            last[root] = index;
        }
    }
    (0..joined.len()).map(|value| last[root(&mut joined, value)]).collect()
}
