//! Rows by their numbers: copies, some rows a task.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::GatherRows;
use rayon::prelude::*;

struct Rows {
    op: GatherRows,
    /// Rows and columns of an image, and how many rows are taken.
    rows: usize,
    columns: usize,
    taken: usize,
}

impl CpuOp for GatherRows {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, indices) = (context.inputs[0].shape, context.inputs[1].shape);
        Box::new(Rows { op: *self, rows: x[1], columns: x[2], taken: indices[1] })
    }
}

impl Kernel for Rows {
    fn name(&self) -> String {
        "copy".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (indices, x, columns) = (args.input_i32(1), args.inputs[0], self.columns);
        if columns == 0 {
            return;
        }
        let per_task = ELEMENTS_PER_TASK.div_ceil(columns);
        args.outputs[0].par_chunks_mut(per_task * columns).enumerate().for_each(|(task, y)| {
            for (i, y) in y.chunks_exact_mut(columns).enumerate() {
                let place = task * per_task + i;
                match self.op.row(indices[place], self.rows) {
                    Some(row) => {
                        let row = place / self.taken * self.rows + row;
                        y.copy_from_slice(&x[row * columns..][..columns]);
                    }
                    None => y.fill(0.0),
                }
            }
        });
    }
}
