//! From a graph to a plan: an order of steps, a kernel for each, and one arena with every offset known
//! before anything is allocated.
//!
//! A plan owns what was chosen: each step carries its *program*, of a type that the back end gives
//! (`cpu::Plan`, `cuda::Plan`), and an executor runs that. Nothing chooses twice. `Plan` alone, without
//! programs, is for people, and for a file: with programs that are plain data, as CUDA launches are, a plan
//! is written and read back whole (serde); without, `cpu::rebind` gives it its kernels again.
//!
//! Values that depend on parameters alone are *constants*: they are computed once when an executor is made,
//! not at every run, and shared between plans by their [`Const::key`]. A reshape is no step: its result is
//! another name of its operand's memory. Nor is a concatenation whose operands can be made where they belong.
//!
//! *Variables* keep their memory for good. The new value of an update is made there if the step that makes it
//! is the last to read the old value, and reads it only as an operand that it may replace; else the segment
//! ends with a copy.

pub mod arena;
pub mod constants;
mod dump;
mod segment;
mod site;
mod update;

pub use segment::Segment;
pub use site::{OwnedSite, Site};

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Param, Source, ValueId};
use crate::ops::{Concat, Op, ValueType};
use arena::{ALIGNMENT, Interval, Slot};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::convert::Infallible;

/// Where an operand lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the arena.
    Arena(Slot),
    /// Among [`Plan::consts`].
    Const(usize),
}

/// A typed operand of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operand {
    /// Where it lives.
    pub place: Place,
    /// Shape and element type.
    pub ty: ValueType,
}

/// How a constant comes about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ConstSource {
    /// A parameter from the checkpoint.
    Param(Param),
    /// Result `output` of an operator over other constants.
    Computed {
        /// Operator.
        op: Op,
        /// Operands, positions among [`Plan::consts`].
        inputs: Vec<usize>,
        /// Which result.
        output: usize,
    },
}

/// A value known before the first run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Const {
    /// Identity across plans: the parameter's name and layout, or the operator's text over such keys.
    pub key: String,
    /// Shape and element type.
    pub ty: ValueType,
    /// Definition.
    pub source: ConstSource,
}

/// What a back end says of one step before anything is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<P = ()> {
    /// The kernel, for people.
    pub kernel: String,
    /// Scratch bytes needed while the step runs.
    pub workspace: usize,
    /// What runs.
    pub program: P,
}

/// One kernel call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step<P = ()> {
    /// Name of the value it produces.
    pub name: String,
    /// Operator and attributes.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<Operand>,
    /// Results, all in the arena.
    pub outputs: Vec<Operand>,
    /// Scratch in the arena.
    pub workspace: Slot,
    /// The back end's choice, for people.
    pub kernel: String,
    /// What runs.
    pub program: P,
    /// Floating-point operations of the direct algorithm.
    pub flops: u64,
}

impl<P> Step<P> {
    /// Bytes of operands and results, each counted once: the least traffic the step can cause.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(|o| o.ty.bytes() as u64).sum()
    }
}

/// A value that changes between runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variable {
    /// Name for people.
    pub name: String,
    /// What it begins as; zeros without.
    pub initial: Option<Param>,
    /// Its place for good. It is stored in the graph's type on every back end: updates are small beside what
    /// they are added to.
    pub operand: Operand,
}

/// A schedule with its memory layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan<P = ()> {
    /// Constants the steps use, each after the constants it needs.
    pub consts: Vec<Const>,
    /// Kernel calls, in order.
    pub steps: Vec<Step<P>>,
    /// Caller-provided values, by [`InputId`](crate::graph::InputId).
    pub inputs: Vec<(String, Operand)>,
    /// Values that change between runs, by [`VariableId`](crate::graph::VariableId). The only step that
    /// writes to the memory of one makes its new value.
    pub variables: Vec<Variable>,
    /// The division of a run, by [`SegmentId`](crate::graph::SegmentId): one at least, without a gap.
    pub segments: Vec<Segment>,
    /// Results, by [`OutputId`](crate::graph::OutputId). A result that is a constant or an input is
    /// legitimate.
    pub outputs: Vec<(String, Operand)>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
}

