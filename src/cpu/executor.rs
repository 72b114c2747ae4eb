//! Walks a plan on the CPU.

use super::buffer::AlignedBuffer;
use super::conv::Arithmetic;
use super::kernel::{Args, Context, Kernel, MAX_INPUTS, MAX_OUTPUTS};
use super::weights::{Constant, Weights};
use super::{Pool, ops};
use crate::error::{Error, Result};
use crate::exec::{self, Host, HostMut, Report};
use crate::graph::passes::quantize;
use crate::graph::{Graph, InputId, OutputId, SegmentId, ValueId, VariableId};
use crate::isa::{Dot, Int8, Isa};
use crate::memory;
use crate::ops::{Op, Role, ValueType};
use crate::plan::arena::{ALIGNMENT, Slot};
use crate::plan::{self, Choice, Const, Operand, Place, Segment, Step, Variable};
use crate::tensor::DType;
use rayon::prelude::*;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the kernels of a plan are chosen by, besides types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Instruction set.
    pub isa: Isa,
    /// Threads of the pool that runs the plan.
    pub threads: usize,
    /// How coarsely kernels may round.
    pub arithmetic: Arithmetic,
    /// Stores maps as bf16, and multiplies them by these instructions; `None`: all floats are f32.
    pub bf16: Option<Dot>,
    /// Multiplies codes by these instructions, in graphs that have quantized convolutions.
    pub int8: Int8,
}

impl Selection {
    /// Fast kernels of an instruction set for so many threads, in f32; quantized convolutions by plain loops.
    pub fn new(isa: Isa, threads: usize) -> Selection {
        Selection { isa, threads, arithmetic: Arithmetic::Fast, bf16: None, int8: Int8::Portable }
    }

    fn check(&self) -> Result<()> {
        if !self.isa.is_available() {
            return Err(Error::usage(format!("this processor has no {}", self.isa)));
        }
        match self.bf16 {
            Some(dot) if !dot.is_available() => {
                Err(Error::usage(format!("this processor, or its system, has no {dot}")))
            }
            _ if !self.int8.is_available() => {
                Err(Error::usage(format!("this processor, or its system, has no {}", self.int8)))
            }
            _ => Ok(()),
        }
    }

    /// Type in memory of a value of the arena: of maps alone, those may be bf16.
    fn stored(&self, ty: ValueType) -> ValueType {
        match (self.bf16, ty.role) {
            (Some(_), Role::Map) => ValueType { dtype: DType::BF16, ..ty },
            _ => ty,
        }
    }

    fn context<'a>(&self, inputs: &'a [ValueType], outputs: &'a [ValueType]) -> Context<'a> {
        let Selection { isa, threads, arithmetic, bf16, int8 } = *self;
        Context { inputs, outputs, isa, threads, arithmetic, bf16, int8 }
    }
}

/// A plan whose steps carry the CPU's kernels.
pub type Plan = plan::Plan<Arc<dyn Kernel>>;

/// Plans `graph` with the CPU's kernels. What callers write and read, inputs and results, is stored in the
/// graph's types whatever the selection says, and so are mask logits.
///
/// # Errors
/// [`Error::Usage`] if this processor lacks the instruction set; as [`plan::Plan::build`], which refuses
/// what only the rewrites of GPUs make.
pub fn plan(graph: &Graph, selection: Selection) -> Result<Plan> {
    selection.check()?;
    let mut kept = graph.seen_by_callers();
    // A graph that may end after any stage has the mask logits of all of them for results, and gives the same
    // bits as one that has not.
    for node in graph.nodes().iter().filter(|node| matches!(node.op, Op::MaskConv(_))) {
        kept[node.outputs[0].index()] = true;
    }
    graph.mark_views(&mut kept);
    let coded = quantize::read_as_codes(graph);
    let stored = |id: ValueId, ty| match id.index() {
        index if kept[index] => ty,
        index if coded[index] => ValueType { dtype: DType::U8, ..ty },
        _ => selection.stored(ty),
    };
    Plan::build(graph, stored, |site| choose(site, selection))
}

