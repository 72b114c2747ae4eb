//! Softmax along the last axis row by row, along any other axis by columns.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::{exp, exponentials, maximum};
use super::normalise::dot;
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::{Softmax, SoftmaxGrad};
use rayon::prelude::*;

/// Columns of a task: three vectors of them stay in the first-level cache.
const COLUMNS: usize = 512;

/// Elements of the axis, and of all axes after it.
struct Extents {
    length: usize,
    inner: usize,
}

impl CpuOp for Softmax {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let x = context.inputs[0].shape;
        let (length, inner) = (x[self.axis], x.dims()[self.axis + 1..].iter().product());
        let (isa, outer) = (context.isa, x.dims()[..self.axis].iter().product());
        match inner {
            1 => Box::new(Rows { length, isa }),
            _ => Box::new(Columns { extents: Extents { length, inner }, outer, isa }),
        }
    }
}

struct Rows {
    length: usize,
    isa: Isa,
}

impl Kernel for Rows {
    fn name(&self) -> String {
        "rows".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let chunk = (ELEMENTS_PER_TASK / self.length.max(1)).max(1) * self.length.max(1);
        args.outputs[0].par_chunks_mut(chunk).zip(args.inputs[0].par_chunks(chunk)).for_each(|(y, x)| {
            y.copy_from_slice(x);
            rows(self.isa, self.length, self.length, y);
        });
    }
}

simd! {
    /// Softmax of every row of `length` elements, in place; rows lie `stride` apart.
    pub(super) fn rows(isa, length: usize, stride: usize, y: &mut [f32]) {
        for row in y.chunks_exact_mut(stride) {
            let row = &mut row[..length];
            let max = maximum(row);
            let inverse = 1.0 / exponentials(row, max, 1.0);
            row.iter_mut().for_each(|v| *v *= inverse);
        }
    }
}

/// Two sweeps: the first finds maximum and sum of every column, the second computes the exponentials once
/// more, which costs less than a third sweep over memory.
pub(super) struct Columns {
    extents: Extents,
    outer: usize,
    isa: Isa,
}

impl Columns {
    /// Of one matrix `[length, columns]`.
    pub(super) fn new(length: usize, columns: usize, isa: Isa) -> Self {
        Columns { extents: Extents { length, inner: columns }, outer: 1, isa }
    }

    /// Softmax of the columns of `x` into `y`, with [`Kernel::workspace`] floats of scratch.
    pub(super) fn apply(&self, x: &[f32], y: &mut [f32], workspace: &mut [f32]) {
        let Extents { length, inner } = self.extents;
        let slab = length * inner;
        if slab == 0 {
            return;
        }
        let (maxima, rest) = workspace.split_at_mut(self.outer * inner);
        let inverses = &mut rest[..self.outer * inner];
        let columns = maxima.par_chunks_mut(inner).zip(inverses.par_chunks_mut(inner));
        columns.zip(x.par_chunks(slab)).for_each(|((maxima, inverses), x)| {
            let blocks = maxima.par_chunks_mut(COLUMNS).zip(inverses.par_chunks_mut(COLUMNS));
            blocks.enumerate().for_each(|(block, (maxima, inverses))| {
                column_statistics(self.isa, &x[block * COLUMNS..], inner, maxima, inverses);
            });
        });
        // A task takes whole rows, at least as many as make it worth its while.
        let chunk = (ELEMENTS_PER_TASK / inner).clamp(1, length) * inner;
        let columns = maxima.par_chunks(inner).zip(inverses.par_chunks(inner));
        let slabs = y.par_chunks_mut(slab).zip(x.par_chunks(slab));
        slabs.zip(columns).for_each(|((y, x), (maxima, inverses))| {
            y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
                weigh(self.isa, x, maxima, inverses, y);
            });
        });
    }
}

impl Kernel for Columns {
    fn name(&self) -> String {
        "columns".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.outer * self.extents.inner
    }

    fn run(&self, args: &mut Args<'_>) {
        self.apply(args.inputs[0], args.outputs[0], args.workspace);
    }
}

simd! {
    /// Maximum and inverse sum of exponentials of the first `maxima.len()` columns of `x`, whose rows lie
    /// `stride` apart.
    fn column_statistics(isa, x: &[f32], stride: usize, maxima: &mut [f32], inverses: &mut [f32]) {
        let columns = maxima.len();
        let sums = &mut inverses[..columns];
        maxima.fill(f32::NEG_INFINITY);
        for row in x.chunks(stride) {
            for (max, &v) in maxima.iter_mut().zip(row) {
                *max = if v > *max { v } else { *max };
            }
        }
        sums.fill(0.0);
        // Sums of 32 rows are added to the total: fewer roundings on each partial sum.
        for rows in x.chunks(32 * stride) {
            let mut partial = [0.0; COLUMNS];
            for row in rows.chunks(stride) {
                for ((sum, &v), &max) in partial.iter_mut().zip(row).zip(&*maxima) {
                    *sum += exp(v - max);
                }
            }
            sums.iter_mut().zip(&partial).for_each(|(sum, partial)| *sum += partial);
        }
        sums.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
    }
}

