//! Group norm in two sweeps over the map, each split into fixed chunks of pixels.
//!
//! The first sweep leaves the sums of every group in every chunk; these are added in the order of the chunks,
//! whoever computed them. The second normalises.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::normalise::{Affine, column_sums, rows_per_task, statistics};
use crate::isa::simd;
use crate::ops::GroupNorm;
use rayon::prelude::*;

struct TwoSweeps {
    op: GroupNorm,
    batch: usize,
    pixels: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for GroupNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let x = context.inputs[0].shape;
        Box::new(TwoSweeps { op: *self, batch: x[0], pixels: x[1] * x[2], channels: x[3], isa: context.isa })
    }
}

impl TwoSweeps {
    /// Pixels of a chunk.
    fn rows(&self) -> usize {
        rows_per_task(self.channels)
    }

    /// Chunks of one image.
    fn chunks(&self) -> usize {
        self.pixels.div_ceil(self.rows())
    }

    /// Doubles of the first sweep: per image and chunk the sums of all channels, then their sums of squares.
    fn sums_len(&self) -> usize {
        2 * self.batch * self.chunks() * self.channels
    }

    /// Writes mean, scale and shift of every channel of one image, three runs of C floats.
    fn coefficients(&self, sums: &mut [f64], gamma: &[f32], beta: &[f32], out: &mut [f32]) {
        let channels = self.channels;
        let (total, rest) = sums.split_at_mut(2 * channels);
        rest.chunks_exact(2 * channels).for_each(|chunk| add(self.isa, chunk, total));
        let (sums, squares) = total.split_at(channels);
        let (mean, rest) = out.split_at_mut(channels);
        let (scale, shift) = rest.split_at_mut(channels);
        let width = channels / self.op.groups;
        let count = (self.pixels * width) as f64;
        for start in (0..channels).step_by(width) {
            let group = start..start + width;
            let (sum, square) = (sums[group.clone()].iter().sum(), squares[group.clone()].iter().sum());
            let (centre, inverse) = statistics(sum, square, count, self.op.eps);
            for c in group {
                let factor = inverse * f64::from(gamma[c]);
                mean[c] = centre as f32;
                scale[c] = factor as f32;
                // What rounding the mean left over goes into the shift.
                shift[c] = (f64::from(beta[c]) - (centre - f64::from(mean[c])) * factor) as f32;
            }
        }
    }
}

simd! {
    fn add(isa, x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

impl Kernel for TwoSweeps {
    fn name(&self) -> String {
        "two_sweeps".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.sums_len() + 3 * self.batch * self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, beta, ..] = args.inputs;
        if x.is_empty() {
            return;
        }
        let (image, chunk) = (self.pixels * self.channels, self.rows() * self.channels);
        let (sums, rest) = args.workspace.split_at_mut(2 * self.sums_len());
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(sums);
        let coefficients = &mut rest[..3 * self.batch * self.channels];
        let images = x.par_chunks(image).zip(sums.par_chunks_mut(2 * self.chunks() * self.channels));
        images.zip(coefficients.par_chunks_mut(3 * self.channels)).for_each(|((x, sums), coefficients)| {
            x.par_chunks(chunk).zip(sums.par_chunks_mut(2 * self.channels)).for_each(|(x, sums)| {
                let (sums, squares) = sums.split_at_mut(self.channels);
                column_sums(self.isa, x, sums, squares);
            });
            self.coefficients(sums, gamma, beta, coefficients);
        });
        let images = x.par_chunks(image).zip(coefficients.par_chunks(3 * self.channels));
        args.outputs[0].par_chunks_mut(image).zip(images).for_each(|(y, (x, coefficients))| {
            let (mean, rest) = coefficients.split_at(self.channels);
            let (scale, shift) = rest.split_at(self.channels);
            let affine = Affine { mean, scale, shift, activation: self.op.activation };
            y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| affine.run(self.isa, x, y));
        });
    }
}
