//! Moving averages in place, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::MovingAverage;
use rayon::prelude::*;

struct Follow {
    factor: f32,
    isa: Isa,
}

impl CpuOp for MovingAverage {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Follow { factor: self.factor, isa: context.isa })
    }
}

impl Kernel for Follow {
    fn name(&self) -> String {
        "in place".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (x, rate) = (args.inputs[1].par_chunks(ELEMENTS_PER_TASK), args.inputs[2][0]);
        let averages = args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK);
        averages.zip(x).for_each(|(average, x)| follow(self.isa, self.factor, rate, x, average));
    }
}

simd! {
    fn follow(isa, factor: f32, rate: f32, x: &[f32], average: &mut [f32]) {
        for (average, &x) in average.iter_mut().zip(x) {
            *average += (factor * x - *average) * rate;
        }
    }
}
