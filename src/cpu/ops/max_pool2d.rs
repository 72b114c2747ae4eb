//! Maximum over windows: one task an output row, maxima of a block of channels in registers. The gradient
//! finds the maxima once more.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use crate::cpu::element::Element;
use crate::isa::simd;
use crate::ops::max_pool2d::{MaxPool2d, MaxPool2dGrad};
use crate::tensor::Shape;
use half::bf16;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

struct Windows<E> {
    op: MaxPool2d,
    x: Shape,
    y: Shape,
    isa: Isa,
    element: PhantomData<fn() -> E>,
}

impl<E: Element> Windows<E> {
    fn boxed(op: MaxPool2d, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, y) = (context.inputs[0].shape, context.outputs[0].shape);
        Box::new(Windows::<E> { op, x, y, isa: context.isa, element: PhantomData })
    }
}

impl CpuOp for MaxPool2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Windows::<f32>::boxed(*self, context)
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        context.is_all_bf16().then(|| Windows::<bf16>::boxed(*self, context))
    }
}

impl<E: Element> Kernel for Windows<E> {
    fn name(&self) -> String {
        "max_pool".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        if self.y.is_empty() {
            return;
        }
        let x = args.map::<E>(0, self.x.len());
        let (h, row) = (self.x[1], self.x[2] * self.x[3]);
        let y = args.map_mut::<E>(0, self.y.len());
        y.par_chunks_mut(self.y[2] * self.y[3]).enumerate().for_each(|(task, y)| {
            let (b, p) = (task / self.y[1], task % self.y[1]);
            let rows = self.op.window(0, h, p);
            let x = &x[(b * h + rows.start) * row..(b * h + rows.end) * row];
            pool_row(self.isa, &self.op, x, self.x[2], self.x[3], y);
        });
    }
}

/// Channels whose maxima are kept in registers: two vectors of the widest set.
const BLOCK: usize = 32;

simd! {
    /// One output row from the rows of its windows, each `width * channels` values.
    fn pool_row<E: Element>(isa, op: &MaxPool2d, x: &[E], width: usize, channels: usize, y: &mut [E]) {
        for (q, y) in y.chunks_exact_mut(channels).enumerate() {
            let columns = op.window(1, width, q);
            let mut blocks = y.chunks_exact_mut(BLOCK);
            let mut from = 0;
            for y in &mut blocks {
                let mut max = [f32::NEG_INFINITY; BLOCK];
                for row in x.chunks_exact(width * channels) {
                    for column in columns.clone() {
                        let x = &row[column * channels + from..][..BLOCK];
                        for lane in 0..BLOCK {
                            max[lane] = larger(max[lane], x[lane].widen());
                        }
                    }
                }
                for lane in 0..BLOCK {
                    y[lane] = E::narrow(max[lane]);
                }
                from += BLOCK;
            }
            let y = blocks.into_remainder();
            y.fill(E::narrow(f32::NEG_INFINITY));
            for row in x.chunks_exact(width * channels) {
                for column in columns.clone() {
                    let x = &row[column * channels + from..][..y.len()];
                    // A maximum of stored values can be stored: nothing is rounded twice.
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = E::narrow(larger(y.widen(), x.widen())));
                }
            }
        }
    }
}

/// The larger; NaN wins over all, and the first NaN over later ones.
#[inline(always)]
fn larger(max: f32, x: f32) -> f32 {
    // No short circuit: both comparisons become vector masks.
    let keep = (max >= x) | max.is_nan();
    if keep { max } else { x }
}

/// A task takes a few rows of `dx` and goes over all windows that reach into them.
struct BandsGrad {
    op: MaxPool2d,
    x: Shape,
    y: Shape,
    isa: Isa,
}

/// Rows of a task.
const BAND: usize = 8;

impl CpuOp for MaxPool2dGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, y) = (context.inputs[0].shape, context.inputs[1].shape);
        Box::new(BandsGrad { op: self.pool, x, y, isa: context.isa })
    }
}

impl Kernel for BandsGrad {
    fn name(&self) -> String {
        "max_pool_grad".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, dy, ..] = args.inputs;
        let (image, row) = (self.x[1] * self.x[2] * self.x[3], self.x[2] * self.x[3]);
        if x.is_empty() {
            return;
        }
        let images = x.par_chunks(image).zip(dy.par_chunks(self.y[1] * self.y[2] * self.y[3]));
        args.outputs[0].par_chunks_mut(image).zip(images).for_each(|(dx, (x, dy))| {
            dx.par_chunks_mut(BAND * row).enumerate().for_each(|(band, dx)| {
                band_grad(self.isa, self, band * BAND, x, dy, dx);
            });
        });
    }
}

