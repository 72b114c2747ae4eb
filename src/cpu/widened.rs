//! A kernel of f32 for a step whose maps are stored as bf16: operands are widened into scratch memory, which
//! is exact, and results rounded. For operators that are too small a part of any model to have more.

use super::element::{Element, stored, stored_mut};
use super::kernel::{Args, Context, Kernel, MAX_OUTPUTS, PackedOperand};
use super::ops::ELEMENTS_PER_TASK;
use crate::ops::ValueType;
use crate::plan::arena::ALIGNMENT;
use crate::tensor::DType;
use half::bf16;
use rayon::prelude::*;

pub(super) struct Widened {
    kernel: Box<dyn Kernel>,
    /// For each operand and result that is stored as bf16, its position and number of values.
    inputs: Vec<(usize, usize)>,
    outputs: Vec<(usize, usize)>,
    /// An operand that is packed, which is here as it can only be packed from f32, and its packed length.
    packed: Option<(usize, usize)>,
    /// Floats of the kernel's own scratch.
    inner: usize,
}

/// The same types in f32.
pub(super) fn in_f32(types: &[ValueType]) -> Vec<ValueType> {
    types
        .iter()
        .map(|ty| if ty.dtype == DType::BF16 { ValueType { dtype: DType::F32, ..*ty } } else { *ty })
        .collect()
}

/// Floats that so many values take in scratch memory.
fn room(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT / 4)
}

impl Widened {
    /// `kernel`, chosen for the types in f32, for those of `context`.
    pub(super) fn new(kernel: Box<dyn Kernel>, context: &Context<'_>) -> Widened {
        let short = |types: &[ValueType]| -> Vec<(usize, usize)> {
            let short = types.iter().enumerate().filter(|(_, ty)| ty.dtype == DType::BF16);
            short.map(|(index, ty)| (index, ty.shape.len())).collect()
        };
        let inner = kernel.workspace();
        let packed = kernel.packing().filter(|p| context.inputs[p.input].dtype == DType::BF16);
        let packed = packed.map(|p| (p.input, p.len));
        Widened { kernel, inputs: short(context.inputs), outputs: short(context.outputs), packed, inner }
    }
}

impl Kernel for Widened {
    fn name(&self) -> String {
        format!("{} in f32", self.kernel.name())
    }

    fn workspace(&self) -> usize {
        let values = self.inputs.iter().chain(&self.outputs).chain(&self.packed);
        values.map(|&(_, len)| room(len)).sum::<usize>() + self.inner
    }

    fn packing(&self) -> Option<PackedOperand> {
        self.kernel.packing().filter(|_| self.packed.is_none())
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.kernel.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let mut rest = std::mem::take(&mut args.workspace);
        let mut take = |len: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(room(len));
            rest = others;
            &mut part[..len]
        };
        let mut inputs = args.inputs;
        for &(index, len) in &self.inputs {
            // Empty if a result takes its place.
            if !args.inputs[index].is_empty() {
                let wide = take(len);
                widen(stored(args.inputs[index], len), wide);
                inputs[index] = wide;
            }
        }
        let mut outputs = std::mem::replace(&mut args.outputs, std::array::from_fn(|_| Default::default()));
        let mut results = [const { None }; MAX_OUTPUTS];
        for (&(index, len), result) in self.outputs.iter().zip(&mut results) {
            let wide = take(len);
            // Some kernels go on from what is there.
            widen(stored(outputs[index], len), wide);
            *result = Some(std::mem::replace(&mut outputs[index], wide));
        }
        let mut packed = args.packed;
        if let Some((input, len)) = self.packed {
            let own = take(len);
            self.kernel.pack(inputs[input], own);
            packed = own;
        }
        let mut wide = Args { inputs, outputs, packed, workspace: rest };
        self.kernel.run(&mut wide);
        for (&(index, len), result) in self.outputs.iter().zip(results) {
            if let Some(result) = result {
                narrow(wide.outputs[index], stored_mut(result, len));
            }
        }
    }
}

fn widen(x: &[bf16], y: &mut [f32]) {
    let chunks = y.par_chunks_mut(ELEMENTS_PER_TASK).zip(x.par_chunks(ELEMENTS_PER_TASK));
    chunks.for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.widen()));
}

fn narrow(x: &[f32], y: &mut [bf16]) {
    let chunks = y.par_chunks_mut(ELEMENTS_PER_TASK).zip(x.par_chunks(ELEMENTS_PER_TASK));
    chunks.for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y = bf16::narrow(*x)));
}
