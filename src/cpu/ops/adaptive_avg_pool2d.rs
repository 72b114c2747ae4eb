//! Means over bins of a map, one task a bin, in double precision in the order of the pixels; their gradient,
//! one task a row.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::isa::{Isa, simd};
use crate::ops::{AdaptiveAvgPool2d, AdaptiveAvgPool2dGrad};
use crate::tensor::Shape;
use rayon::prelude::*;

/// Channels whose sums are kept at once.
const BLOCK: usize = 64;

struct Means {
    x: Shape,
    bins: [usize; 2],
    isa: Isa,
}

impl CpuOp for AdaptiveAvgPool2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Means { x: context.inputs[0].shape, bins: self.size, isa: context.isa })
    }
}

impl Kernel for Means {
    fn name(&self) -> String {
        "bins".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| self.x[axis]);
        if batch * c == 0 {
            return;
        }
        let [p, q] = self.bins;
        let x = args.inputs[0];
        args.outputs[0].par_chunks_mut(c).enumerate().for_each(|(bin, y)| {
            let (image, row, column) = (bin / q / p, bin / q % p, bin % q);
            let (rows, columns) = (AdaptiveAvgPool2d::bin(h, p, row), AdaptiveAvgPool2d::bin(w, q, column));
            let lines = &x[((image * h + rows.start) * w + columns.start) * c..];
            y.par_chunks_mut(BLOCK).enumerate().for_each(|(block, y)| {
                let bin = Bin { lines: rows.len(), columns: columns.len(), line: w * c, pixel: c };
                mean(self.isa, bin, &lines[block * BLOCK..], y);
            });
        });
    }
}

/// Pixels of a bin: how many, and how far their floats lie apart.
#[derive(Clone, Copy)]
struct Bin {
    lines: usize,
    columns: usize,
    line: usize,
    pixel: usize,
}

simd! {
    /// The means of the first `y.len()` channels over a bin whose first float is that of `x`.
    fn mean(isa, bin: Bin, x: &[f32], y: &mut [f32]) {
        let mut sums = [0f64; BLOCK];
        let sums = &mut sums[..y.len()];
        for line in 0..bin.lines {
            for column in 0..bin.columns {
                let pixel = &x[line * bin.line + column * bin.pixel..][..y.len()];
                sums.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
        let pixels = (bin.lines * bin.columns) as f64;
        y.iter_mut().zip(&*sums).for_each(|(y, sum)| *y = (sum / pixels) as f32);
    }
}

struct Shares {
    dy: Shape,
    size: [usize; 2],
    isa: Isa,
}

impl CpuOp for AdaptiveAvgPool2dGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Shares { dy: context.inputs[0].shape, size: self.size, isa: context.isa })
    }
}

impl Kernel for Shares {
    fn name(&self) -> String {
        "bins".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [batch, p, q, c] = [0, 1, 2, 3].map(|axis| self.dy[axis]);
        if batch * c == 0 {
            return;
        }
        let [h, w] = self.size;
        let dy = args.inputs[0];
        args.outputs[0].par_chunks_mut(w * c).enumerate().for_each(|(line, dx)| {
            let (image, at) = (line / h, line % h);
            dx.fill(0.0);
            for row in AdaptiveAvgPool2d::bins(h, p, at) {
                let height = AdaptiveAvgPool2d::bin(h, p, row).len();
                for column in 0..q {
                    let columns = AdaptiveAvgPool2d::bin(w, q, column);
                    let share = 1.0 / (height * columns.len()) as f32;
                    let dy = &dy[((image * p + row) * q + column) * c..][..c];
                    add_shares(self.isa, share, dy, &mut dx[columns.start * c..columns.end * c]);
                }
            }
        });
    }
}

simd! {
    /// `dx += share * dy` for every pixel of `dx`.
    fn add_shares(isa, share: f32, dy: &[f32], dx: &mut [f32]) {
        for pixel in dx.chunks_exact_mut(dy.len()) {
            pixel.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += share * dy);
        }
    }
}