/// A plan that was written and read back, with its kernels: a plan is written without them, as which kernel a
/// step has is a pure function of its types and the selection.
///
/// # Errors
/// [`Error::Usage`] if this processor lacks the instruction set; [`Error::Graph`] naming the first step for
/// which the plan was made with another kernel, or with less workspace than the kernel needs.
pub fn rebind(plan: &plan::Plan, selection: Selection) -> Result<Plan> {
    selection.check()?;
    plan.try_map(|step| {
        let choice = choose(&step.site().site(), selection);
        let Choice { kernel, workspace, program } =
            choice.map_err(|reason| Error::Shape { op: step.op.name(), value: step.name.clone(), reason })?;
        if kernel == step.kernel && workspace <= step.workspace.bytes {
            return Ok(program);
        }
        Err(Error::Graph(format!(
            "`{}` was planned with `{}` and {} bytes of workspace; {} takes `{kernel}` and {workspace}",
            step.name, step.kernel, step.workspace.bytes, selection.isa
        )))
    })
}

fn choose(
    site: &plan::Site<'_>,
    selection: Selection,
) -> std::result::Result<Choice<Arc<dyn Kernel>>, String> {
    let context = selection.context(site.inputs, site.outputs);
    let kernel = ops::kernel(site.op, &context)?;
    let packed_at_run = kernel.packing().filter(|p| !site.constant[p.input]).map_or(0, |p| p.len);
    let floats = packed_at_run.next_multiple_of(ALIGNMENT / 4) + kernel.workspace();
    Ok(Choice { kernel: kernel.name(), workspace: 4 * floats, program: Arc::from(kernel) })
}

/// What a step's kernel works on.
struct Bound {
    inputs: Vec<Source>,
    outputs: Vec<Slot>,
    packed: Packed,
    workspace: Slot,
    /// Operands that are copied to where their new value is made, as the plan gives both their own memory.
    carried: Vec<(usize, usize)>,
}

enum Source {
    Arena(Slot),
    Constant(Constant),
    /// A constant operand that only exists packed, or an operand whose place is a result's.
    Absent,
}

enum Packed {
    None,
    Constant(Constant),
    /// Packed from this operand at every run, into this many floats of the workspace.
    AtRun {
        input: usize,
        len: usize,
    },
}

/// A plan bound to memory and constants. Everything is allocated when it is made; [`Executor::run`]
/// allocates nothing.
pub struct Executor {
    plan: Plan,
    steps: Vec<Bound>,
    arena: AlignedBuffer,
    constants: Vec<Option<Constant>>,
    /// Where it runs, if not in the caller's pool.
    pool: Option<Pool>,
}

impl Executor {
    /// Allocates the arena and binds constants.
    ///
    /// # Errors
    /// As [`Weights::constant`]; [`Error::Graph`] if a step has too many operands or overlapping memory;
    /// [`Error::Memory`] if the arena is larger than the memory there is.
    pub fn new(plan: Plan, weights: &Weights) -> Result<Self> {
        plan.steps.iter().try_for_each(check_memory)?;
        memory::check("the network at this size of images", plan.arena_bytes)?;
        let steps = plan
            .steps
            .par_iter()
            .map(|step| bind(&plan.consts, step, weights))
            .collect::<Result<Vec<_>>>()?;
        let mut constants = vec![None; plan.consts.len()];
        for (_, operand) in &plan.outputs {
            if let Place::Const(index) = operand.place {
                constants[index] = Some(weights.constant(&plan.consts, index)?);
            }
        }
        let arena = AlignedBuffer::new(plan.arena_bytes / 4)?;
        Ok(Executor { plan, steps, arena, constants, pool: None })
    }