impl<P> Plan<P> {
    /// Plans `graph`. A back end keeps values of the arena in types of its own choice: `stored` gives the
    /// type in memory of a value that the graph knows as this type; of values that are views of each other
    /// it gives one element type. Constants keep the graph's type here;
    /// back ends convert them once. `choose` is the kernel selection; it says in a sentence why it has no
    /// kernel for a site.
    ///
    /// # Errors
    /// As [`Graph::verify`]; [`Error::Shape`] where `choose` refuses.
    pub fn build(
        graph: &Graph,
        stored: impl Fn(ValueId, ValueType) -> ValueType,
        choose: impl Fn(&Site<'_>) -> std::result::Result<Choice<P>, String>,
    ) -> Result<Plan<P>> {
        graph.verify()?;
        let types = graph.values().iter().enumerate().map(|(index, value)| match value.source {
            Source::Variable(_) => value.ty,
            _ => stored(ValueId(index as u32), value.ty),
        });
        let mut planner = Planner::new(graph, types.collect());
        planner.place_constants();
        planner.place_updates();
        planner.schedule(choose)?;
        Ok(planner.finish())
    }

    /// The plan with other programs in place of its own.
    pub fn map<Q>(&self, mut program: impl FnMut(&Step<P>) -> Q) -> Plan<Q> {
        match self.try_map(|step| Ok::<Q, Infallible>(program(step))) {
            Ok(plan) => plan,
            Err(never) => match never {},
        }
    }

    /// As [`Plan::map`], if there is a program for every step.
    ///
    /// # Errors
    /// As `program`.
    pub fn try_map<Q, E>(
        &self,
        mut program: impl FnMut(&Step<P>) -> std::result::Result<Q, E>,
    ) -> std::result::Result<Plan<Q>, E> {
        let step = |step: &Step<P>| {
            Ok(Step {
                name: step.name.clone(),
                op: step.op.clone(),
                inputs: step.inputs.clone(),
                outputs: step.outputs.clone(),
                workspace: step.workspace,
                kernel: step.kernel.clone(),
                program: program(step)?,
                flops: step.flops,
            })
        };
        Ok(Plan {
            consts: self.consts.clone(),
            steps: self.steps.iter().map(step).collect::<std::result::Result<_, E>>()?,
            inputs: self.inputs.clone(),
            variables: self.variables.clone(),
            segments: self.segments.clone(),
            outputs: self.outputs.clone(),
            arena_bytes: self.arena_bytes,
        })
    }

    /// The plan without its programs, for people.
    pub fn described(&self) -> Plan {
        self.map(|_| ())
    }

    /// Total floating-point operations of a run.
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|s| s.flops).sum()
    }

    /// Finds a result by name.
    pub fn output(&self, name: &str) -> Option<&Operand> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, operand)| operand)
    }
}

/// What a value occupies of a buffer, from this byte on.
#[derive(Clone, Copy)]
struct Piece {
    buffer: usize,
    offset: usize,
}

/// Working state of [`Plan::build`]. Steps refer to *pieces* until the arena is laid out.
struct Planner<'a, P> {
    graph: &'a Graph,
    /// Type of each value in the arena.
    types: Vec<ValueType>,
    plan: Plan<P>,
    /// Whether each value depends on parameters alone.
    constant: Vec<bool>,
    /// Constant of each value, if it is one that the plan needs.
    constants: Vec<Option<usize>>,
    /// Piece of each value, if it lives in the arena; reshapes share their operand's.
    places: Vec<Option<usize>>,
    pieces: Vec<Piece>,
    /// For each value that is made inside the result of a concatenation: that result, and the byte in it.
    joins: Vec<Option<(ValueId, usize)>>,
    /// For each value that is made in the memory of a variable, as its new value: that variable.
    takes: Vec<Option<ValueId>>,
    /// Life of each buffer.
    intervals: Vec<Interval>,
    /// Workspace piece of each step.
    workspaces: Vec<usize>,
}

