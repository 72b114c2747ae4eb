//! Folding a batch norm into a filter, and back for the gradient: a task scales a few filters.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::normalise::dot;
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::{FoldBatchNorm, FoldBatchNormGrad};
use crate::tensor::Shape;
use rayon::prelude::*;

/// Extent of the filter.
#[derive(Clone, Copy)]
struct Filters {
    eps: f32,
    /// Floats of one filter.
    taps: usize,
    filters: usize,
    isa: Isa,
}

impl Filters {
    fn new(eps: f32, filter: Shape, isa: Isa) -> Self {
        Filters { eps, taps: filter.dims()[1..].iter().product(), filters: filter[0], isa }
    }

    /// Filters of a task.
    fn per_task(&self) -> usize {
        (ELEMENTS_PER_TASK / self.taps.max(1)).max(1)
    }

    fn chunk(&self) -> usize {
        self.per_task() * self.taps.max(1)
    }

    fn inverse(&self, variance: f32) -> f64 {
        1.0 / (f64::from(variance) + f64::from(self.eps)).sqrt()
    }
}

struct Fold(Filters);

impl CpuOp for FoldBatchNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Fold(Filters::new(self.eps, context.inputs[0].shape, context.isa)))
    }
}

impl Kernel for Fold {
    fn name(&self) -> String {
        "scale".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [filter, gamma, beta, mean, variance, ..] = args.inputs;
        let [folded, bias, ..] = &mut args.outputs;
        let scale = |k: usize| f64::from(gamma[k]) / (f64::from(variance[k]) + f64::from(self.0.eps)).sqrt();
        let tasks = folded.par_chunks_mut(self.0.chunk()).zip(filter.par_chunks(self.0.chunk()));
        tasks.enumerate().for_each(|(task, (folded, filter))| {
            let filters = folded.chunks_exact_mut(self.0.taps).zip(filter.chunks_exact(self.0.taps));
            for (i, (folded, filter)) in filters.enumerate() {
                scaled(self.0.isa, filter, scale(task * self.0.per_task() + i), folded);
            }
        });
        for (k, bias) in bias.iter_mut().enumerate() {
            *bias = (f64::from(beta[k]) - f64::from(mean[k]) * scale(k)) as f32;
        }
    }
}

struct FoldGrad(Filters);

impl CpuOp for FoldBatchNormGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(FoldGrad(Filters::new(self.eps, context.inputs[0].shape, context.isa)))
    }
}

impl Kernel for FoldGrad {
    fn name(&self) -> String {
        "scale".to_string()
    }

    /// A dot product per filter, in double precision.
    fn workspace(&self) -> usize {
        2 * self.0.filters
    }

    fn run(&self, args: &mut Args<'_>) {
        let [filter, gamma, mean, variance, grad, dbias, ..] = args.inputs;
        let [dfilter, dgamma, dbeta, ..] = &mut args.outputs;
        if self.0.filters == 0 {
            return;
        }
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let dots: &mut [f64] = bytemuck::cast_slice_mut(&mut args.workspace[..2 * self.0.filters]);
        dots.fill(0.0);
        let (taps, chunk) = (self.0.taps, self.0.chunk());
        let tasks = dfilter.par_chunks_mut(chunk).zip(filter.par_chunks(chunk)).zip(grad.par_chunks(chunk));
        tasks.zip(dots.par_chunks_mut(self.0.per_task())).enumerate().for_each(
            |(task, (((dfilter, filter), grad), dots))| {
                let filters = filter.chunks_exact(taps).zip(grad.chunks_exact(taps));
                let results = dfilter.chunks_exact_mut(taps).zip(dots);
                for (i, ((filter, grad), (dfilter, dot))) in filters.zip(results).enumerate() {
                    let k = task * self.0.per_task() + i;
                    let scale = f64::from(gamma[k]) * self.0.inverse(variance[k]);
                    *dot = scaled_with_dot(self.0.isa, grad, scale, filter, dfilter);
                }
            },
        );
        for (k, &dot) in dots.iter().enumerate() {
            let product = dot - f64::from(dbias[k]) * f64::from(mean[k]);
            dgamma[k] = (product * self.0.inverse(variance[k])) as f32;
        }
        dbeta.copy_from_slice(dbias);
    }
}

simd! {
    /// `y = x * scale`, rounded once.
    fn scaled(isa, x: &[f32], scale: f64, y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = (f64::from(x) * scale) as f32);
    }
}

simd! {
    /// `y = x * scale`; gives the dot product of `x` and `w`.
    fn scaled_with_dot(isa, x: &[f32], scale: f64, w: &[f32], y: &mut [f32]) -> f64 {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * scale as f32);
        dot(x, w)
    }
}
