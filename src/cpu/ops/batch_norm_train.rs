//! Batch norm over the batch, in two sweeps as [`group_norm`](super::group_norm).

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::batch_norm::TwoSweepsGrad;
use super::normalise::{Affine, add, column_sums, rows_per_task, statistics};
use crate::ops::{BatchNormTrain, BatchNormTrainGrad};
use rayon::prelude::*;

struct TwoSweeps {
    eps: f32,
    rows: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for BatchNormTrain {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let x = context.inputs[0].shape;
        let channels = x.last();
        Box::new(TwoSweeps { eps: self.eps, rows: x.len() / channels, channels, isa: context.isa })
    }
}

impl CpuOp for BatchNormTrainGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(TwoSweepsGrad::new(self.eps, true, context.inputs[0].shape, context.isa))
    }
}

impl TwoSweeps {
    fn chunks(&self) -> usize {
        self.rows.div_ceil(rows_per_task(self.channels))
    }
}

impl Kernel for TwoSweeps {
    fn name(&self) -> String {
        "two_sweeps".to_string()
    }

    fn workspace(&self) -> usize {
        4 * self.chunks() * self.channels + 2 * self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, beta, ..] = args.inputs;
        let [y, mean, variance, ..] = &mut args.outputs;
        let channels = self.channels;
        let chunk = rows_per_task(channels) * channels;
        let (sums, rest) = args.workspace.split_at_mut(4 * self.chunks() * channels);
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(sums);
        x.par_chunks(chunk).zip(sums.par_chunks_mut(2 * channels)).for_each(|(x, sums)| {
            let (sums, squares) = sums.split_at_mut(channels);
            column_sums(self.isa, x, sums, squares);
        });
        let (total, others) = sums.split_at_mut(2 * channels);
        others.chunks_exact(2 * channels).for_each(|chunk| add(self.isa, chunk, total));
        let (scale, shift) = rest[..2 * channels].split_at_mut(channels);
        for c in 0..channels {
            let (sum, squares, count) = (total[c], total[channels + c], self.rows as f64);
            let (centre, inverse) = statistics(sum, squares, count, self.eps);
            let factor = inverse * f64::from(gamma[c]);
            mean[c] = centre as f32;
            let spread = squares / count - centre * centre;
            // Written so that rounding below zero is mended and NaN stays.
            variance[c] = if spread < 0.0 { 0.0 } else { spread as f32 };
            scale[c] = factor as f32;
            // What rounding the mean left over goes into the shift.
            shift[c] = (f64::from(beta[c]) - (centre - f64::from(mean[c])) * factor) as f32;
        }
        let affine = Affine { mean, scale, shift, activation: None };
        y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| affine.run(self.isa, x, y));
    }
}