    /// An executor that runs in a pool of its own when it is run as an [`exec::Executor`]. The pool has as
    /// many threads as the plan was made for.
    pub fn in_pool(self, pool: Pool) -> Self {
        Executor { pool: Some(pool), ..self }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The memory of input `index`, to be filled before every [`Executor::run`]: a run reuses it once it is
    /// read.
    pub fn input_mut(&mut self, index: usize) -> &mut [f32] {
        let Place::Arena(slot) = self.plan.inputs[index].1.place else { return &mut [] };
        &mut self.arena.as_mut_slice()[range(slot)]
    }

    /// As [`Executor::input_mut`], for an input of indices.
    pub fn input_i32_mut(&mut self, index: usize) -> &mut [i32] {
        bytemuck::cast_slice_mut(self.input_mut(index))
    }

    /// Result `index`, valid after [`Executor::run`]. Index results are `i32` bits: see
    /// [`Executor::output_i32`].
    pub fn output(&self, index: usize) -> &[f32] {
        match self.plan.outputs[index].1.place {
            Place::Arena(slot) => &self.arena.as_slice()[range(slot)],
            Place::Const(index) => self.constants[index].as_ref().map_or(&[], Constant::as_slice),
        }
    }

    /// Result `index` as indices.
    pub fn output_i32(&self, index: usize) -> &[i32] {
        bytemuck::cast_slice(self.output(index))
    }

    /// Position of the result called `name`.
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.plan.outputs.iter().position(|(n, _)| n == name)
    }

    /// Shape and element type of result `index`.
    pub fn output_type(&self, index: usize) -> ValueType {
        self.plan.outputs[index].1.ty
    }

    /// Runs all segments. Call it inside the rayon pool whose size the plan was made for.
    pub fn run(&mut self) {
        (0..self.plan.segments.len()).for_each(|segment| self.run_segment(segment, Executor::run_step));
    }

    /// Runs one segment, as [`Executor::run`] does; those before it have been run.
    pub fn run_one(&mut self, segment: usize) {
        self.run_segment(segment, Executor::run_step);
    }

    /// Runs all segments and gives the time of each step to `report`.
    pub fn run_timed(&mut self, mut report: impl FnMut(usize, Duration)) {
        (0..self.plan.segments.len()).for_each(|segment| self.time_segment(segment, &mut report));
    }

    fn time_segment(&mut self, segment: usize, mut report: impl FnMut(usize, Duration)) {
        self.run_segment(segment, |executor, index| {
            let start = Instant::now();
            executor.run_step(index);
            report(index, start.elapsed());
        });
    }

    /// Runs the steps of a segment by `run`, then copies the new values that were made elsewhere.
    fn run_segment(&mut self, segment: usize, mut run: impl FnMut(&mut Self, usize)) {
        self.plan.segments[segment].steps.clone().for_each(|index| run(self, index));
        for (from, to) in &self.plan.segments[segment].copies {
            if let (Place::Arena(from), Place::Arena(to)) = (from.place, to.place) {
                self.arena.as_mut_slice().copy_within(range(from), range(to).start);
            }
        }
    }

    /// Does `work` in the pool of its own, if it has one.
    fn pooled(&mut self, work: impl FnOnce(&mut Self) + Send) {
        match self.pool.take() {
            None => work(self),
            Some(pool) => {
                pool.run(|| work(self));
                self.pool = Some(pool);
            }
        }
    }

    /// The floats of operand `operand` of step `step`, which lies in the arena, when the steps before it have
    /// run; nothing of a constant.
    pub(crate) fn operand(&self, step: usize, operand: usize) -> &[f32] {
        match &self.steps[step].inputs[operand] {
            Source::Arena(slot) => &self.arena.as_slice()[range(*slot)],
            Source::Constant(_) | Source::Absent => &[],
        }
    }

    /// The memory of result `result` of step `step`, as floats, when that has run.
    pub(crate) fn result(&self, step: usize, result: usize) -> &[f32] {
        &self.arena.as_slice()[range(self.steps[step].outputs[result])]
    }

