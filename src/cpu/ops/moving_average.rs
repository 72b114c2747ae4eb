//! Moving averages in place, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::accumulate::each_pair;
use crate::isa::simd;
use crate::ops::{MovingAverage, Pairs};

struct Follow {
    pairs: usize,
    factor: f32,
    isa: Isa,
}

impl CpuOp for MovingAverage {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Follow { pairs: Pairs::count(context.inputs.len()), factor: self.factor, isa: context.isa })
    }
}

impl Kernel for Follow {
    fn name(&self) -> String {
        "in place".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let rate = args.inputs[0][0];
        each_pair(args, self.pairs, |x, average| follow(self.isa, self.factor, rate, x, average));
    }
}

simd! {
    fn follow(isa, factor: f32, rate: f32, x: &[f32], average: &mut [f32]) {
        for (average, &x) in average.iter_mut().zip(x) {
            *average += (factor * x - *average) * rate;
        }
    }
}
