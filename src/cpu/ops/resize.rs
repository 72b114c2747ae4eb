//! Resizing. Every output row is a blend of two input rows, every pixel of two pixels.
//!
//! With many channels a task blends four pixels at once, vectorised over channels. With few (planar masks
//! have one) it first blends two whole rows into scratch, which vectorises over pixels, and then picks
//! from that row. Tasks are bands of output rows whose number does not depend on the threads.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use crate::isa::simd;
use crate::ops::resize::{Resize, ResizeGrad, ResizeMode};
use crate::tensor::Shape;
use rayon::prelude::*;

/// Fewest channels worth a vector of their own.
const MANY_CHANNELS: usize = 8;
/// Most bands, and thus rows of scratch.
const BANDS: usize = 64;

/// [`Resize::taps`] with the weight as the kernels want it.
struct Taps {
    low: usize,
    high: usize,
    weight: f32,
}

struct Rows {
    nearest: bool,
    x: Shape,
    y: Shape,
    /// Taps of each output row and column.
    rows: Vec<Taps>,
    columns: Vec<Taps>,
    isa: Isa,
}

impl CpuOp for Resize {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, y) = (context.inputs[0].shape, context.outputs[0].shape);
        let taps = |axis: usize| -> Vec<Taps> {
            let count = if y.is_empty() { 0 } else { self.size[axis] };
            let exact = (0..count).map(|index| self.taps(axis, x[1 + axis], index));
            exact.map(|t| Taps { low: t.low, high: t.high, weight: t.weight as f32 }).collect()
        };
        let nearest = self.mode == ResizeMode::Nearest;
        Box::new(Rows { nearest, x, y, rows: taps(0), columns: taps(1), isa: context.isa })
    }
}

impl Rows {
    /// Floats of an input row.
    fn row(&self) -> usize {
        self.x[2] * self.x[3]
    }

    /// Output rows of a band, over the whole batch.
    fn band(&self) -> usize {
        (self.y[0] * self.y[1]).div_ceil(BANDS)
    }

    fn bands(&self) -> usize {
        (self.y[0] * self.y[1]).div_ceil(self.band())
    }

    /// Calls `blend(weight, [low, high], output row)` for each output row of a band: its two input rows and
    /// the weight of the second.
    fn each_row(
        &self,
        band: usize,
        x: &[f32],
        y: &mut [f32],
        mut blend: impl FnMut(f32, [&[f32]; 2], &mut [f32]),
    ) {
        for (i, y) in y.chunks_exact_mut(self.y[2] * self.y[3]).enumerate() {
            let index = band * self.band() + i;
            let (b, taps) = (index / self.y[1], &self.rows[index % self.y[1]]);
            let sources =
                [taps.low, taps.high].map(|tap| &x[(b * self.x[1] + tap) * self.row()..][..self.row()]);
            blend(taps.weight, sources, y);
        }
    }

    fn few_channels(&self) -> bool {
        self.x[3] < MANY_CHANNELS && !self.nearest
    }
}

impl Kernel for Rows {
    fn name(&self) -> String {
        let few = if self.few_channels() { "_planar" } else { "" };
        format!("{}{few}", if self.nearest { "nearest" } else { "bilinear" })
    }

    fn workspace(&self) -> usize {
        if self.few_channels() && !self.y.is_empty() { self.bands() * self.row() } else { 0 }
    }

    fn run(&self, args: &mut Args<'_>) {
        if self.y.is_empty() {
            return;
        }
        let (x, channels) = (args.inputs[0], self.x[3]);
        let bands = args.outputs[0].par_chunks_mut(self.band() * self.y[2] * channels).enumerate();
        if self.nearest {
            bands.for_each(|(band, y)| {
                self.each_row(band, x, y, |_, [x, _], y| pick_row(&self.columns, x, channels, y));
            });
        } else if self.few_channels() {
            bands.zip(args.workspace.par_chunks_mut(self.row())).for_each(|((band, y), scratch)| {
                self.each_row(band, x, y, |weight, [low, high], y| {
                    blend_rows(self.isa, weight, low, high, scratch);
                    blend_columns(self.isa, &self.columns, scratch, channels, y);
                });
            });
        } else {
            bands.for_each(|(band, y)| {
                self.each_row(band, x, y, |weight, [low, high], y| {
                    blend_pixels(self.isa, weight, &self.columns, low, high, channels, y);
                });
            });
        }
    }
}

/// The pixels at the taps.
fn pick_row(columns: &[Taps], x: &[f32], channels: usize, y: &mut [f32]) {
    if channels == 1 {
        y.iter_mut().zip(columns).for_each(|(y, taps)| *y = x[taps.low]);
        return;
    }
    for (y, taps) in y.chunks_exact_mut(channels).zip(columns) {
        y.copy_from_slice(&x[taps.low * channels..][..channels]);
    }
}

simd! {
    /// `y = (1 - weight) * low + weight * high`.
    fn blend_rows(isa, weight: f32, low: &[f32], high: &[f32], y: &mut [f32]) {
        for ((y, &low), &high) in y.iter_mut().zip(low).zip(high) {
            *y = (1.0 - weight) * low + weight * high;
        }
    }
}

simd! {
    /// Each output pixel from two pixels of the row `x`.
    fn blend_columns(isa, columns: &[Taps], x: &[f32], channels: usize, y: &mut [f32]) {
        if channels == 1 {
            for (y, taps) in y.iter_mut().zip(columns) {
                *y = (1.0 - taps.weight) * x[taps.low] + taps.weight * x[taps.high];
            }
            return;
        }
        for (y, taps) in y.chunks_exact_mut(channels).zip(columns) {
            let (low, high) = (&x[taps.low * channels..], &x[taps.high * channels..]);
            for ((y, &low), &high) in y.iter_mut().zip(low).zip(high) {
                *y = (1.0 - taps.weight) * low + taps.weight * high;
            }
        }
    }
}

simd! {
    /// Each output pixel from two pixels of each of two rows.
    fn blend_pixels(
        isa, weight: f32, columns: &[Taps], low: &[f32], high: &[f32], channels: usize, y: &mut [f32],
    ) {
        for (y, taps) in y.chunks_exact_mut(channels).zip(columns) {
            let (ll, lh) = (&low[taps.low * channels..][..channels], &low[taps.high * channels..][..channels]);
            let (hl, hh) = (&high[taps.low * channels..][..channels], &high[taps.high * channels..][..channels]);
            let across = taps.weight;
            for c in 0..channels {
                let top = (1.0 - across) * ll[c] + across * lh[c];
                let bottom = (1.0 - across) * hl[c] + across * hh[c];
                y[c] = (1.0 - weight) * top + weight * bottom;
            }
        }
    }
}

impl CpuOp for ResizeGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (dy, dx) = (context.inputs[0].shape, context.outputs[0].shape);
        super::resize_grad::kernel(&self.forward([dy[1], dy[2]]), dx, dy, context.isa)
    }
}
