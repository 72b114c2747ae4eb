//! Loops that the norms share. Rows are pixels or objects, columns are channels.
//!
//! Sums are taken in double precision: the variance is a difference of two sums, which in `f32` loses all
//! digits where the mean is large against the deviation. Memory, not arithmetic, bounds these loops.

use super::activation::{apply, clamped};
use super::exp::LANES;
use super::{ELEMENTS_PER_TASK, Isa};
use crate::cpu::element::Element;
use crate::isa::simd;
use crate::ops::activation::Activation;

/// Elements of a task that reads `x` once.
const ELEMENTS: usize = 4 * ELEMENTS_PER_TASK;

/// Rows that one task takes. Depends on the shape alone.
pub(crate) fn rows_per_task(channels: usize) -> usize {
    (ELEMENTS / channels.max(1)).max(1)
}

/// Mean and `1 / sqrt(variance + eps)` of `count` elements from their sum and sum of squares.
#[inline(always)]
pub(crate) fn statistics(sum: f64, squares: f64, count: f64, eps: f32) -> (f64, f64) {
    let mean = sum / count;
    let variance = squares / count - mean * mean;
    // Written so that rounding below zero is mended and NaN stays.
    let variance = if variance < 0.0 { 0.0 } else { variance };
    (mean, 1.0 / (variance + f64::from(eps)).sqrt())
}

/// `activation((x - mean) * scale + shift)` with operands per channel. The mean is subtracted first and not
/// folded into the shift, because `x * scale` and `mean * scale` may both be large.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub mean: &'a [f32],
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    pub activation: Option<Activation>,
}

impl Affine<'_> {
    /// Normalises whole rows of `x` into `y`.
    pub(crate) fn run<E: Element>(&self, isa: Isa, x: &[E], y: &mut [E]) {
        let (low, high) = bounds(self.activation);
        affine(isa, x, self.mean, self.scale, self.shift, low, high, y);
        finish(isa, self.activation, y);
    }
}

/// What a clamping activation clamps to; nothing is clamped for any other.
pub(crate) fn bounds(activation: Option<Activation>) -> (f32, f32) {
    activation.and_then(Activation::clamp).unwrap_or((f32::NEG_INFINITY, f32::INFINITY))
}

/// Applies the activations that [`bounds`] does not express.
pub(crate) fn finish<E: Element>(isa: Isa, activation: Option<Activation>, y: &mut [E]) {
    let Some(activation) = activation.filter(|activation| activation.clamp().is_none()) else { return };
    if let Ok(y) = bytemuck::try_cast_slice_mut::<E, f32>(y)
        && size_of::<E>() == size_of::<f32>()
    {
        return apply(isa, activation, y);
    }
    let mut wide = [0.0; 64];
    for y in y.chunks_mut(wide.len()) {
        let wide = &mut wide[..y.len()];
        wide.iter_mut().zip(&*y).for_each(|(wide, y)| *wide = y.widen());
        apply(isa, activation, wide);
        y.iter_mut().zip(wide).for_each(|(y, wide)| *y = E::narrow(*wide));
    }
}

simd! {
    fn affine<E: Element>(
        isa, x: &[E], mean: &[f32], scale: &[f32], shift: &[f32], low: f32, high: f32, y: &mut [E],
    ) {
        let channels = mean.len().max(1);
        let (scale, shift) = (&scale[..mean.len()], &shift[..mean.len()]);
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            for c in 0..channels {
                y[c] = E::narrow(clamped((x[c].widen() - mean[c]) * scale[c] + shift[c], low, high));
            }
        }
    }
}

simd! {
    /// Sums and sums of squares of every column of `x`, over all its rows.
    pub(crate) fn column_sums<E: Element>(isa, x: &[E], sums: &mut [f64], squares: &mut [f64]) {
        let channels = sums.len();
        let squares = &mut squares[..channels];
        sums.fill(0.0);
        squares.fill(0.0);
        // Eight rows at a time: one read and write of the accumulators for eight reads of `x`.
        let mut blocks = x.chunks_exact(8 * channels.max(1));
        for block in &mut blocks {
            let row = |i: usize| &block[i * channels..(i + 1) * channels];
            let rows: [&[E]; 8] = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
            for c in 0..channels {
                let (mut sum, mut square) = (0.0, 0.0);
                for row in rows {
                    let v = f64::from(row[c].widen());
                    sum += v;
                    square += v * v;
                }
                sums[c] += sum;
                squares[c] += square;
            }
        }
        for row in blocks.remainder().chunks_exact(channels.max(1)) {
            for c in 0..channels {
                let v = f64::from(row[c].widen());
                sums[c] += v;
                squares[c] += v * v;
            }
        }
    }
}

simd! {
    /// `y += x`: joins the sums of two tasks.
    pub(crate) fn add(isa, x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

/// `sum of a[i] * b[i]` in double precision.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] += f64::from(a) * f64::from(b);
    }
    sums.iter().sum()
}
