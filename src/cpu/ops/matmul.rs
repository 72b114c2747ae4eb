//! Products of two activations by register tiles; a transposed operand is turned round first.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::product::{Matrix, product, transpose};
use crate::ops::MatMul;
use rayon::prelude::*;

/// Rows of a task.
const ROWS: usize = 16;

struct Tiles {
    op: MatMul,
    extents: [usize; 4],
    isa: Isa,
}

impl CpuOp for MatMul {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        if context.inputs[0].shape[0] != context.inputs[1].shape[0] {
            return super::reference::Reference::new(*self, context);
        }
        let extents = self.extents(context.inputs[0].shape.dims(), context.inputs[1].shape.dims());
        Box::new(Tiles { op: *self, extents, isa: context.isa })
    }
}

impl Kernel for Tiles {
    fn name(&self) -> String {
        "tiles".to_string()
    }

    fn workspace(&self) -> usize {
        let [batch, m, k, n] = self.extents;
        batch * k * (m * usize::from(self.op.transpose_a) + n * usize::from(self.op.transpose_b))
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
        let (turned_a, rest) = args.workspace.split_at_mut(batch * m * k * usize::from(self.op.transpose_a));
        if self.op.transpose_a {
            turn(a, k, m, turned_a);
            a = turned_a;
        }
        if self.op.transpose_b {
            let turned_b = &mut rest[..batch * k * n];
            turn(b, n, k, turned_b);
            b = turned_b;
        }
        let factors = a.par_chunks(m * k).zip(b.par_chunks(k * n));
        args.outputs[0].par_chunks_mut(m * n).zip(factors).for_each(|(y, (a, b))| {
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
