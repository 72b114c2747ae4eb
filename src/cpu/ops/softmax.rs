//! Softmax along the last axis row by row, along any other axis by columns.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::{exp, exponentials, maximum};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::Softmax;
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
            rows(self.isa, self.length, y);
        });
    }
}

simd! {
    /// Softmax of every row of `length` elements, in place.
    fn rows(isa, length: usize, y: &mut [f32]) {
        for row in y.chunks_exact_mut(length) {
            let max = maximum(row);
            let inverse = 1.0 / exponentials(row, max, 1.0);
            row.iter_mut().for_each(|v| *v *= inverse);
        }
    }
}

/// Two sweeps: the first finds maximum and sum of every column, the second computes the exponentials once more,
/// which costs less than a third sweep over memory.
struct Columns {
    extents: Extents,
    outer: usize,
    isa: Isa,
}

impl Kernel for Columns {
    fn name(&self) -> String {
        "columns".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.outer * self.extents.inner
    }

    fn run(&self, args: &mut Args<'_>) {
        let Extents { length, inner } = self.extents;
        let slab = length * inner;
        if slab == 0 {
            return;
        }
        let (maxima, rest) = args.workspace.split_at_mut(self.outer * inner);
        let inverses = &mut rest[..self.outer * inner];
        let columns = maxima.par_chunks_mut(inner).zip(inverses.par_chunks_mut(inner));
        columns.zip(args.inputs[0].par_chunks(slab)).for_each(|((maxima, inverses), x)| {
            let blocks = maxima.par_chunks_mut(COLUMNS).zip(inverses.par_chunks_mut(COLUMNS));
            blocks.enumerate().for_each(|(block, (maxima, inverses))| {
                column_statistics(self.isa, &x[block * COLUMNS..], inner, maxima, inverses);
            });
        });
        // A task takes whole rows, at least as many as make it worth its while.
        let chunk = (ELEMENTS_PER_TASK / inner).clamp(1, length) * inner;
        let columns = maxima.par_chunks(inner).zip(inverses.par_chunks(inner));
        let slabs = args.outputs[0].par_chunks_mut(slab).zip(args.inputs[0].par_chunks(slab));
        slabs.zip(columns).for_each(|((y, x), (maxima, inverses))| {
            y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
                weigh(self.isa, x, maxima, inverses, y);
            });
        });
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
