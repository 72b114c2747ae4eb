//! Layer norm: one row after the other while it is in cache.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::activation::clamped;
use super::exp::LANES;
use super::normalise::{bounds, finish, statistics};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::LayerNorm;
use rayon::prelude::*;

struct Rows {
    op: LayerNorm,
    isa: Isa,
}

impl CpuOp for LayerNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Rows { op: *self, isa: context.isa })
    }
}

impl Kernel for Rows {
    fn name(&self) -> String {
        "rows".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, beta, ..] = args.inputs;
        let channels = gamma.len().max(1);
        let (low, high) = bounds(self.op.activation);
        // A quarter of the usual task: there are few objects, and each is read three times.
        let chunk = (ELEMENTS_PER_TASK / 4 / channels).max(1) * channels;
        args.outputs[0].par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
            rows(self.isa, x, gamma, beta, self.op.eps, low, high, y);
            finish(self.isa, self.op.activation, y);
        });
    }
}

simd! {
    fn rows(isa, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, low: f32, high: f32, y: &mut [f32]) {
        let channels = gamma.len().max(1);
        let beta = &beta[..gamma.len()];
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let (sum, squares) = sums(x);
            let (mean, inverse) = statistics(sum, squares, channels as f64, eps);
            let (centre, inverse) = (mean as f32, inverse as f32);
            // What rounding the mean left over.
            let rest = (mean - f64::from(centre)) as f32;
            for c in 0..channels {
                let normalised = (x[c] - centre - rest) * inverse;
                y[c] = clamped(normalised * gamma[c] + beta[c], low, high);
            }
        }
    }
}

/// Sum and sum of squares in double precision.
#[inline(always)]
fn sums(x: &[f32]) -> (f64, f64) {
    let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            let v = f64::from(block[i]);
            sums[i] += v;
            squares[i] += v * v;
        }
    }
    for (i, &v) in rest.iter().enumerate() {
        sums[i] += f64::from(v);
        squares[i] += f64::from(v) * f64::from(v);
    }
    (sums.iter().sum(), squares.iter().sum())
}
