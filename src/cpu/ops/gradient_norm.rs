//! Sums of squares in double precision: a partial sum for each fixed chunk of each operand, added in order.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::gradient_norm::{ClipScale, SumSquares, join, split};
use rayon::prelude::*;

struct Chain {
    /// Partial sums.
    chunks: usize,
    operands: usize,
}

impl CpuOp for SumSquares {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let chunks = context.inputs[1..].iter().map(|ty| ty.shape.len().div_ceil(ELEMENTS_PER_TASK)).sum();
        Box::new(Chain { chunks, operands: context.inputs.len() })
    }
}

impl Kernel for Chain {
    fn name(&self) -> String {
        "chunks".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.chunks
    }

    fn run(&self, args: &mut Args<'_>) {
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let partial: &mut [f64] = bytemuck::cast_slice_mut(&mut args.workspace[..2 * self.chunks]);
        let mut rest = &mut *partial;
        for x in &args.inputs[1..self.operands] {
            let (sums, others) = rest.split_at_mut(x.len().div_ceil(ELEMENTS_PER_TASK));
            rest = others;
            x.par_chunks(ELEMENTS_PER_TASK).zip(sums).for_each(|(chunk, sum)| {
                *sum = chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            });
        }
        let total = partial.iter().fold(join(args.inputs[0]), |total, sum| total + sum);
        args.outputs[0].copy_from_slice(&split(total));
    }
}

struct Scale(ClipScale);

impl CpuOp for ClipScale {
    fn kernel(&self, _: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Scale(*self))
    }
}

impl Kernel for Scale {
    fn name(&self) -> String {
        "scalar".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [total, count, losses, ..] = args.inputs;
        args.outputs[0][0] = self.0.of(join(total), f64::from(count[0]), join(losses)) as f32;
    }
}
