//! Memory for work: what gradients read of a stretch of the forward pass is made again, not kept.

use crate::graph::{Graph, Node, Source, Value, ValueId};
use crate::ops::Op;

/// Lets the nodes from `first` on, which are gradients, read values that are made again where they would read
/// values that have to be kept from the forward pass, before `first`: those inside of a stretch, which
/// `stretch` names given the name of a node's first result. They are made of what goes into the stretch, by
/// duplicates of its nodes, each right before the first gradient that needs it. What nodes outside of a
/// stretch read of it, and what is an output or an update, is kept.
///
/// All that is random comes into a graph from outside, and no node has a memory, so duplicates have the bits
/// of what they duplicate. Values keep their ids.
pub fn recompute(graph: &mut Graph, first: usize, stretch: impl Fn(&str) -> Option<&str>) {
    let dropped = dropped(graph, first, stretch);
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
fn dropped(graph: &Graph, first: usize, stretch: impl Fn(&str) -> Option<&str>) -> Vec<bool> {
    let forward = &graph.nodes[..first];
    let of = |node: &Node| stretch(&graph.value(node.outputs[0]).name);
    let stretches: Vec<Option<&str>> = forward.iter().map(of).collect();
    let mut dropped = vec![false; graph.values.len()];
    for (node, _) in forward.iter().zip(&stretches).filter(|(_, stretch)| stretch.is_some()) {
        node.outputs.iter().for_each(|id| dropped[id.index()] = true);
    }
    for (node, stretch) in forward.iter().zip(&stretches) {
        for id in &node.inputs {
            let inside = |maker: usize| stretches.get(maker) == Some(stretch);
            if matches!(graph.value(*id).source, Source::Node { node, .. } if !inside(node)) {
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
        let mut b = Builder::new();
        b.segment("forward");
        let mut x = b.input("x", ValueType::rows([2, 3, 4]));
        for stretch in ["a", "b"] {
            for layer in 0..2 {
                let name = format!("{stretch}.{layer}");
                let weight = b.param(&format!("{name}.weight"), &[4, 4], Layout::Plain).unwrap();
                let y = b.node(&name, Linear::default(), &[x, weight]).unwrap();
                x = b.node(&format!("{name}.gelu"), Activate { activation: Activation::Gelu }, &[y]).unwrap();
                if layer == 0 && stretch == "a" {
                    b.output("seen", x);
                }
            }
            let factors = b.input(&format!("{stretch}.factors"), ValueType::exact([2, 4]));
            let dropout = Dropout { kind: DropKind::Channel };
            x = b.node(&format!("{stretch}.dropout"), dropout, &[x, factors]).unwrap();
        }
        b.output("y", x);
        let seed = b.input("seed", ValueType::rows([2, 3, 4]));
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

    fn of_part(name: &str) -> Option<&str> {
        name.split('.').next()
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
}
