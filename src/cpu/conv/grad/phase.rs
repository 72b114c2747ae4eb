//! The phases of a strided gradient, see [`super::input`].

use super::GradShape;

/// Along one axis, the pixels of one residue modulo the stride and the taps that reach them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    /// First pixel of the map, and how many there are, `stride` apart.
    pub first: usize,
    pub stride: usize,
    pub count: usize,
    /// First tap, and how many there are, `tap_step` apart.
    first_tap: usize,
    tap_step: usize,
    pub taps: usize,
    /// Between the results that neighbouring taps read.
    pub dilation: usize,
    /// The result that the first pixel reads by the last tap.
    pub origin: isize,
}

impl Phase {
    /// Pixels with `(pixel + padding) % stride == residue`: result `o` reads them by taps with
    /// `o * stride + tap * dilation == pixel + padding`.
    pub fn new(s: &GradShape, axis: usize, residue: usize) -> Phase {
        let (stride, padding, dilation) = (s.stride[axis], s.padding[axis], s.dilation[axis]);
        let first = (residue + stride - padding % stride) % stride;
        let count = s.map[axis].saturating_sub(first).div_ceil(stride);
        let common = gcd(stride, dilation);
        let tap_step = stride / common;
        let first_tap = (0..tap_step).find(|tap| tap * dilation % stride == residue);
        let taps = first_tap.map_or(0, |tap| s.kernel[axis].saturating_sub(tap).div_ceil(tap_step));
        let first_tap = first_tap.unwrap_or(0);
        let dilation_of_phase = dilation / common;
        let by_first_tap =
            (first + padding) as isize / stride as isize - (first_tap * dilation / stride) as isize;
        let origin = by_first_tap - (taps.saturating_sub(1) * dilation_of_phase) as isize;
        Phase { first, stride, count, first_tap, tap_step, taps, dilation: dilation_of_phase, origin }
    }

    /// Tap `index` in reverse order.
    pub fn tap(&self, index: usize) -> usize {
        self.first_tap + (self.taps - 1 - index) * self.tap_step
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