impl<'a, P> Planner<'a, P> {
    fn new(graph: &'a Graph, types: Vec<ValueType>) -> Self {
        let values = graph.values().len();
        Planner {
            graph,
            types,
            plan: Plan {
                consts: Vec::new(),
                steps: Vec::new(),
                inputs: Vec::new(),
                variables: Vec::new(),
                segments: Vec::new(),
                outputs: Vec::new(),
                arena_bytes: 0,
            },
            constant: graph.values().iter().map(|v| matches!(v.source, Source::Param(_))).collect(),
            constants: vec![None; values],
            places: vec![None; values],
            pieces: Vec::new(),
            joins: vec![None; values],
            takes: vec![None; values],
            intervals: Vec::new(),
            workspaces: Vec::new(),
        }
    }

    /// Finds the values that depend on parameters alone. Only those that a step or an output needs, directly
    /// or not, become constants of the plan.
    fn place_constants(&mut self) {
        let graph = self.graph;
        for node in graph.nodes() {
            if node.inputs.iter().all(|id| self.constant[id.index()]) {
                node.outputs.iter().for_each(|id| self.constant[id.index()] = true);
            }
        }
        let mut by_key = HashMap::new();
        let steps = graph.nodes().iter().filter(|n| !self.constant[n.outputs[0].index()]);
        let read = steps.flat_map(|n| &n.inputs).chain(graph.outputs().iter().map(|(_, id)| id));
        let needed: Vec<ValueId> = read.copied().filter(|id| self.constant[id.index()]).collect();
        for id in needed {
            self.add_constant(id, &mut by_key);
        }
    }

    fn add_constant(&mut self, id: ValueId, by_key: &mut HashMap<String, usize>) -> usize {
        if let Some(known) = self.constants[id.index()] {
            return known;
        }
        let value = self.graph.value(id);
        let (key, source) = match &value.source {
            Source::Param(param) => {
                (format!("{}:{:?}", param.key, param.layout), ConstSource::Param(param.clone()))
            }
            Source::Node { node, output } => {
                let node = &self.graph.nodes()[*node];
                let inputs: Vec<usize> =
                    node.inputs.iter().map(|&input| self.add_constant(input, by_key)).collect();
                let keys: Vec<&str> = inputs.iter().map(|&i| self.plan.consts[i].key.as_str()).collect();
                let key = format!("{}{}({})#{output}", node.op.name(), node.op.attributes(), keys.join(","));
                (key, ConstSource::Computed { op: node.op.clone(), inputs, output: *output })
            }
            Source::Input | Source::Variable(_) => unreachable!("an input is no constant"),
        };
        let index = *by_key.entry(key.clone()).or_insert_with(|| {
            self.plan.consts.push(Const { key, ty: value.ty, source });
            self.plan.consts.len() - 1
        });
        self.constants[id.index()] = Some(index);
        index
    }

