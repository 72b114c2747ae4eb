//! Joining along an axis: runs of the inputs, copied in fixed chunks of the output.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::concat::Concat;
use rayon::prelude::*;

/// The axes before the joined one are rows; each row of the output is a run of every input in turn.
struct Runs {
    /// Floats in an output row.
    row: usize,
    runs: Vec<Run>,
}

struct Run {
    /// Position in the output row.
    offset: usize,
    /// Floats.
    len: usize,
    /// Rows of the input; it starts over after the last (repetition along axis 0).
    rows: usize,
}

impl CpuOp for Concat {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let mut row = 0;
        let runs = context.inputs.iter().map(|ty| {
            let (rows, run) = ty.shape.dims().split_at(self.axis);
            let (rows, len) = (rows.iter().product(), run.iter().product());
            row += len;
            Run { offset: row - len, len, rows }
        });
        let runs = runs.collect();
        Box::new(Runs { row, runs })
    }
}

impl Kernel for Runs {
    fn name(&self) -> String {
        "concat".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let inputs = args.inputs;
        args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(task, y)| {
            let start = task * ELEMENTS_PER_TASK;
            let mut at = 0;
            while at < y.len() {
                let (row, column) = ((start + at) / self.row, (start + at) % self.row);
                for (run, x) in self.runs.iter().zip(&inputs) {
                    let skip = column.max(run.offset) - run.offset;
                    if skip >= run.len || at == y.len() {
                        continue;
                    }
                    let len = (run.len - skip).min(y.len() - at);
                    let source = (row % run.rows) * run.len + skip;
                    y[at..at + len].copy_from_slice(&x[source..source + len]);
                    at += len;
                }
            }
        });
    }
}
