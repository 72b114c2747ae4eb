//! Group norm in two sweeps over the map, each split into fixed chunks of pixels.
//!
//! The first sweep leaves the sums of every group in every chunk; these are added in the order of the chunks,
//! whoever computed them. The second normalises. The gradient goes the same way: all it needs of a group are
//! the sums of `dy`, `dy * x`, `x` and `x * x` of its channels.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::normalise::{Affine, add, column_sums, rows_per_task, statistics};
use super::normalise_grad::{AffineGrad, product_sums};
use crate::cpu::element::Element;
use crate::ops::{GroupNorm, GroupNormGrad};
use crate::tensor::DType;
use half::bf16;
use rayon::prelude::*;
use std::marker::PhantomData;

struct TwoSweeps<E> {
    op: GroupNorm,
    batch: usize,
    pixels: usize,
    channels: usize,
    isa: Isa,
    element: PhantomData<fn() -> E>,
}

impl CpuOp for GroupNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        TwoSweeps::<f32>::boxed(self, context)
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        let maps = [context.inputs[0].dtype, context.outputs[0].dtype];
        (maps == [DType::BF16; 2]).then(|| TwoSweeps::<bf16>::boxed(self, context))
    }
}

impl<E: Element> TwoSweeps<E> {
    fn boxed(op: &GroupNorm, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, isa, element) = (context.inputs[0].shape, context.isa, PhantomData);
        let (batch, pixels, channels) = (x[0], x[1] * x[2], x[3]);
        Box::new(TwoSweeps::<E> { op: *op, batch, pixels, channels, isa, element })
    }

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

impl<E: Element> Kernel for TwoSweeps<E> {
    fn name(&self) -> String {
        "two_sweeps".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.sums_len() + 3 * self.batch * self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [_, gamma, beta, ..] = args.inputs;
        let (image, chunk) = (self.pixels * self.channels, self.rows() * self.channels);
        let x = args.map::<E>(0, self.batch * image);
        if x.is_empty() {
            return;
        }
        let workspace = std::mem::take(&mut args.workspace);
        let y = args.map_mut::<E>(0, x.len());
        let (sums, rest) = workspace.split_at_mut(2 * self.sums_len());
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
        y.par_chunks_mut(image).zip(images).for_each(|(y, (x, coefficients))| {
            let (mean, rest) = coefficients.split_at(self.channels);
            let (scale, shift) = rest.split_at(self.channels);
            let affine = Affine { mean, scale, shift, activation: self.op.activation };
            y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| affine.run(self.isa, x, y));
        });
    }
}

struct TwoSweepsGrad {
    op: GroupNormGrad,
    batch: usize,
    pixels: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for GroupNormGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, isa) = (context.inputs[0].shape, context.isa);
        Box::new(TwoSweepsGrad { op: *self, batch: x[0], pixels: x[1] * x[2], channels: x[3], isa })
    }
}

impl TwoSweepsGrad {
    /// Pixels of a chunk.
    fn rows(&self) -> usize {
        rows_per_task(self.channels)
    }

    /// Doubles of the first sweep over one image: four sums a channel and chunk.
    fn sums_len(&self) -> usize {
        4 * self.pixels.div_ceil(self.rows()) * self.channels
    }

    /// From the sums of an image's chunks, the coefficients of every channel. The image's share of `dgamma`
    /// and of `dbeta` replaces the first of the sums.
    fn coefficients(&self, sums: &mut [f64], gamma: &[f32], out: &mut [f32]) {
        let channels = self.channels;
        let (total, rest) = sums.split_at_mut(4 * channels);
        rest.chunks_exact(4 * channels).for_each(|chunk| add(self.isa, chunk, total));
        let [dy, products, x, squares] = AffineGrad::quarters_mut(total);
        let [mean, a, b, d] = AffineGrad::quarters_mut(out);
        let width = channels / self.op.groups;
        let count = (self.pixels * width) as f64;
        for start in (0..channels).step_by(width) {
            let group = start..start + width;
            let (sum, square) = (x[group.clone()].iter().sum(), squares[group.clone()].iter().sum());
            let (centre, inverse) = statistics(sum, square, count, self.op.eps);
            let (mut first, mut second) = (0.0, 0.0);
            for c in group.clone() {
                let (dbeta, dgamma) = (dy[c], (products[c] - centre * dy[c]) * inverse);
                first += f64::from(gamma[c]) * dbeta;
                second += f64::from(gamma[c]) * dgamma;
                (dy[c], products[c]) = (dgamma, dbeta);
            }
            let slope = -inverse * inverse * second / count;
            for c in group {
                mean[c] = centre as f32;
                a[c] = (inverse * f64::from(gamma[c])) as f32;
                b[c] = slope as f32;
                // What rounding the mean left over goes into the constant.
                d[c] = (-inverse * first / count - slope * (centre - f64::from(mean[c]))) as f32;
            }
        }
    }
}

impl Kernel for TwoSweepsGrad {
    fn name(&self) -> String {
        "two_sweeps".to_string()
    }

    fn workspace(&self) -> usize {
        self.batch * (2 * self.sums_len() + 4 * self.channels)
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, dy, ..] = args.inputs;
        let [dx, dgamma, dbeta, ..] = &mut args.outputs;
        if x.is_empty() {
            dgamma.fill(0.0);
            dbeta.fill(0.0);
            return;
        }
        let (image, chunk, sums_len) =
            (self.pixels * self.channels, self.rows() * self.channels, self.sums_len());
        let (sums, rest) = args.workspace.split_at_mut(2 * self.batch * sums_len);
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(sums);
        let coefficients = &mut rest[..4 * self.batch * self.channels];
        let images = x.par_chunks(image).zip(dy.par_chunks(image)).zip(sums.par_chunks_mut(sums_len));
        images.zip(coefficients.par_chunks_mut(4 * self.channels)).for_each(
            |(((x, dy), sums), coefficients)| {
                let chunks = x.par_chunks(chunk).zip(dy.par_chunks(chunk));
                chunks.zip(sums.par_chunks_mut(4 * self.channels)).for_each(|((x, dy), sums)| {
                    product_sums(self.isa, x, dy, sums);
                });
                self.coefficients(sums, gamma, coefficients);
            },
        );
        for c in 0..self.channels {
            let of_images = |at: usize| sums[at..].iter().step_by(sums_len).sum::<f64>() as f32;
            (dgamma[c], dbeta[c]) = (of_images(c), of_images(self.channels + c));
        }
        let images = x.par_chunks(image).zip(dy.par_chunks(image));
        let images = images.zip(coefficients.par_chunks(4 * self.channels));
        dx.par_chunks_mut(image).zip(images).for_each(|(dx, ((x, dy), coefficients))| {
            let affine = AffineGrad::new(coefficients);
            let chunks = x.par_chunks(chunk).zip(dy.par_chunks(chunk));
            dx.par_chunks_mut(chunk).zip(chunks).for_each(|(dx, (x, dy))| affine.run(self.isa, x, dy, dx));
        });
    }
}