    /// Runs one step, for who looks at what lies between. Those before it have been run, in the pool whose
    /// size the plan was made for.
    pub(crate) fn run_step(&mut self, index: usize) {
        let (step, kernel) = (&self.steps[index], &self.plan.steps[index].program);
        let arena = Arena::new(&mut self.arena);
        let mut inputs: [&[f32]; MAX_INPUTS] = [&[]; MAX_INPUTS];
        for (input, source) in inputs.iter_mut().zip(&step.inputs) {
            *input = match source {
                // SAFETY: the plan lays buffers that are alive at the same step apart, and an operand that
                // shares its memory with a result is absent, so no slice made mutable below covers an
                // operand; operands may cover each other, as shared slices may.
                Source::Arena(slot) => unsafe { arena.shared(*slot) },
                Source::Constant(constant) => constant.as_slice(),
                Source::Absent => &[],
            };
        }
        let mut outputs: [&mut [f32]; MAX_OUTPUTS] = std::array::from_fn(|_| Default::default());
        for (output, slot) in outputs.iter_mut().zip(&step.outputs) {
            // SAFETY: as above: results lie apart from operands, from each other and from the workspace.
            *output = unsafe { arena.exclusive(*slot) };
        }
        for &(input, output) in &step.carried {
            outputs[output].copy_from_slice(inputs[input]);
            inputs[input] = &[];
        }
        // SAFETY: as above.
        let workspace = unsafe { arena.exclusive(step.workspace) };
        let (packed, workspace): (&[f32], &mut [f32]) = match &step.packed {
            Packed::None => (&[], workspace),
            Packed::Constant(constant) => (constant.as_slice(), workspace),
            Packed::AtRun { input, len } => {
                let (packed, rest) = workspace.split_at_mut(len.next_multiple_of(ALIGNMENT / 4));
                kernel.pack(inputs[*input], &mut packed[..*len]);
                (&packed[..*len], rest)
            }
        };
        kernel.run(&mut Args { inputs, outputs, packed, workspace });
    }
}

/// The arena during one step, from which disjoint slices are cut.
struct Arena {
    base: *mut f32,
    len: usize,
}

impl Arena {
    fn new(buffer: &mut AlignedBuffer) -> Self {
        let floats = buffer.as_mut_slice();
        Arena { base: floats.as_mut_ptr(), len: floats.len() }
    }

    /// # Safety
    /// The buffer outlives the slice and no exclusive slice overlaps it.
    unsafe fn shared<'a>(&self, slot: Slot) -> &'a [f32] {
        let range = range(slot);
        assert!(range.end <= self.len, "slot {slot:?} beyond the arena");
        // SAFETY: in bounds by the assertion; aliasing is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base.add(range.start), range.len()) }
    }

    /// # Safety
    /// The buffer outlives the slice and no other slice overlaps it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn exclusive<'a>(&self, slot: Slot) -> &'a mut [f32] {
        let range = range(slot);
        assert!(range.end <= self.len, "slot {slot:?} beyond the arena");
        // SAFETY: in bounds by the assertion; aliasing is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(range.start), range.len()) }
    }
}

/// The floats that a slot covers: slots begin on cache lines, so that the last may be shared with nobody.
fn range(slot: Slot) -> std::ops::Range<usize> {
    slot.offset / 4..(slot.offset + slot.bytes).div_ceil(4)
}

impl exec::Executor for Executor {
    fn described(&self) -> plan::Plan {
        self.plan.described()
    }

    fn inputs(&self) -> &[(String, Operand)] {
        &self.plan.inputs
    }

    fn outputs(&self) -> &[(String, Operand)] {
        &self.plan.outputs
    }

    fn variables(&self) -> &[Variable] {
        &self.plan.variables
    }

    fn segments(&self) -> &[Segment] {
        &self.plan.segments
    }

    fn input(&mut self, input: InputId) -> HostMut<'_> {
        let dtype = self.plan.inputs[input.index()].1.ty.dtype;
        HostMut::of(dtype, self.input_mut(input.index()))
    }

    fn read(&self, output: OutputId) -> Host<'_> {
        Host::of(self.output_type(output.index()).dtype, self.output(output.index()))
    }

    fn fetch(&self, output: OutputId, values: &mut [f32]) -> Result<()> {
        exec::check_fetch(&self.plan.outputs[output.index()], values.len())?;
        values.copy_from_slice(self.output(output.index()));
        Ok(())
    }

    fn start(&mut self, segments: RangeInclusive<SegmentId>) -> Result<()> {
        let segments = segments.start().index()..=segments.end().index();
        self.pooled(|executor| {
            segments.for_each(|segment| executor.run_segment(segment, Executor::run_step));
        });
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn run_timed(&mut self, segment: SegmentId, report: &mut Report<'_>) -> Result<()> {
        self.pooled(|executor| executor.time_segment(segment.index(), report));
        Ok(())
    }

    fn read_variable(&self, variable: VariableId, values: &mut [f32]) -> Result<()> {
        let variable = &self.plan.variables[variable.index()];
        exec::check_variable(variable, values.len())?;
        if let Place::Arena(slot) = variable.operand.place {
            values.copy_from_slice(&self.arena.as_slice()[range(slot)]);
        }
        Ok(())
    }

    fn write_variable(&mut self, variable: VariableId, values: &[f32]) -> Result<()> {
        let variable = &self.plan.variables[variable.index()];
        exec::check_variable(variable, values.len())?;
        if let Place::Arena(slot) = variable.operand.place {
            self.arena.as_mut_slice()[range(slot)].copy_from_slice(values);
        }
        Ok(())
    }
}

