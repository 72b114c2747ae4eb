//! Sums over runs in place, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::Accumulate;
use rayon::prelude::*;

struct Sum {
    isa: Isa,
}

impl CpuOp for Accumulate {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Sum { isa: context.isa })
    }
}

impl Kernel for Sum {
    fn name(&self) -> String {
        "in place".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (x, keep) = (args.inputs[1].par_chunks(ELEMENTS_PER_TASK), args.inputs[2][0] != 0.0);
        let sums = args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK);
        sums.zip(x).for_each(|(sum, x)| match keep {
            true => add(self.isa, x, sum),
            false => sum.copy_from_slice(x),
        });
    }
}

simd! {
    fn add(isa, x: &[f32], sum: &mut [f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}
