//! Which new values are made in the memory of the variable that they are for.

use super::Planner;
use crate::graph::{Node, Source, ValueId};

impl<P> Planner<'_, P> {
    /// Finds the updates that can be done in place: nothing reads the old value after the step that makes the
    /// new one, and that step reads it only as an operand that the result may replace. It costs neither
    /// memory nor a copy, and a step's other operands and results lie apart from the variable as always.
    pub(super) fn place_updates(&mut self) {
        let graph = self.graph;
        let storage = graph.storage();
        let mut readers = vec![Vec::new(); graph.values().len()];
        for (index, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().for_each(|id| readers[storage[id.index()].index()].push(index));
        }
        for &(variable, value) in graph.updates() {
            let Source::Node { node, output } = graph.value(value).source else { continue };
            let replaced = |maker: &Node| {
                let replaces = maker.op.replaces(maker.inputs.len());
                let allowed = |operand| replaces.contains(&(operand, output));
                let is_old = |id: &ValueId| storage[id.index()] == variable;
                maker.inputs.iter().enumerate().all(|(operand, id)| !is_old(id) || allowed(operand))
            };
            let last = readers[variable.index()].iter().all(|&reader| reader <= node);
            let same = self.types[variable.index()].is_like(&self.types[value.index()]);
            let free = self.takes[value.index()].is_none() && !self.constant[value.index()];
            if last && same && free && replaced(&graph.nodes()[node]) {
                self.takes[value.index()] = Some(variable);
            }
        }
    }
}