/// Whether operand `input` lies where the step makes its new value.
fn is_in_place<P>(step: &Step<P>, input: usize) -> bool {
    let mut replaced =
        step.op.replaces(step.inputs.len()).into_iter().filter(|&(operand, _)| operand == input);
    replaced.any(|(_, output)| step.outputs[output].place == step.inputs[input].place)
}

/// What the unsafe code of [`Executor::run_step`] rests on: results and workspace lie apart from each other
/// and from every operand, but for an operand in whose place its new value is made. The planner sees to it; a
/// plan is plain data, so it is checked once more.
fn check_memory(step: &Step<Arc<dyn Kernel>>) -> Result<()> {
    let slot = |operand: &Operand| match operand.place {
        Place::Arena(slot) => Some(slot),
        Place::Const(_) => None,
    };
    let written: Vec<Slot> =
        step.outputs.iter().filter_map(slot).chain(std::iter::once(step.workspace)).collect();
    let apart = |a: &Slot, b: &Slot| {
        let disjoint = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
        disjoint || a.bytes == 0 || b.bytes == 0
    };
    let read = step.inputs.iter().enumerate().filter(|(input, _)| !is_in_place(step, *input));
    let read_apart =
        read.filter_map(|(_, operand)| slot(operand)).all(|read| written.iter().all(|w| apart(&read, w)));
    let written_apart = (0..written.len()).all(|i| written[..i].iter().all(|w| apart(&written[i], w)));
    if read_apart && written_apart && written.len() == step.outputs.len() + 1 {
        Ok(())
    } else {
        Err(Error::Graph(format!("`{}` would overwrite its own operands", step.name)))
    }
}

fn bind(consts: &[Const], step: &Step<Arc<dyn Kernel>>, weights: &Weights) -> Result<Bound> {
    if step.inputs.len() > MAX_INPUTS || step.outputs.len() > MAX_OUTPUTS {
        return Err(Error::Graph(format!(
            "`{}` has {} operands and {} results, the executor takes {MAX_INPUTS} and {MAX_OUTPUTS}",
            step.name,
            step.inputs.len(),
            step.outputs.len()
        )));
    }
    let kernel = &step.program;
    let mut packed = Packed::None;
    if let Some(packing) = kernel.packing() {
        packed = match step.inputs[packing.input].place {
            Place::Arena(_) => Packed::AtRun { input: packing.input, len: packing.len },
            Place::Const(index) => {
                let pack = |source: &[f32], packed: &mut [f32]| kernel.pack(source, packed);
                Packed::Constant(weights.packed(consts, index, packing, pack)?)
            }
        };
    }
    let packed_input = kernel.packing().map(|p| p.input);
    let sources = step
        .inputs
        .iter()
        .enumerate()
        .map(|(i, operand)| {
            Ok(match operand.place {
                Place::Arena(_) if is_in_place(step, i) => Source::Absent,
                Place::Arena(slot) => Source::Arena(slot),
                Place::Const(_) if packed_input == Some(i) => Source::Absent,
                Place::Const(index) => Source::Constant(weights.constant(consts, index)?),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let slots = step.outputs.iter().filter_map(|o| match o.place {
        Place::Arena(slot) => Some(slot),
        Place::Const(_) => None,
    });
    let replaced = step.op.replaces(step.inputs.len()).into_iter();
    let carried = replaced.filter(|&(input, _)| !is_in_place(step, input)).collect();
    Ok(Bound { inputs: sources, outputs: slots.collect(), packed, workspace: step.workspace, carried })
}
