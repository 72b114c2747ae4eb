//! Frozen batch norm that no convolution could absorb: one multiply-add per element; and the gradient of
//! batch norm with given statistics, frozen or of the batch.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::normalise::{Affine, add, rows_per_task};
use super::normalise_grad::{AffineGrad, centred_sums};
use crate::ops::{BatchNorm, BatchNormGrad};
use crate::tensor::Shape;
use rayon::prelude::*;

struct Frozen {
    eps: f32,
    channels: usize,
    isa: Isa,
}

impl CpuOp for BatchNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Frozen { eps: self.eps, channels: context.inputs[0].shape.last(), isa: context.isa })
    }
}

impl Kernel for Frozen {
    fn name(&self) -> String {
        "affine".to_string()
    }

    fn workspace(&self) -> usize {
        self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, beta, mean, variance, ..] = args.inputs;
        let scale = &mut args.workspace[..self.channels];
        for (c, scale) in scale.iter_mut().enumerate() {
            *scale = (f64::from(gamma[c]) / (f64::from(variance[c]) + f64::from(self.eps)).sqrt()) as f32;
        }
        let affine = Affine { mean, scale, shift: beta, activation: None };
        let chunk = rows_per_task(self.channels) * self.channels.max(1);
        let y = args.outputs[0].par_chunks_mut(chunk);
        y.zip(x.par_chunks(chunk)).for_each(|(y, x)| affine.run(self.isa, x, y));
    }
}

/// One sweep leaves the sums of every chunk of rows, the second computes `dx`.
pub(crate) struct TwoSweepsGrad {
    eps: f32,
    /// The statistics are those of the batch, and depend on `x`.
    through_statistics: bool,
    rows: usize,
    channels: usize,
    isa: Isa,
}

impl TwoSweepsGrad {
    pub(crate) fn new(eps: f32, through_statistics: bool, x: Shape, isa: Isa) -> Self {
        let channels = x.last();
        TwoSweepsGrad { eps, through_statistics, rows: x.len() / channels.max(1), channels, isa }
    }

    fn chunks(&self) -> usize {
        self.rows.div_ceil(rows_per_task(self.channels))
    }
}

impl CpuOp for BatchNormGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(TwoSweepsGrad::new(self.eps, false, context.inputs[0].shape, context.isa))
    }
}

impl Kernel for TwoSweepsGrad {
    fn name(&self) -> String {
        "two_sweeps".to_string()
    }

    fn workspace(&self) -> usize {
        4 * (self.chunks() + 1) * self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, mean, variance, dy, ..] = args.inputs;
        let [dx, dgamma, dbeta, ..] = &mut args.outputs;
        let channels = self.channels;
        if x.is_empty() {
            dgamma.fill(0.0);
            dbeta.fill(0.0);
            return;
        }
        let chunk = rows_per_task(channels) * channels;
        let (sums, rest) = args.workspace.split_at_mut(4 * self.chunks() * channels);
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(sums);
        let coefficients = &mut rest[..4 * channels];
        let chunks = x.par_chunks(chunk).zip(dy.par_chunks(chunk));
        chunks.zip(sums.par_chunks_mut(2 * channels)).for_each(|((x, dy), sums)| {
            centred_sums(self.isa, x, dy, mean, sums);
        });
        let (total, rest) = sums.split_at_mut(2 * channels);
        rest.chunks_exact(2 * channels).for_each(|chunk| add(self.isa, chunk, total));
        let [centre, a, b, d] = AffineGrad::quarters_mut(coefficients);
        centre.copy_from_slice(mean);
        let count = if self.through_statistics { self.rows as f64 } else { f64::INFINITY };
        for c in 0..channels {
            let inverse = 1.0 / (f64::from(variance[c]) + f64::from(self.eps)).sqrt();
            let (scale, sum, product) =
                (inverse * f64::from(gamma[c]), total[c], total[channels + c] * inverse);
            (dgamma[c], dbeta[c]) = (product as f32, sum as f32);
            a[c] = scale as f32;
            b[c] = (-scale * inverse * product / count) as f32;
            d[c] = (-scale * sum / count) as f32;
        }
        let affine = AffineGrad::new(coefficients);
        let chunks = x.par_chunks(chunk).zip(dy.par_chunks(chunk));
        dx.par_chunks_mut(chunk).zip(chunks).for_each(|(dx, (x, dy))| affine.run(self.isa, x, dy, dx));
    }
}