    /// Finds the concatenations whose operands can be made where they belong in the result: each is the
    /// result of one step, used in no other concatenation, and a whole range of the result that begins where
    /// slots may.
    fn place_joins(&mut self) {
        let graph = self.graph;
        let joins = |op: &Op| matches!(op, Op::Concat(_) | Op::Reshape(_));
        for node in graph.nodes() {
            let Op::Concat(Concat { axis }) = node.op else { continue };
            let (result, dtype) = (node.outputs[0], self.types[node.outputs[0].index()].dtype);
            let outer: usize = graph.value(result).ty.shape.dims()[..axis].iter().product();
            let (mut starts, mut next) = (Vec::new(), 0);
            let fits = |id: &ValueId| {
                let place = id.index();
                starts.push((*id, next));
                next += self.types[place].bytes();
                let made = matches!(&graph.value(*id).source, Source::Node { node, .. } if !joins(&graph.nodes()[*node].op));
                let free =
                    !self.constant[place] && self.joins[place].is_none() && self.takes[place].is_none();
                let first = starts.iter().filter(|(other, _)| other == id).count() == 1;
                let aligned = starts[starts.len() - 1].1.is_multiple_of(ALIGNMENT);
                made && free && first && aligned && self.types[place].dtype == dtype
            };
            if outer == 1 && node.inputs.iter().all(fits) {
                starts.into_iter().for_each(|(id, start)| self.joins[id.index()] = Some((result, start)));
            }
        }
    }

    /// Whether the operands of `node` lie where it would put them.
    fn is_joined(&self, node: &Node) -> bool {
        let joined =
            |id: &ValueId| self.joins[id.index()].is_some_and(|(result, _)| result == node.outputs[0]);
        matches!(node.op, Op::Concat(_)) && node.inputs.iter().all(joined)
    }

    /// Gives a result of `step` its memory.
    fn define(&mut self, id: ValueId, step: usize) {
        let place = id.index();
        if let Some(variable) = self.takes[place] {
            self.places[place] = self.places[variable.index()];
            return;
        }
        let piece = match self.joins[place] {
            None => self.new_buffer(self.types[place].bytes(), step),
            Some((result, offset)) => {
                let whole = match self.places[result.index()] {
                    Some(whole) => whole,
                    None => self.new_buffer(self.types[result.index()].bytes(), step),
                };
                self.places[result.index()] = Some(whole);
                let Piece { buffer, .. } = self.pieces[whole];
                self.intervals[buffer].last = step;
                self.pieces.push(Piece { buffer, offset });
                self.pieces.len() - 1
            }
        };
        self.places[place] = Some(piece);
    }

