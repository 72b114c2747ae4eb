//! Where a run stops for the caller.

use super::{Operand, Place, Planner};
use crate::error::{Error, Result};
use crate::graph::{InputId, OutputId, Source};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A range of steps between which the caller reads results and writes inputs. The planner keeps the order of
/// the graph, so no step runs in an earlier segment than its node's.
///
/// Segments run in order. A run may go back to an earlier one: then only variables, and inputs whose last
/// reader has not run, keep what they hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Name for people.
    pub name: String,
    /// Its steps.
    pub steps: Range<usize>,
    /// Inputs that are first read here. An input that nothing reads is in no segment.
    pub inputs: Vec<InputId>,
    /// Results that are made here; the first segment has those that no step makes.
    pub outputs: Vec<OutputId>,
    /// New values that are not made where they belong: what is copied after the last step, from and to.
    pub copies: Vec<(Operand, Operand)>,
}

impl<P> Planner<'_, P> {
    /// Begins the segments whose first node this is.
    pub(super) fn begin_segments(&mut self, node: usize) {
        let steps = self.plan.steps.len();
        let begun = self.graph.segments().iter().filter(|(_, first)| *first == node);
        let segment = |(name, _): &(String, usize)| Segment {
            name: name.clone(),
            steps: steps..steps,
            ..Segment::default()
        };
        self.plan.segments.extend(begun.map(segment));
    }

    /// Ends all segments after the last step, and says what the caller and each have to do with each other.
    pub(super) fn end_segments(&mut self) -> Result<()> {
        let (graph, end) = (self.graph, self.plan.steps.len());
        self.begin_segments(graph.nodes().len());
        if self.plan.segments.is_empty() {
            self.plan.segments.push(Segment { name: "run".into(), ..Segment::default() });
        }
        let count = self.plan.segments.len();
        for index in 0..count {
            let next = self.plan.segments.get(index + 1).map_or(end, |next| next.steps.start);
            self.plan.segments[index].steps.end = next;
        }

        let storage = graph.storage();
        let mut first_read = vec![None; graph.values().len()];
        let results = graph.outputs().iter().map(|(_, id)| (id, 0));
        let reads = graph.nodes().iter().enumerate().flat_map(|(index, node)| {
            let segment = graph.segment_of(index);
            node.inputs.iter().map(move |id| (id, segment))
        });
        for (id, segment) in results.chain(reads) {
            let first = &mut first_read[storage[id.index()].index()];
            *first = Some(first.map_or(segment, |known: usize| known.min(segment)));
        }
        for (input, id) in graph.inputs() {
            if let Some(segment) = first_read[id.index()] {
                self.plan.segments[segment].inputs.push(input);
            }
        }
        for (output, (_, id)) in (0..).map(OutputId).zip(graph.outputs()) {
            let segment = match graph.value(storage[id.index()]).source {
                Source::Node { node, .. } => graph.segment_of(node),
                _ => 0,
            };
            self.plan.segments[segment].outputs.push(output);
        }
        self.copy_updates()
    }

    /// Ends segments with copies of the new values that are made elsewhere.
    fn copy_updates(&mut self) -> Result<()> {
        let graph = self.graph;
        for &(variable, value) in graph.updates() {
            let Source::Node { node, .. } = graph.value(value).source else { continue };
            if self.takes[value.index()] == Some(variable) {
                continue;
            }
            let segment = graph.segment_of(node);
            // Until the copy, which comes before the next segment's first step.
            let last = self.plan.segments[segment].steps.end.saturating_sub(1);
            self.extend_life(value, last);
            let (from, to) = (self.operand(value)?, self.operand(variable)?);
            if !from.ty.is_like(&to.ty) || matches!(from.place, Place::Const(_)) {
                let name = &graph.value(variable).name;
                let place = if from.ty.is_like(&to.ty) {
                    "a constant".into()
                } else {
                    format!("stored as {}", from.ty)
                };
                return Err(Error::Graph(format!("update of `{name}`, {}: its new value is {place}", to.ty)));
            }
            self.plan.segments[segment].copies.push((from, to));
        }
        Ok(())
    }
}