simd! {
    /// `y = exp(x - max) * inverse` for whole rows.
    fn weigh(isa, x: &[f32], maxima: &[f32], inverses: &[f32], y: &mut [f32]) {
        let columns = maxima.len();
        let inverses = &inverses[..columns];
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            for c in 0..columns {
                y[c] = exp(x[c] - maxima[c]) * inverses[c];
            }
        }
    }
}

impl CpuOp for SoftmaxGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let y = context.inputs[0].shape;
        let (length, inner) = (y[self.axis], y.dims()[self.axis + 1..].iter().product());
        let (isa, outer) = (context.isa, y.dims()[..self.axis].iter().product());
        match inner {
            1 => Box::new(RowsGrad { length, isa }),
            _ => Box::new(ColumnsGrad { extents: Extents { length, inner }, outer, isa }),
        }
    }
}

struct RowsGrad {
    length: usize,
    isa: Isa,
}

impl Kernel for RowsGrad {
    fn name(&self) -> String {
        "rows".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [y, dy, ..] = args.inputs;
        let chunk = (ELEMENTS_PER_TASK / self.length.max(1)).max(1) * self.length.max(1);
        let tasks = y.par_chunks(chunk).zip(dy.par_chunks(chunk));
        args.outputs[0].par_chunks_mut(chunk).zip(tasks).for_each(|(dx, (y, dy))| {
            rows_grad(self.isa, self.length, y, dy, dx);
        });
    }
}

simd! {
    fn rows_grad(isa, length: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        let rows = y.chunks_exact(length).zip(dy.chunks_exact(length));
        for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(length)) {
            let dot = dot(y, dy) as f32;
            dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &dy)| *dx = y * (dy - dot));
        }
    }
}

/// One sweep for the sum of every column, one for `dx`.
struct ColumnsGrad {
    extents: Extents,
    outer: usize,
    isa: Isa,
}

impl Kernel for ColumnsGrad {
    fn name(&self) -> String {
        "columns".to_string()
    }

    fn workspace(&self) -> usize {
        self.outer * self.extents.inner
    }

    fn run(&self, args: &mut Args<'_>) {
        let [y, dy, ..] = args.inputs;
        let Extents { length, inner } = self.extents;
        let slab = length * inner;
        if slab == 0 {
            return;
        }
        let dots = &mut args.workspace[..self.outer * inner];
        let slabs = y.par_chunks(slab).zip(dy.par_chunks(slab));
        dots.par_chunks_mut(inner).zip(slabs).for_each(|(dots, (y, dy))| {
            dots.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, dots)| {
                column_dots(self.isa, &y[block * COLUMNS..], &dy[block * COLUMNS..], inner, dots);
            });
        });
        let chunk = (ELEMENTS_PER_TASK / inner).clamp(1, length) * inner;
        let slabs = y.par_chunks(slab).zip(dy.par_chunks(slab)).zip(dots.par_chunks(inner));
        args.outputs[0].par_chunks_mut(slab).zip(slabs).for_each(|(dx, ((y, dy), dots))| {
            let chunks = y.par_chunks(chunk).zip(dy.par_chunks(chunk));
            dx.par_chunks_mut(chunk).zip(chunks).for_each(|(dx, (y, dy))| {
                columns_grad(self.isa, y, dy, dots, dx);
            });
        });
    }
}

simd! {
    /// Dot products of the first `dots.len()` columns of `y` and `dy`, whose rows lie `stride` apart.
    fn column_dots(isa, y: &[f32], dy: &[f32], stride: usize, dots: &mut [f32]) {
        let mut sums = [0.0; COLUMNS];
        let sums = &mut sums[..dots.len()];
        for (y, dy) in y.chunks(stride).zip(dy.chunks(stride)) {
            for ((sum, &y), &dy) in sums.iter_mut().zip(y).zip(dy) {
                *sum += f64::from(y) * f64::from(dy);
            }
        }
        dots.iter_mut().zip(sums).for_each(|(dot, sum)| *dot = *sum as f32);
    }
}

simd! {
    /// `dx = y * (dy - dot)` for whole rows.
    fn columns_grad(isa, y: &[f32], dy: &[f32], dots: &[f32], dx: &mut [f32]) {
        let columns = dots.len();
        let rows = y.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(columns)) {
            for c in 0..columns {
                dx[c] = y[c] * (dy[c] - dots[c]);
            }
        }
    }
}
