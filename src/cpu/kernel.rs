//! The contract between the executor and the CPU kernels.

use super::conv::{Arithmetic, ConvKernel};
use super::element::{stored, stored_mut};
use crate::isa::{Dot, Int8, Isa};
use crate::ops::{Operator, ValueType};
use crate::tensor::DType;
use bytemuck::Pod;
use std::fmt;

/// Most operands of a step: those of an update of [`AdamW::MOST`](crate::ops::AdamW::MOST) parameters.
pub const MAX_INPUTS: usize = 130;
/// Most results of a step: the same one's.
pub const MAX_OUTPUTS: usize = 97;

/// What a kernel is chosen from: operand and result types and a [`Selection`](super::Selection). Choosing is
/// a pure function of these; the thread count may size scratch memory but must not change any result.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Operand types.
    pub inputs: &'a [ValueType],
    /// Result types.
    pub outputs: &'a [ValueType],
    /// Instruction set to use.
    pub isa: Isa,
    /// Threads of the pool that will run the kernel.
    pub threads: usize,
    /// How coarsely the kernel may round.
    pub arithmetic: Arithmetic,
    /// Instructions that multiply bf16; `None` where all floats are f32.
    pub bf16: Option<Dot>,
    /// Instructions that multiply codes of levels.
    pub int8: Int8,
}

impl Context<'_> {
    /// Instructions for products of maps that are stored as bf16.
    pub(crate) fn dot(&self) -> Dot {
        self.bf16.unwrap_or(Dot::Portable)
    }

    /// Whether all operands and results are maps of bf16.
    pub(crate) fn is_all_bf16(&self) -> bool {
        self.inputs.iter().chain(self.outputs).all(|ty| ty.dtype == DType::BF16)
    }
}

/// An operator the CPU can run. Implemented in `src/cpu/ops/<name>.rs` for every line of the registry's first
/// list.
pub trait CpuOp: Operator {
    /// Chooses the kernel for these types, none of which is bf16.
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel>;

    /// Chooses the kernel for these types, some of which are bf16. Without one, the kernel of f32 runs
    /// between conversions.
    fn bf16_kernel(&self, _context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        None
    }
}

/// An operand in a layout of the kernel's own, made from the graph's layout by [`Kernel::pack`]: once if
/// the operand is a constant, else at every run into scratch memory.
///
/// It identifies the packed bytes: two kernels that give equal packings of a constant share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedOperand {
    /// Which operand.
    pub input: usize,
    /// Packed length in floats.
    pub len: usize,
    /// The order of the floats.
    pub layout: PackedLayout,
    /// Whose tile sizes it follows.
    pub isa: Isa,
}

/// How a packed operand lies in memory, besides what its own shape and the instruction set say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackedLayout {
    /// Panels of a GEMM's right side.
    Panels,
    /// Filters as panels of bf16.
    DotPanels,
    /// Filters as panels of levels, with the filters' steps and sums.
    LevelPanels,
    /// Filters of a depthwise convolution as levels, tap by tap, and what a sum is worth by channel.
    DepthwiseLevels,
    /// Filters of a convolution for this kernel.
    Filters(ConvKernel),
    /// Filters turned by 180 degrees, input and output channels exchanged: for the gradient of the map as
    /// another convolution.
    TurnedFilters(ConvKernel),
    /// Filters tap by tap, for the gradient of the map phase by phase.
    Taps,
    /// Filters by slices of input channels, for the gradient of a deformable convolution's map.
    Slices,
}

/// One operator at one set of shapes, ready to run. Running allocates nothing.
pub trait Kernel: Send + Sync {
    /// Name for plan dumps.
    fn name(&self) -> String;

    /// Scratch floats needed by [`Kernel::run`], without the packed operand.
    fn workspace(&self) -> usize {
        0
    }

    /// The operand that is packed, if any.
    fn packing(&self) -> Option<PackedOperand> {
        None
    }

    /// Packs the operand of [`Kernel::packing`].
    fn pack(&self, _source: &[f32], _packed: &mut [f32]) {}

    /// Computes the results. Called inside the executor's rayon pool.
    fn run(&self, args: &mut Args<'_>);
}

impl fmt::Debug for dyn Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Memory of one kernel call. Slices of absent operands are empty; no two slices overlap except inputs
/// with inputs. Outputs and workspace hold stale data on entry.
pub struct Args<'a> {
    /// Operands in the graph's layout. What is not f32 is seen as the memory of floats: indices
    /// ([`Args::input_i32`]), maps of bf16 (`Args::map`). A packed operand that is a constant is empty here,
    /// and so is one that a result replaces ([`Operator::replaces`]).
    pub inputs: [&'a [f32]; MAX_INPUTS],
    /// Results. One that replaces an operand holds that on entry. What is not f32 is seen as the memory of
    /// floats: [`Args::output_i32`], `Args::map_mut`.
    pub outputs: [&'a mut [f32]; MAX_OUTPUTS],
    /// The packed operand, or empty.
    pub packed: &'a [f32],
    /// Scratch of [`Kernel::workspace`] floats.
    pub workspace: &'a mut [f32],
}

impl<'a> Args<'a> {
    /// Operand `index` as indices.
    pub fn input_i32(&self, index: usize) -> &'a [i32] {
        bytemuck::cast_slice(self.inputs[index])
    }

    /// Result `index` as indices.
    pub fn output_i32(&mut self, index: usize) -> &mut [i32] {
        bytemuck::cast_slice_mut(self.outputs[index])
    }

    /// Operand `index`, of so many values that are stored as `E`.
    pub(crate) fn map<E: Pod>(&self, index: usize, len: usize) -> &'a [E] {
        stored(self.inputs[index], len)
    }

    /// Result `index`, of so many values that are stored as `E`.
    pub(crate) fn map_mut<E: Pod>(&mut self, index: usize, len: usize) -> &mut [E] {
        stored_mut(self.outputs[index], len)
    }
}
