//! Products of two activations: large ones by GEMM, small ones by register tiles, where a transposed operand
//! is turned round first.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::product::{Matrix, product, transpose};
use crate::cpu::gemm::{BLayout, Product};
use crate::ops::MatMul;
use rayon::prelude::*;

/// Rows of a task.
const ROWS: usize = 16;

/// Multiplications of one product from which the GEMM's copies pay.
const LARGE: usize = 1 << 16;

struct Tiles {
    op: MatMul,
    extents: [usize; 4],
    /// Matrices of each operand: one, or one for each of the batch.
    matrices: [usize; 2],
    isa: Isa,
}

struct Packed {
    product: Product,
    batch: usize,
    /// Values from a matrix of each operand to the next; 0 if there is but one.
    steps: [usize; 2],
}

impl CpuOp for MatMul {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (a, b) = (context.inputs[0].shape, context.inputs[1].shape);
        let extents = self.extents(a.dims(), b.dims());
        let [batch, m, k, n] = extents;
        let matrices = [a[0], b[0]];
        if m * n * k < LARGE {
            return Box::new(Tiles { op: *self, extents, matrices, isa: context.isa });
        }
        let layout = if self.transpose_b { BLayout::Transposed } else { BLayout::RowMajor };
        let step = |matrices: usize, size: usize| if matrices == 1 { 0 } else { size };
        Box::new(Packed {
            product: Product { transpose_a: self.transpose_a, layout, extents: [m, n, k], isa: context.isa },
            batch,
            steps: [step(a[0], m * k), step(b[0], k * n)],
        })
    }
}

impl Kernel for Packed {
    fn name(&self) -> String {
        format!("gemm {}", self.product.isa)
    }

    fn workspace(&self) -> usize {
        self.product.workspace_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [m, n, _] = self.product.extents;
        let [a, b, ..] = args.inputs;
        for image in 0..self.batch {
            let y = &mut args.outputs[0][image * m * n..][..m * n];
            let (a, b) = (&a[image * self.steps[0]..], &b[image * self.steps[1]..]);
            self.product.run(a, b, y, args.workspace);
        }
    }
}

impl Kernel for Tiles {
    fn name(&self) -> String {
        "tiles".to_string()
    }

    fn workspace(&self) -> usize {
        let [_, m, k, n] = self.extents;
        let turned = [m * usize::from(self.op.transpose_a), n * usize::from(self.op.transpose_b)];
        k * (self.matrices[0] * turned[0] + self.matrices[1] * turned[1])
    }

    fn run(&self, args: &mut Args<'_>) {
        let [batch, m, k, n] = self.extents;
        if batch * m * n == 0 {
            return;
        }
        if k == 0 {
            args.outputs[0].fill(0.0);
            return;
        }
        let [mut a, mut b, ..] = args.inputs;
        let (turned_a, rest) = args.workspace.split_at_mut(if self.op.transpose_a { a.len() } else { 0 });
        if self.op.transpose_a {
            turn(a, k, m, turned_a);
            a = turned_a;
        }
        if self.op.transpose_b {
            let turned_b = &mut rest[..b.len()];
            turn(b, n, k, turned_b);
            b = turned_b;
        }
        args.outputs[0].par_chunks_mut(m * n).enumerate().for_each(|(image, y)| {
            let a = &a[image % self.matrices[0] * m * k..][..m * k];
            let b = &b[image % self.matrices[1] * k * n..][..k * n];
            y.par_chunks_mut(ROWS * n).zip(a.par_chunks(ROWS * k)).for_each(|(y, a)| {
                let (a, b) = (Matrix { data: a, stride: k }, Matrix { data: b, stride: n });
                product(self.isa, y.len() / n, k, n, a, b, y, n);
            });
        });
    }
}

/// Transposes every `[rows, columns]` matrix of a batch.
fn turn(x: &[f32], rows: usize, columns: usize, y: &mut [f32]) {
    // Tasks are runs of rows of the result, which are runs of columns of the source.
    const COLUMNS: usize = 64;
    x.par_chunks(rows * columns).zip(y.par_chunks_mut(rows * columns)).for_each(|(x, y)| {
        y.par_chunks_mut(COLUMNS * rows).enumerate().for_each(|(block, y)| {
            let source = Matrix { data: &x[block * COLUMNS..], stride: columns };
            transpose(source, rows, y.len() / rows, y, rows);
        });
    });
}
