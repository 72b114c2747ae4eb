//! Memory for work: what gradients read of a stretch of the forward pass is made again, not kept.

use crate::graph::{Graph, Node, Source, Value, ValueId};
use crate::ops::Op;
use std::fmt;

/// Most operations an element of what [`Part::Light`] makes again: norms, activations, sums, resizing, and
/// what only moves values. The least convolution takes twice its channels.
const LIGHT: u64 = 32;

/// Which stretch a value belongs to, and what of it is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'n> {
    /// All but what nodes outside of the stretch read.
    Whole(&'n str),
    /// What takes little work for its size, whoever reads it. What is much work is kept.
    Light(&'n str),
}

impl<'n> Part<'n> {
    /// The stretch.
    pub fn name(self) -> &'n str {
        match self {
            Part::Whole(name) | Part::Light(name) => name,
        }
    }
}

/// A stretch of the forward pass that can be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// What the names of its values begin with.
    pub name: String,
    /// Bytes of what gradients read of it, in the graph's types: a GPU in 16 bits keeps maps in half of it.
    pub bytes: usize,
    /// Floating-point operations that make it again.
    pub flops: u64,
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stretch { name, bytes, flops } = self;
        let (mib, gflop) = (*bytes as f64 / f64::from(1 << 20), *flops as f64 / 1e9);
        write!(f, "{name}: {mib:.1} MiB for {gflop:.2} GFLOP")
    }
}

/// The stretches of which gradients, the nodes from `first` on, read what [`recompute`] could make again, in
/// the order of the forward pass.
pub fn stretches(graph: &Graph, first: usize, part: impl Fn(&str) -> Option<Part<'_>>) -> Vec<Stretch> {
    let dropped = dropped(graph, first, &part);
    let mut found: Vec<Stretch> = Vec::new();
    let mut place = vec![None; first];
    for (place, node) in place.iter_mut().zip(&graph.nodes) {
        let Some(part) = part(&graph.value(node.outputs[0]).name) else { continue };
        *place = found.iter().position(|stretch| stretch.name == part.name()).or_else(|| {
            found.push(Stretch { name: part.name().to_string(), bytes: 0, flops: 0 });
            Some(found.len() - 1)
        });
    }
    let maker = |id: ValueId| match graph.value(id).source {
        Source::Node { node, .. } if dropped[id.index()] => Some(node),
        _ => None,
    };
    let mut wanted: Vec<ValueId> =
        graph.nodes[first..].iter().flat_map(|node| &node.inputs).copied().collect();
    // What gradients read is kept otherwise, once for all of its views.
    let mut counted = vec![false; graph.values.len()];
    for mut id in wanted.iter().copied() {
        while let Some(node) = maker(id)
            && matches!(graph.nodes[node].op, Op::Reshape(_))
        {
            id = graph.nodes[node].inputs[0];
        }
        if let Some(stretch) = maker(id).and_then(|node| place[node])
            && !std::mem::replace(&mut counted[id.index()], true)
        {
            found[stretch].bytes += graph.value(id).ty.bytes();
        }
    }
    // It takes what it is made of.
    let mut made = vec![false; first];
    while let Some(id) = wanted.pop() {
        let Some(node) = maker(id) else { continue };
        let Some(stretch) = place[node].filter(|_| !std::mem::replace(&mut made[node], true)) else {
            continue;
        };
        let Node { op, inputs, outputs } = &graph.nodes[node];
        found[stretch].flops += flops(graph, op, inputs, outputs);
        wanted.extend(inputs);
    }
    found.retain(|stretch| stretch.bytes > 0);
    found
}

/// In which order stretches are given up: each next one is what saves most memory for its operations, of
/// which a hundredth of all is no matter, so that few large stretches go before many small ones. One that is
/// made again still needs its place while its gradients are made.
pub fn order(stretches: &[Stretch]) -> Vec<usize> {
    let little = 1 + stretches.iter().map(|stretch| u128::from(stretch.flops)).sum::<u128>() / 100;
    let mut again = vec![false; stretches.len()];
    let mut order = Vec::new();
    while order.len() < stretches.len() {
        let now = peak(stretches, &again);
        let mut best: Option<(usize, [u128; 3])> = None;
        for index in (0..stretches.len()).filter(|&index| !again[index]).collect::<Vec<_>>() {
            again[index] = true;
            let saved = now - peak(stretches, &again);
            again[index] = false;
            let Stretch { bytes, flops, .. } = stretches[index];
            let [saved, bytes, work] = [saved as u128, bytes as u128, u128::from(flops) + little];
            let beats = |&(_, [most, larger, other]): &(usize, [u128; 3])| {
                (saved * other, bytes * other) > (most * work, larger * work)
            };
            if best.as_ref().is_none_or(beats) {
                best = Some((index, [saved, bytes, work]));
            }
        }
        let Some((index, _)) = best else { break };
        again[index] = true;
        order.push(index);
    }
    order
}

