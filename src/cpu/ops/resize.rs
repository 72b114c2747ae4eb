//! Resizing. Every output row is a blend of two input rows, every pixel of two pixels.
//!
//! With many channels a task blends four pixels at once, vectorised over channels. With few (planar masks
//! have one) it first blends two whole rows into scratch, which vectorises over pixels, and then picks
//! from that row. Tasks are bands of output rows whose number does not depend on the threads.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use crate::cpu::element::Element;
use crate::isa::simd;
use crate::ops::resize::{Resize, ResizeGrad, ResizeMode};
use crate::tensor::{DType, Shape};
use half::bf16;
use rayon::prelude::*;
use std::marker::PhantomData;

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

struct Rows<X, Y> {
    nearest: bool,
    x: Shape,
    y: Shape,
    /// Taps of each output row and column.
    rows: Vec<Taps>,
    columns: Vec<Taps>,
    isa: Isa,
    elements: PhantomData<fn(X) -> Y>,
}

impl CpuOp for Resize {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Rows::<f32, f32>::boxed(self, context)
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        Some(match (context.inputs[0].dtype, context.outputs[0].dtype) {
            (DType::BF16, DType::BF16) => Rows::<bf16, bf16>::boxed(self, context),
            (DType::BF16, _) => Rows::<bf16, f32>::boxed(self, context),
            _ => Rows::<f32, bf16>::boxed(self, context),
        })
    }
}

impl<X: Element, Y: Element> Rows<X, Y> {
    fn boxed(op: &Resize, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, y) = (context.inputs[0].shape, context.outputs[0].shape);
        let taps = |axis: usize| -> Vec<Taps> {
            let count = if y.is_empty() { 0 } else { op.size[axis] };
            let exact = (0..count).map(|index| op.taps(axis, x[1 + axis], index));
            exact.map(|t| Taps { low: t.low, high: t.high, weight: t.weight as f32 }).collect()
        };
        let (nearest, elements) = (op.mode == ResizeMode::Nearest, PhantomData);
        Box::new(Rows::<X, Y> { nearest, x, y, rows: taps(0), columns: taps(1), isa: context.isa, elements })
    }

    /// Values of an input row.
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
    fn each_row(&self, band: usize, x: &[X], y: &mut [Y], mut blend: impl FnMut(f32, [&[X]; 2], &mut [Y])) {
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

impl<X: Element, Y: Element> Kernel for Rows<X, Y> {
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
        let (x, channels) = (args.map::<X>(0, self.x.len()), self.x[3]);
        let workspace = std::mem::take(&mut args.workspace);
        let y = args.map_mut::<Y>(0, self.y.len());
        let bands = y.par_chunks_mut(self.band() * self.y[2] * channels).enumerate();
        if self.nearest {
            bands.for_each(|(band, y)| {
                self.each_row(band, x, y, |_, [x, _], y| pick_row(&self.columns, x, channels, y));
            });
        } else if self.few_channels() {
            bands.zip(workspace.par_chunks_mut(self.row())).for_each(|((band, y), scratch)| {
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
fn pick_row<X: Element, Y: Element>(columns: &[Taps], x: &[X], channels: usize, y: &mut [Y]) {
    if channels == 1 {
        y.iter_mut().zip(columns).for_each(|(y, taps)| *y = Y::narrow(x[taps.low].widen()));
        return;
    }
    for (y, taps) in y.chunks_exact_mut(channels).zip(columns) {
        let x = &x[taps.low * channels..][..channels];
        match bytemuck::try_cast_slice::<X, Y>(x) {
            Ok(x) if x.len() == y.len() => y.copy_from_slice(x),
            _ => y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::narrow(x.widen())),
        }
    }
}

simd! {
    /// `y = (1 - weight) * low + weight * high`.
    fn blend_rows<X: Element>(isa, weight: f32, low: &[X], high: &[X], y: &mut [f32]) {
        for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
            *y = (1.0 - weight) * low.widen() + weight * high.widen();
        }
    }
}

simd! {
    /// Each output pixel from two pixels of the row `x`.
    fn blend_columns<Y: Element>(isa, columns: &[Taps], x: &[f32], channels: usize, y: &mut [Y]) {
        if channels == 1 {
            for (y, taps) in y.iter_mut().zip(columns) {
                *y = Y::narrow((1.0 - taps.weight) * x[taps.low] + taps.weight * x[taps.high]);
            }
            return;
        }
        for (y, taps) in y.chunks_exact_mut(channels).zip(columns) {
            let (low, high) = (&x[taps.low * channels..], &x[taps.high * channels..]);
            for ((y, &low), &high) in y.iter_mut().zip(low).zip(high) {
                *y = Y::narrow((1.0 - taps.weight) * low + taps.weight * high);
            }
        }
    }
}

simd! {
    /// Each output pixel from two pixels of each of two rows.
    fn blend_pixels<X: Element, Y: Element>(
        isa, weight: f32, columns: &[Taps], low: &[X], high: &[X], channels: usize, y: &mut [Y],
    ) {
        for (y, taps) in y.chunks_exact_mut(channels).zip(columns) {
            let (ll, lh) = (&low[taps.low * channels..][..channels], &low[taps.high * channels..][..channels]);
            let (hl, hh) = (&high[taps.low * channels..][..channels], &high[taps.high * channels..][..channels]);
            let across = taps.weight;
            for c in 0..channels {
                let top = (1.0 - across) * ll[c].widen() + across * lh[c].widen();
                let bottom = (1.0 - across) * hl[c].widen() + across * hh[c].widen();
                y[c] = Y::narrow((1.0 - weight) * top + weight * bottom);
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
