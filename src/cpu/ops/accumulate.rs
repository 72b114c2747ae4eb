//! Sums over runs in place, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::{Accumulate, Pairs};
use rayon::prelude::*;

struct Sums {
    pairs: usize,
    isa: Isa,
}

impl CpuOp for Accumulate {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Sums { pairs: Pairs::count(context.inputs.len()), isa: context.isa })
    }
}

impl Kernel for Sums {
    fn name(&self) -> String {
        "in place".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let keep = args.inputs[0][0] != 0.0;
        each_pair(args, self.pairs, |x, sum| match keep {
            true => add(self.isa, x, sum),
            false => sum.copy_from_slice(x),
        });
    }
}

/// Lets chunks of what replaces old values follow chunks of `x`, if the gate is open.
pub(super) fn each_pair(args: &mut Args<'_>, pairs: usize, next: impl Fn(&[f32], &mut [f32]) + Sync) {
    if !args.inputs[1][0].is_finite() {
        return;
    }
    for (pair, new) in args.outputs[..pairs].iter_mut().enumerate() {
        let x = args.inputs[Pairs::operand(pair) + 1].par_chunks(ELEMENTS_PER_TASK);
        new.par_chunks_mut(ELEMENTS_PER_TASK).zip(x).for_each(|(new, x)| next(x, new));
    }
}

simd! {
    fn add(isa, x: &[f32], sum: &mut [f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}