/// The most bytes of stretches at once in a backward pass, which comes to the last of them first: all before
/// it that are kept, and its own.
fn peak(stretches: &[Stretch], again: &[bool]) -> usize {
    let (mut kept, mut peak) = (0, 0);
    for (Stretch { bytes, .. }, again) in stretches.iter().zip(again) {
        peak = peak.max(kept + bytes);
        kept += if *again { 0 } else { *bytes };
    }
    peak
}

fn flops(graph: &Graph, op: &Op, inputs: &[ValueId], outputs: &[ValueId]) -> u64 {
    let types = |ids: &[ValueId]| ids.iter().map(|id| graph.value(*id).ty).collect::<Vec<_>>();
    op.flops(&types(inputs), &types(outputs))
}

/// Lets the nodes from `first` on, which are gradients, read values that are made again where they would read
/// values that have to be kept from the forward pass, before `first`: those of a stretch, of which `part`
/// says, given the name of a node's first result. They are made of what goes into the stretch, by duplicates
/// of its nodes, each right before the first gradient that needs it. What is an output or an update is kept.
///
/// All that is random comes into a graph from outside, and no node has a memory, so duplicates have the bits
/// of what they duplicate. Values keep their ids.
pub fn recompute(graph: &mut Graph, first: usize, part: impl Fn(&str) -> Option<Part<'_>>) {
    let dropped = dropped(graph, first, part);
    let gradients = graph.nodes.split_off(first);
    let mut rewrite = Rewrite { again: vec![None; dropped.len()], dropped, graph };
    let mut starts = Vec::with_capacity(gradients.len() + 1);
    for Node { op, inputs, outputs } in gradients {
        starts.push(rewrite.graph.nodes.len());
        let inputs = inputs.into_iter().map(|id| rewrite.read(id)).collect();
        let index = rewrite.graph.nodes.len();
        for id in &outputs {
            if let Source::Node { node, .. } = &mut rewrite.graph.values[id.index()].source {
                *node = index;
            }
        }
        rewrite.graph.nodes.push(Node { op, inputs, outputs });
    }
    starts.push(graph.nodes.len());
    for (_, start) in graph.segments.iter_mut().filter(|(_, start)| *start >= first) {
        *start = starts[*start - first];
    }
}

/// Which values are not kept.
fn dropped(graph: &Graph, first: usize, part: impl Fn(&str) -> Option<Part<'_>>) -> Vec<bool> {
    let forward = &graph.nodes[..first];
    let of = |node: &Node| part(&graph.value(node.outputs[0]).name);
    let parts: Vec<Option<Part<'_>>> = forward.iter().map(of).collect();
    let is_light = |Node { op, inputs, outputs }: &Node| {
        let elements: usize = outputs.iter().map(|id| graph.value(*id).ty.shape.len()).sum();
        flops(graph, op, inputs, outputs) <= LIGHT * elements as u64
    };
    let mut dropped = vec![false; graph.values.len()];
    for (node, part) in forward.iter().zip(&parts) {
        let drops = match part {
            None => false,
            Some(Part::Whole(_)) => true,
            Some(Part::Light(_)) => is_light(node),
        };
        node.outputs.iter().for_each(|id| dropped[id.index()] = drops);
    }
    for (node, part) in forward.iter().zip(&parts) {
        for id in &node.inputs {
            let Source::Node { node: maker, .. } = graph.value(*id).source else { continue };
            let is_whole = matches!(parts.get(maker), Some(Some(Part::Whole(_))));
            if is_whole && parts.get(maker) != Some(part) {
                dropped[id.index()] = false;
            }
        }
    }
    let ends = graph.outputs.iter().map(|(_, id)| id).chain(graph.updates.iter().map(|(_, id)| id));
    ends.for_each(|id| dropped[id.index()] = false);
    // Another view of memory that is kept is kept.
    for node in forward.iter().rev().filter(|node| matches!(node.op, Op::Reshape(_))) {
        dropped[node.inputs[0].index()] &= dropped[node.outputs[0].index()];
    }
    dropped
}

