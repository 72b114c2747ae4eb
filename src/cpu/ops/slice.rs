//! Cutting a range out of an axis and putting it back among zeros, in fixed chunks of the output.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::slice::{Slice, Unslice};
use rayon::prelude::*;

/// The axes before the cut one are rows; of each row one run is kept.
#[derive(Clone, Copy)]
struct Runs {
    /// Floats in a whole row.
    row: usize,
    /// First float of the run.
    offset: usize,
    /// Floats in the run.
    len: usize,
}

impl CpuOp for Slice {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let inner: usize = context.inputs[0].shape.dims()[self.axis + 1..].iter().product();
        let row = context.inputs[0].shape[self.axis] * inner;
        Box::new(Runs { row, offset: self.start * inner, len: self.len * inner })
    }
}

impl Kernel for Runs {
    fn name(&self) -> String {
        "slice".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let x = args.inputs[0];
        args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(task, y)| {
            let start = task * ELEMENTS_PER_TASK;
            let mut at = 0;
            while at < y.len() {
                let (row, column) = ((start + at) / self.len, (start + at) % self.len);
                let len = (self.len - column).min(y.len() - at);
                let source = row * self.row + self.offset + column;
                y[at..at + len].copy_from_slice(&x[source..source + len]);
                at += len;
            }
        });
    }
}

struct Zeros(Runs);

impl CpuOp for Unslice {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let inner: usize = context.inputs[0].shape.dims()[self.axis + 1..].iter().product();
        let len = context.inputs[0].shape[self.axis] * inner;
        Box::new(Zeros(Runs { row: self.size * inner, offset: self.start * inner, len }))
    }
}

impl Kernel for Zeros {
    fn name(&self) -> String {
        "unslice".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (x, Runs { row, offset, len }) = (args.inputs[0], self.0);
        args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(task, y)| {
            let start = task * ELEMENTS_PER_TASK;
            let mut at = 0;
            while at < y.len() {
                let (index, column) = ((start + at) / row, (start + at) % row);
                // Up to the run, within it, or up to the end of the row.
                let (zero, end) = match column {
                    _ if column < offset => (true, offset),
                    _ if column < offset + len => (false, offset + len),
                    _ => (true, row),
                };
                let part = (end - column).min(y.len() - at);
                let y = &mut y[at..at + part];
                if zero {
                    y.fill(0.0);
                } else {
                    y.copy_from_slice(&x[index * len + column - offset..][..part]);
                }
                at += part;
            }
        });
    }
}