    /// Makes the steps, choosing a kernel for each, and records how long every buffer lives.
    fn schedule(
        &mut self,
        choose: impl Fn(&Site<'_>) -> std::result::Result<Choice<P>, String>,
    ) -> Result<()> {
        let graph = self.graph;
        self.place_joins();
        for (index, value) in graph.values().iter().enumerate() {
            if matches!(value.source, Source::Input | Source::Variable(_)) {
                self.define(ValueId(index as u32), 0);
            }
        }
        for (index, node) in graph.nodes().iter().enumerate() {
            self.begin_segments(index);
            if self.constant[node.outputs[0].index()] {
                continue;
            }
            if matches!(node.op, Op::Reshape(_)) {
                let (from, to) = (self.types[node.inputs[0].index()], self.types[node.outputs[0].index()]);
                if from.dtype != to.dtype {
                    let name = &graph.value(node.outputs[0]).name;
                    return Err(Error::Graph(format!(
                        "`{name}` views {from} as {to}, which is stored otherwise"
                    )));
                }
                self.places[node.outputs[0].index()] = self.places[node.inputs[0].index()];
                continue;
            }
            if self.is_joined(node) {
                continue;
            }
            let step = self.plan.steps.len();
            let types = |ids: &[ValueId]| ids.iter().map(|&id| self.value_type(id)).collect::<Vec<_>>();
            let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
            let constant: Vec<bool> =
                node.inputs.iter().map(|id| self.constants[id.index()].is_some()).collect();
            let site = Site { op: &node.op, inputs: &inputs, constant: &constant, outputs: &outputs };
            let choice = choose(&site).map_err(|reason| Error::Shape {
                op: node.op.name(),
                value: graph.value(node.outputs[0]).name.clone(),
                reason,
            })?;
            for input in &node.inputs {
                self.extend_life(*input, step);
            }
            for output in &node.outputs {
                self.define(*output, step);
            }
            let workspace = self.new_buffer(choice.workspace, step);
            self.workspaces.push(workspace);
            let place = |id: &ValueId| self.operand(*id);
            let placed_inputs = node.inputs.iter().map(place).collect::<Result<_>>()?;
            let placed_outputs = node.outputs.iter().map(place).collect::<Result<_>>()?;
            self.plan.steps.push(Step {
                name: graph.value(node.outputs[0]).name.clone(),
                flops: node.op.flops(&inputs, &outputs),
                op: node.op.clone(),
                inputs: placed_inputs,
                outputs: placed_outputs,
                workspace: Slot::default(),
                kernel: choice.kernel,
                program: choice.program,
            });
        }
        let end = self.plan.steps.len();
        self.end_segments()?;
        for (name, id) in graph.outputs() {
            self.extend_life(*id, end);
            let operand = self.operand(*id)?;
            self.plan.outputs.push((name.clone(), operand));
        }
        for (index, value) in graph.values().iter().enumerate() {
            let id = ValueId(index as u32);
            match &value.source {
                Source::Input => {
                    let operand = self.operand(id)?;
                    self.plan.inputs.push((value.name.clone(), operand));
                }
                Source::Variable(initial) => {
                    self.extend_life(id, end);
                    let (name, initial, operand) = (value.name.clone(), initial.clone(), self.operand(id)?);
                    self.plan.variables.push(Variable { name, initial, operand });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lays out the arena and replaces buffer numbers by slots.
    fn finish(mut self) -> Plan<P> {
        let (slots, bytes) = arena::layout(&self.intervals);
        let resolve = |operand: &mut Operand| {
            if let Place::Arena(slot) = &mut operand.place {
                let Piece { buffer, offset } = self.pieces[slot.offset];
                slot.offset = slots[buffer].offset + offset;
            }
        };
        for (step, workspace) in self.plan.steps.iter_mut().zip(&self.workspaces) {
            step.inputs.iter_mut().chain(&mut step.outputs).for_each(resolve);
            step.workspace = slots[self.pieces[*workspace].buffer];
        }
        let ends = self.plan.inputs.iter_mut().chain(&mut self.plan.outputs);
        ends.for_each(|(_, operand)| resolve(operand));
        self.plan.variables.iter_mut().for_each(|variable| resolve(&mut variable.operand));
        for (from, to) in self.plan.segments.iter_mut().flat_map(|segment| &mut segment.copies) {
            resolve(from);
            resolve(to);
        }
        self.plan.arena_bytes = bytes;
        self.plan
    }

    /// The operand of a value; until [`Planner::finish`] the slot's offset is the number of a piece.
    fn operand(&self, id: ValueId) -> Result<Operand> {
        let ty = self.value_type(id);
        let place = match (self.constants[id.index()], self.places[id.index()]) {
            (Some(constant), _) => Place::Const(constant),
            (None, Some(piece)) => Place::Arena(Slot { offset: piece, bytes: ty.bytes() }),
            (None, None) => {
                let name = &self.graph.value(id).name;
                return Err(Error::Graph(format!("`{name}` has no place in memory")));
            }
        };
        Ok(Operand { place, ty })
    }

    /// Type of a value where it lives: the graph's type among the constants, else that of the arena.
    fn value_type(&self, id: ValueId) -> ValueType {
        if self.constants[id.index()].is_some() { self.graph.value(id).ty } else { self.types[id.index()] }
    }

    /// A buffer of its own: its piece.
    fn new_buffer(&mut self, bytes: usize, step: usize) -> usize {
        self.intervals.push(Interval { bytes, first: step, last: step });
        self.pieces.push(Piece { buffer: self.intervals.len() - 1, offset: 0 });
        self.pieces.len() - 1
    }

    fn extend_life(&mut self, id: ValueId, step: usize) {
        if let Some(piece) = self.places[id.index()] {
            let last = &mut self.intervals[self.pieces[piece].buffer].last;
            *last = step.max(*last);
        }
    }
}