/// The graph while its gradients are put behind the forward pass again.
struct Rewrite<'g> {
    graph: &'g mut Graph,
    dropped: Vec<bool>,
    /// What is read in place of each value that is made again.
    again: Vec<Option<ValueId>>,
}

impl Rewrite<'_> {
    /// What a gradient reads for `id`: a value that is dropped is made again if it was not yet, and before it
    /// what it is made of.
    fn read(&mut self, id: ValueId) -> ValueId {
        let Source::Node { node, .. } = self.graph.value(id).source else { return id };
        if !self.dropped[id.index()] {
            return id;
        }
        if let Some(again) = self.again[id.index()] {
            return again;
        }
        let Node { op, inputs, outputs } = self.graph.nodes[node].clone();
        let inputs = inputs.into_iter().map(|id| self.read(id)).collect();
        let node = self.graph.nodes.len();
        let results = outputs.iter().enumerate().map(|(output, &id)| self.define(id, node, output)).collect();
        self.graph.nodes.push(Node { op, inputs, outputs: results });
        self.again[id.index()].unwrap_or(id)
    }

    /// Result `output` of `node`, which is `id` again.
    fn define(&mut self, id: ValueId, node: usize, output: usize) -> ValueId {
        let Value { name, ty, .. } = self.graph.value(id);
        let value = Value { name: format!("{name}.again"), ty: *ty, source: Source::Node { node, output } };
        let again = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(value);
        self.again[id.index()] = Some(again);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::autodiff::gradients;
    use crate::graph::passes::eliminate_dead_code;
    use crate::graph::{Builder, Layout};
    use crate::ops::activation::Activation;
    use crate::ops::dropout::{DropKind, Dropout};
    use crate::ops::{Activate, Linear, Reshape, ValueType};

    /// Two stretches of two layers each, whose activations read their operands; of the first one a layer's
    /// result is an output, of the second its factors are an input. Gives the graph with gradients and the
    /// first of their nodes.
    fn graph() -> (Graph, usize) {
        wide(4)
    }

    /// As [`graph`], of so many channels.
    fn wide(channels: usize) -> (Graph, usize) {
        let mut b = Builder::new();
        b.segment("forward");
        let mut x = b.input("x", ValueType::rows([2, 3, channels]));
        for stretch in ["a", "b"] {
            for layer in 0..2 {
                let name = format!("{stretch}.{layer}");
                let weight = b.param(&format!("{name}.weight"), &[channels; 2], Layout::Plain).unwrap();
                let y = b.node(&name, Linear::default(), &[x, weight]).unwrap();
                x = b.node(&format!("{name}.gelu"), Activate { activation: Activation::Gelu }, &[y]).unwrap();
                if layer == 0 && stretch == "a" {
                    b.output("seen", x);
                }
            }
            let factors = b.input(&format!("{stretch}.factors"), ValueType::exact([2, channels]));
            let dropout = Dropout { kind: DropKind::Channel };
            x = b.node(&format!("{stretch}.dropout"), dropout, &[x, factors]).unwrap();
        }
        b.output("y", x);
        let seed = b.input("seed", ValueType::rows([2, 3, channels]));
        let weights: Vec<ValueId> = (0..b.graph().values().len() as u32)
            .map(ValueId)
            .filter(|id| b.graph().param(*id).is_some())
            .collect();
        let first = b.graph().nodes().len();
        b.segment("backward");
        let found = gradients(&mut b, &[(x, seed)], &weights).unwrap();
        b.segment("end");
        for gradient in found.into_iter().flatten() {
            b.output("gradient", gradient);
        }
        (b.finish().unwrap(), first)
    }

    fn of_part(name: &str) -> Option<Part<'_>> {
        name.split('.').next().map(Part::Whole)
    }

    #[test]
    fn what_is_inside_of_a_stretch_is_made_again_right_before_it_is_read() {
        let (mut graph, first) = graph();
        recompute(&mut graph, first, of_part);
        eliminate_dead_code(&mut graph);
        graph.verify().unwrap();
        let names = graph.nodes.iter().map(|node| graph.value(node.outputs[0]).name.as_str());
        let again = names.enumerate().filter(|(_, name)| name.ends_with(".again"));
        let (places, names): (Vec<usize>, Vec<&str>) = again.unzip();
        // `b` goes first, from what goes into it on; of `a`, what is seen is kept. What only a dropout's
        // gradient would read is not made: that takes the factors alone.
        assert_eq!(
            names,
            ["b.0.again", "b.0.gelu.again", "b.1.again", "a.1.again", "a.0.again"],
            "{}",
            graph.dump()
        );
        assert!(places[3] > places[2] + 1, "after gradients of `b`");
        let segments: Vec<(&str, usize)> =
            graph.segments.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        assert_eq!(segments, [("forward", 0), ("backward", first), ("end", graph.nodes.len())]);
        assert!(places[0] > first, "the last dropout's gradient comes first and reads nothing of `b`");
    }

    #[test]
    fn without_stretches_and_without_gradients_nothing_changes() {
        let (before, first) = graph();
        let mut after = before.clone();
        recompute(&mut after, first, |_| None);
        assert_eq!(after, before);
        recompute(&mut after, before.nodes.len(), of_part);
        assert_eq!(after, before);
    }

    #[test]
    fn a_view_of_what_is_kept_is_no_reason_to_make_it_again() {
        let mut b = Builder::new();
        let x = b.input("x", ValueType::rows([2, 4]));
        let weight = b.param("weight", &[4, 4], Layout::Plain).unwrap();
        let y = b.node("a.y", Activate { activation: Activation::Sigmoid }, &[x]).unwrap();
        let view = b.node("a.view", Reshape { shape: [8].into() }, &[y]).unwrap();
        b.output("view", view);
        let z = b.node("a.z", Linear::default(), &[y, weight]).unwrap();
        b.output("z", z);
        let seed = b.input("seed", ValueType::rows([2, 4]));
        let first = b.graph().nodes().len();
        let found = gradients(&mut b, &[(z, seed)], &[weight]).unwrap();
        b.output("gradient", found[0].unwrap());
        let before = b.finish().unwrap();
        let mut after = before.clone();
        recompute(&mut after, first, of_part);
        assert_eq!(after, before);
    }

    /// A layer's product is kept, its activation is not, though the next stretch reads it.
    #[test]
    fn of_a_light_stretch_what_is_little_work_is_made_again() {
        fn light(name: &str) -> Option<Part<'_>> {
            name.starts_with("a.").then_some(Part::Light("a"))
        }
        // A product takes 64 operations an element.
        let (before, first) = wide(32);
        let mut after = before.clone();
        recompute(&mut after, first, light);
        eliminate_dead_code(&mut after);
        after.verify().unwrap();
        let names = after.nodes.iter().map(|node| after.value(node.outputs[0]).name.as_str());
        let again: Vec<&str> = names.filter(|name| name.ends_with(".again")).collect();
        // `b`'s first layer reads what `a` drops; what is seen is kept.
        assert_eq!(again, ["a.1.gelu.again", "a.dropout.again"], "{}", after.dump());
        let found = stretches(&before, first, light);
        // The dropout's result is kept no more: 192 floats, for 28 operations each, and one.
        assert_eq!(found, [Stretch { name: "a".into(), bytes: 4 * 192, flops: 192 * (28 + 1) }]);
        assert_eq!(found[0].to_string(), "a: 0.0 MiB for 0.00 GFLOP");
    }

    #[test]
    fn a_stretch_is_worth_what_gradients_read_of_it() {
        let (graph, first) = graph();
        let found = stretches(&graph, first, of_part);
        let names: Vec<&str> = found.iter().map(|stretch| stretch.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        // Of `b` two products and an activation, of `a` the products; an activation is 28 operations for each
        // of 24 elements.
        let [a, b] = &found[..] else { panic!("{found:?}") };
        assert_eq!((a.bytes, b.bytes), (2 * 96, 3 * 96));
        assert_eq!(b.flops - a.flops, 24 * 28, "{found:?}");
    }

    #[test]
    fn the_order_is_memory_by_work_and_the_last_is_of_no_use_alone() {
        let stretch = |name: &str, bytes, flops| Stretch { name: name.into(), bytes, flops };
        let stretches = [
            stretch("wide", 80, 10),
            stretch("narrow", 20, 10),
            stretch("cheap", 30, 1),
            stretch("end", 50, 1),
        ];
        // `end` comes first in the backward pass, where all others are still kept.
        assert_eq!(peak(&stretches, &[false, false, false, true]), 180);
        assert_eq!(peak(&stretches, &[true; 4]), 80);
        let order = order(&stretches);
        assert_eq!(order, [2, 0, 3, 1]);
        let mut again = [false; 4];
        let mut peaks = vec![peak(&stretches, &again)];
        for index in order {
            again[index] = true;
            peaks.push(peak(&stretches, &again));
        }
        assert_eq!(peaks, [180, 150, 80, 80, 80]);
        assert_eq!(super::order(&[]), [0; 0]);
    }
}
