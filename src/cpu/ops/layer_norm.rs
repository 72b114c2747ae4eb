//! Layer norm: one row after the other while it is in cache.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::activation::clamped;
use super::exp::LANES;
use super::normalise::{add, bounds, finish, statistics};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::{LayerNorm, LayerNormGrad};
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

struct RowsGrad {
    eps: f32,
    rows: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for LayerNormGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let x = context.inputs[0].shape;
        let rows = x.len() / x.last().max(1);
        Box::new(RowsGrad { eps: self.eps, rows, channels: x.last(), isa: context.isa })
    }
}

impl RowsGrad {
    /// Rows of a task.
    fn per_task(&self) -> usize {
        (ELEMENTS_PER_TASK / 4 / self.channels.max(1)).max(1)
    }
}

impl Kernel for RowsGrad {
    fn name(&self) -> String {
        "rows".to_string()
    }

    /// The sums of each task for `dgamma`, then for `dbeta`, in double precision.
    fn workspace(&self) -> usize {
        4 * self.rows.div_ceil(self.per_task()) * self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, dy, ..] = args.inputs;
        let [dx, dgamma, dbeta, ..] = &mut args.outputs;
        let channels = self.channels;
        if x.is_empty() {
            dgamma.fill(0.0);
            dbeta.fill(0.0);
            return;
        }
        let chunk = self.per_task() * channels;
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(&mut args.workspace[..self.workspace()]);
        let tasks = x.par_chunks(chunk).zip(dy.par_chunks(chunk)).zip(dx.par_chunks_mut(chunk));
        tasks.zip(sums.par_chunks_mut(2 * channels)).for_each(|(((x, dy), dx), sums)| {
            rows_grad(self.isa, x, gamma, dy, self.eps, dx, sums);
        });
        let (total, rest) = sums.split_at_mut(2 * channels);
        rest.chunks_exact(2 * channels).for_each(|task| add(self.isa, task, total));
        let (first, second) = total.split_at(channels);
        dgamma.iter_mut().zip(first).for_each(|(grad, &sum)| *grad = sum as f32);
        dbeta.iter_mut().zip(second).for_each(|(grad, &sum)| *grad = sum as f32);
    }
}

simd! {
    fn rows_grad(isa, x: &[f32], gamma: &[f32], dy: &[f32], eps: f32, dx: &mut [f32], sums: &mut [f64]) {
        sums.fill(0.0);
        let channels = gamma.len();
        let (dgamma, dbeta) = sums.split_at_mut(channels);
        let dbeta = &mut dbeta[..channels];
        let count = channels as f64;
        let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(channels)) {
            let (sum, squares) = self::sums(x);
            let (mean, inverse) = statistics(sum, squares, count, eps);
            let centre = mean as f32;
            // What rounding the mean left over.
            let rest = (mean - f64::from(centre)) as f32;
            let (first, second) = weighted_sums(x, gamma, dy, mean);
            let (first, second) = ((first / count) as f32, (second * inverse / count) as f32);
            let inverse = inverse as f32;
            for c in 0..channels {
                let normalised = (x[c] - centre - rest) * inverse;
                dx[c] = ((gamma[c] * dy[c] - first) - normalised * second) * inverse;
                dgamma[c] += f64::from(dy[c] * normalised);
                dbeta[c] += f64::from(dy[c]);
            }
        }
    }
}

/// Sums of `gamma * dy` and of `gamma * dy * (x - mean)` in double precision.
#[inline(always)]
fn weighted_sums(x: &[f32], gamma: &[f32], dy: &[f32], mean: f64) -> (f64, f64) {
    let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
    let mut add = |i: usize, x: f32, gamma: f32, dy: f32| {
        let weighted = f64::from(gamma) * f64::from(dy);
        sums[i] += weighted;
        products[i] += weighted * (f64::from(x) - mean);
    };
    let ((x, x_rest), (gamma, gamma_rest)) = (x.as_chunks::<LANES>(), gamma.as_chunks::<LANES>());
    let (dy, dy_rest) = dy.as_chunks::<LANES>();
    for ((x, gamma), dy) in x.iter().zip(gamma).zip(dy) {
        for i in 0..LANES {
            add(i, x[i], gamma[i], dy[i]);
        }
    }
    for i in 0..x_rest.len() {
        add(i, x_rest[i], gamma_rest[i], dy_rest[i]);
    }
    (sums.iter().sum(), products.iter().sum())
}
