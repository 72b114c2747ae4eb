//! Local maxima: one task a row of the map, which is compared with the rows of its windows, vectorised over
//! channels.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::isa::{Isa, simd};
use crate::ops::LocalMaxima;
use crate::tensor::Shape;
use rayon::prelude::*;

struct Windows {
    op: LocalMaxima,
    map: Shape,
    isa: Isa,
}

impl CpuOp for LocalMaxima {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Windows { op: *self, map: context.inputs[0].shape, isa: context.isa })
    }
}

impl Kernel for Windows {
    fn name(&self) -> String {
        format!("windows {}", self.isa)
    }

    fn run(&self, args: &mut Args<'_>) {
        if self.map.is_empty() {
            return;
        }
        let [height, width, channels] = [1, 2, 3].map(|axis| self.map[axis]);
        let (x, row) = (args.inputs[0], width * channels);
        args.outputs[0].par_chunks_mut(row).enumerate().for_each(|(task, y)| {
            let (first, index) = (task / height * height, task % height);
            let rows = self.op.window(index, height);
            y.copy_from_slice(&x[task * row..][..row]);
            for other in rows {
                let other = &x[(first + other) * row..][..row];
                clear_smaller(self.isa, &self.op, &x[task * row..][..row], other, channels, y);
            }
        });
    }
}

simd! {
    /// Clears those pixels of `y`, which are of row `x`, that are not at least as large as those of row
    /// `other` in their windows.
    fn clear_smaller(isa, op: &LocalMaxima, x: &[f32], other: &[f32], channels: usize, y: &mut [f32]) {
        let width = x.len() / channels;
        for (column, y) in y.chunks_exact_mut(channels).enumerate() {
            let x = &x[column * channels..][..channels];
            for at in op.window(column, width) {
                let other = &other[at * channels..][..channels];
                for ((y, &x), &other) in y.iter_mut().zip(x).zip(other) {
                    *y = if x >= other { *y } else { 0.0 };
                }
            }
        }
    }
}
