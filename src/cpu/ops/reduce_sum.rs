//! Sums over leading axes: the operand is a matrix whose columns are added up.
//!
//! With few columns a task takes a run of rows and leaves its sums, which are then added in the order of the
//! runs; with many it takes a run of columns. Eight rows are added in `f32` by pairs, these sums in double
//! precision.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::normalise::rows_per_task;
use crate::isa::simd;
use crate::ops::ReduceSum;
use rayon::prelude::*;

/// Columns that are split among tasks rather than rows.
const MANY: usize = 4096;
/// Columns of a task.
const COLUMNS: usize = 512;
/// Rows narrower than this are taken several at a time.
const NARROW: usize = 64;
/// Most runs of rows.
const RUNS: usize = 128;

impl CpuOp for ReduceSum {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (columns, isa) = (self.shape.len(), context.isa);
        let rows = context.inputs[0].shape.len() / columns.max(1);
        if columns >= MANY {
            return Box::new(Wide { columns, isa });
        }
        let run = rows_per_task(columns).max(rows.div_ceil(RUNS));
        Box::new(Tall { columns, rows, run, isa })
    }
}

struct Tall {
    columns: usize,
    rows: usize,
    /// Rows of a task.
    run: usize,
    isa: Isa,
}

impl Tall {
    fn runs(&self) -> usize {
        self.rows.div_ceil(self.run)
    }

    /// Rows taken at a time, as one wide row whose parts are added up in the end.
    fn fold(&self) -> usize {
        (NARROW / self.columns.max(1)).max(1)
    }

    fn wide(&self) -> usize {
        self.fold() * self.columns
    }
}

impl Kernel for Tall {
    fn name(&self) -> String {
        "rows".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.runs() * self.wide()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (columns, wide) = (self.columns, self.wide());
        if args.inputs[0].is_empty() {
            args.outputs[0].fill(0.0);
            return;
        }
        // Workspaces begin on cache lines, so the floats are aligned as doubles.
        let sums: &mut [f64] = bytemuck::cast_slice_mut(&mut args.workspace[..self.workspace()]);
        let runs = args.inputs[0].par_chunks(self.run * columns).zip(sums.par_chunks_mut(wide));
        runs.for_each(|(x, sums)| {
            let (whole, rest) = x.split_at(x.len() / wide * wide);
            add_rows(self.isa, whole, sums);
            sums.iter_mut().zip(rest).for_each(|(sum, &v)| *sum += f64::from(v));
        });
        for (c, y) in args.outputs[0].iter_mut().enumerate() {
            *y = sums[c..].iter().step_by(columns).sum::<f64>() as f32;
        }
    }
}

simd! {
    /// The sums of the columns of whole rows.
    fn add_rows(isa, x: &[f32], sums: &mut [f64]) {
        let columns = sums.len();
        sums.fill(0.0);
        let mut blocks = x.chunks_exact(8 * columns);
        for block in &mut blocks {
            let row = |i: usize| &block[i * columns..(i + 1) * columns];
            add_eight([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)], sums);
        }
        for row in blocks.remainder().chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
    }
}

/// Adds eight rows to the sums of their columns.
#[inline(always)]
fn add_eight(rows: [&[f32]; 8], sums: &mut [f64]) {
    let [a, b, c, d, e, f, g, h] = rows.map(|row| &row[..sums.len()]);
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum += f64::from(((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i])));
    }
}

struct Wide {
    columns: usize,
    isa: Isa,
}

impl Kernel for Wide {
    fn name(&self) -> String {
        "columns".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let x = args.inputs[0];
        args.outputs[0].par_chunks_mut(COLUMNS).enumerate().for_each(|(task, y)| {
            add_columns(self.isa, x, self.columns, task * COLUMNS, y);
        });
    }
}

simd! {
    /// The sums of the columns `first ..` of a matrix with rows of `stride` floats.
    fn add_columns(isa, x: &[f32], stride: usize, first: usize, y: &mut [f32]) {
        let mut sums = [0.0; COLUMNS];
        let sums = &mut sums[..y.len()];
        let mut blocks = x.chunks_exact(8 * stride);
        for block in &mut blocks {
            let row = |i: usize| &block[i * stride + first..][..y.len()];
            add_eight([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)], sums);
        }
        for row in blocks.remainder().chunks_exact(stride) {
            sums.iter_mut().zip(&row[first..]).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum as f32);
    }
}