simd! {
    /// The rows of `dx` from `first`, as many as it holds, of one image.
    fn band_grad(isa, grad: &BandsGrad, first: usize, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let [height, width, channels] = [1, 2, 3].map(|axis| grad.x[axis]);
        let band = first..first + dx.len() / (width * channels);
        // Rows are cleared when the first window reaches them, while they are in cache.
        let mut cleared = 0;
        for (p, dy) in dy.chunks_exact(grad.y[2] * channels).enumerate() {
            let rows = grad.op.window(0, height, p);
            if rows.end <= band.start || rows.start >= band.end {
                continue;
            }
            let reached = (rows.end.min(band.end) - band.start) * width * channels;
            if reached > cleared {
                dx[cleared..reached].fill(0.0);
                cleared = reached;
            }
            for (q, dy) in dy.chunks_exact(channels).enumerate() {
                let columns = grad.op.window(1, width, q);
                let offset = |row: usize, column: usize| (row * width + column) * channels;
                let mut blocks = dy.chunks_exact(BLOCK);
                let mut from = 0;
                for dy in &mut blocks {
                    let arg = first_maximum(&rows, &columns, &x[from..], offset, BLOCK);
                    scatter(&rows, &columns, &band, &arg, dy, &mut dx[from..], offset, BLOCK);
                    from += BLOCK;
                }
                let dy = blocks.remainder();
                if !dy.is_empty() {
                    let arg = first_maximum(&rows, &columns, &x[from..], offset, dy.len());
                    scatter(&rows, &columns, &band, &arg, dy, &mut dx[from..], offset, dy.len());
                }
            }
        }
        dx[cleared..].fill(0.0);
    }
}

/// Where in scan order of a window each of `lanes` channels has its first maximum, or its last NaN.
#[inline(always)]
fn first_maximum(
    rows: &Range<usize>,
    columns: &Range<usize>,
    x: &[f32],
    offset: impl Fn(usize, usize) -> usize,
    lanes: usize,
) -> [u32; BLOCK] {
    let (mut max, mut arg) = ([f32::NEG_INFINITY; BLOCK], [0; BLOCK]);
    let mut position = 0;
    for row in rows.clone() {
        for column in columns.clone() {
            let x = &x[offset(row, column)..][..lanes];
            for lane in 0..lanes {
                // No short circuit: both comparisons become vector masks.
                let larger = (x[lane] > max[lane]) | x[lane].is_nan();
                max[lane] = if larger { x[lane] } else { max[lane] };
                arg[lane] = if larger { position } else { arg[lane] };
            }
            position += 1;
        }
    }
    arg
}

/// Adds a window's gradient to where its maxima lie, as far as that is within the band.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn scatter(
    rows: &Range<usize>,
    columns: &Range<usize>,
    band: &Range<usize>,
    arg: &[u32; BLOCK],
    dy: &[f32],
    dx: &mut [f32],
    offset: impl Fn(usize, usize) -> usize,
    lanes: usize,
) {
    let mut position = 0;
    for row in rows.clone() {
        for column in columns.clone() {
            if band.contains(&row) {
                let dx = &mut dx[offset(row - band.start, column)..][..lanes];
                for lane in 0..lanes {
                    dx[lane] += if arg[lane] == position { dy[lane] } else { 0.0 };
                }
            }
            position += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One NaN in a map reaches exactly the windows that see it, whatever lies before or after it there.
    #[test]
    fn nan_propagates() {
        let op = MaxPool2d { kernel: [1, 3], stride: [1, 1], padding: [0, 1] };
        let (width, channels) = (7, BLOCK + 5);
        for isa in Isa::available() {
            let mut x = vec![1.0; width * channels];
            x[3 * channels..4 * channels].fill(f32::NAN);
            x[2 * channels..3 * channels].fill(f32::INFINITY);
            let mut y = vec![0.0; width * channels];
            pool_row(isa, &op, &x, width, channels, &mut y);
            for (q, pixel) in y.chunks_exact(channels).enumerate() {
                assert!(
                    pixel.iter().all(|v| v.is_nan() == (2..5).contains(&q)),
                    "{isa}, pixel {q}: {pixel:?}"
                );
            }
        }
    }
}
