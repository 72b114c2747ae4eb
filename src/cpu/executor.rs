//! Walks a plan on the CPU.

use super::buffer::AlignedBuffer;
use super::conv::Arithmetic;
use super::kernel::{Args, Context, Kernel, MAX_INPUTS, MAX_OUTPUTS};
use super::{ops, weights::Weights};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::isa::Isa;
use crate::memory;
use crate::ops::ValueType;
use crate::plan::arena::{ALIGNMENT, Slot};
use crate::plan::{self, Choice, Const, Operand, Place, Step};
use crate::tensor::Tensor;
use rayon::prelude::*;
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
}

impl Selection {
    /// Fast kernels of an instruction set for so many threads.
    pub fn new(isa: Isa, threads: usize) -> Selection {
        Selection { isa, threads, arithmetic: Arithmetic::Fast }
    }

    fn context<'a>(&self, inputs: &'a [ValueType], outputs: &'a [ValueType]) -> Context<'a> {
        let Selection { isa, threads, arithmetic } = *self;
        Context { inputs, outputs, isa, threads, arithmetic }
    }
}

/// A plan whose steps carry the CPU's kernels.
pub type Plan = plan::Plan<Arc<dyn Kernel>>;

/// Plans `graph` with the CPU's kernels.
///
/// # Errors
/// [`Error::Usage`] if this processor lacks the instruction set; as [`plan::Plan::build`].
pub fn plan(graph: &Graph, selection: Selection) -> Result<Plan> {
    if !selection.isa.is_available() {
        return Err(Error::usage(format!("this processor has no {}", selection.isa)));
    }
    Plan::build(graph, |site| {
        let context = selection.context(site.inputs, site.outputs);
        let kernel = ops::kernel(site.op, &context);
        let packed_at_run = kernel.packing().filter(|p| !site.constant[p.input]).map_or(0, |p| p.len);
        let floats = packed_at_run.next_multiple_of(ALIGNMENT / 4) + kernel.workspace();
        Choice { kernel: kernel.name(), workspace: 4 * floats, program: Arc::from(kernel) }
    })
}

/// A constant that a step reads.
#[derive(Clone)]
enum Constant {
    Plain(Arc<Tensor>),
    Packed(Arc<AlignedBuffer>),
}

impl Constant {
    fn as_slice(&self) -> &[f32] {
        match self {
            Constant::Plain(tensor) => tensor.data(),
            Constant::Packed(buffer) => buffer.as_slice(),
        }
    }
}

/// What a step's kernel works on.
struct Bound {
    inputs: Vec<Source>,
    outputs: Vec<Slot>,
    packed: Packed,
    workspace: Slot,
}

enum Source {
    Arena(Slot),
    Constant(Constant),
    /// A constant operand that only exists packed.
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
                constants[index] = Some(Constant::Plain(weights.constant(&plan.consts, index)?));
            }
        }
        let arena = AlignedBuffer::new(plan.arena_bytes / 4)?;
        Ok(Executor { plan, steps, arena, constants })
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

    /// The memory of variable `index`. It keeps its contents from run to run.
    pub fn variable_mut(&mut self, index: usize) -> &mut [f32] {
        let Place::Arena(slot) = self.plan.variables[index].1.place else { return &mut [] };
        &mut self.arena.as_mut_slice()[range(slot)]
    }

    /// The contents of variable `index`.
    pub fn variable(&self, index: usize) -> &[f32] {
        let Place::Arena(slot) = self.plan.variables[index].1.place else { return &[] };
        &self.arena.as_slice()[range(slot)]
    }

    /// Variable `variable`, to be changed, and result `output`: what an optimizer works on.
    ///
    /// # Errors
    /// [`Error::Graph`] if they share memory or are constants.
    pub fn variable_and_output(&mut self, variable: usize, output: usize) -> Result<(&mut [f32], &[f32])> {
        let (key, value) = &self.plan.variables[variable];
        let (name, result) = &self.plan.outputs[output];
        if let (Place::Arena(value), Place::Arena(result)) = (value.place, result.place)
            && let Ok([value, result]) =
                self.arena.as_mut_slice().get_disjoint_mut([range(value), range(result)])
        {
            return Ok((value, result));
        }
        Err(Error::Graph(format!("variable `{}` and result `{name}` are not apart in memory", key.key)))
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

    /// Runs all steps. Call it inside the rayon pool whose size the plan was made for.
    pub fn run(&mut self) {
        self.run_steps(0..self.steps.len());
    }

    /// Runs some of the steps: a run may be cut into consecutive ranges, between which inputs that no earlier
    /// step reads are filled and results of earlier steps are read.
    pub fn run_steps(&mut self, steps: std::ops::Range<usize>) {
        for index in steps {
            self.run_step(index);
        }
    }

    /// Runs all steps and gives the time of each to `report`.
    pub fn run_timed(&mut self, report: impl FnMut(usize, Duration)) {
        self.run_steps_timed(0..self.steps.len(), report);
    }

    /// As [`Executor::run_steps`], and gives the time of each step to `report`.
    pub fn run_steps_timed(
        &mut self,
        steps: std::ops::Range<usize>,
        mut report: impl FnMut(usize, Duration),
    ) {
        for index in steps {
            let start = Instant::now();
            self.run_step(index);
            report(index, start.elapsed());
        }
    }

    fn run_step(&mut self, index: usize) {
        let (step, kernel) = (&self.steps[index], &self.plan.steps[index].program);
        let arena = Arena::new(&mut self.arena);
        let mut inputs: [&[f32]; MAX_INPUTS] = Default::default();
        for (input, source) in inputs.iter_mut().zip(&step.inputs) {
            *input = match source {
                // SAFETY: the plan lays buffers that are alive at the same step apart, so no slice made
                // mutable below covers an operand; operands may cover each other, as shared slices may.
                Source::Arena(slot) => unsafe { arena.shared(*slot) },
                Source::Constant(constant) => constant.as_slice(),
                Source::Absent => &[],
            };
        }
        let mut outputs: [&mut [f32]; MAX_OUTPUTS] = Default::default();
        for (output, slot) in outputs.iter_mut().zip(&step.outputs) {
            // SAFETY: as above: results lie apart from operands, from each other and from the workspace.
            *output = unsafe { arena.exclusive(*slot) };
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

fn range(slot: Slot) -> std::ops::Range<usize> {
    slot.offset / 4..(slot.offset + slot.bytes) / 4
}

/// What the unsafe code of [`Executor::run_step`] rests on: results and workspace lie apart from each other
/// and from every operand. The planner sees to it; a plan is plain data, so it is checked once more.
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
    let read_apart = step.inputs.iter().filter_map(slot).all(|read| written.iter().all(|w| apart(&read, w)));
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
                let buffer = weights.packed(consts, index, packing, pack)?;
                Packed::Constant(Constant::Packed(buffer))
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
                Place::Arena(slot) => Source::Arena(slot),
                Place::Const(_) if packed_input == Some(i) => Source::Absent,
                Place::Const(index) => Source::Constant(Constant::Plain(weights.constant(consts, index)?)),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let slots = step.outputs.iter().filter_map(|o| match o.place {
        Place::Arena(slot) => Some(slot),
        Place::Const(_) => None,
    });
    Ok(Bound { inputs: sources, outputs: slots.collect(), packed, workspace: step.workspace })
}
