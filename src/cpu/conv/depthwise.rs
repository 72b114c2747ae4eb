//! Depthwise convolution: one filter a channel, so vectors run over channels and nothing is packed but the
//! filter, as `[tap][channel]`.

use crate::cpu::gemm::{Arch, Job, Target, Vector};

use super::ConvShape;

/// Output pixels that share each load of a filter tap.
const PIXELS: usize = 4;

/// A depthwise convolution.
pub(super) struct Layer {
    pub shape: ConvShape,
    pub x: *const f32,
    /// `[kernel[0] * kernel[1]][channels]`.
    pub filter: *const f32,
    pub target: Target,
}

// SAFETY: map and filter are only read, for the duration of a call that borrows them; each row of the target is
// written by one task.
unsafe impl Sync for Layer {}

/// One row of output pixels: `row` counts through all images.
pub(super) struct OutputRow<'a> {
    pub layer: &'a Layer,
    pub row: usize,
}

impl Job for OutputRow<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let s = &self.layer.shape;
        // Pixels whose taps all lie inside the map's columns need no test of x.
        let reach = s.dilation[1] * (s.kernel[1] - 1) + 1;
        let interior = |x: usize| {
            let left = x * s.stride[1];
            left >= s.padding[1] && left + (PIXELS - 1) * s.stride[1] + reach <= s.width + s.padding[1]
        };
        let mut x = 0;
        while x < s.out_width() {
            if x + PIXELS <= s.out_width() && interior(x) {
                self.pixels::<A, PIXELS, true>(x);
                x += PIXELS;
            } else {
                self.pixels::<A, 1, false>(x);
                x += 1;
            }
        }
    }
}

impl OutputRow<'_> {
    /// Output pixels `x..x + N` of the row, all channels.
    #[inline(always)]
    fn pixels<A: Arch, const N: usize, const INTERIOR: bool>(&self, x: usize) {
        let channels = self.layer.shape.c_in;
        let whole = channels / A::V::LANES * A::V::LANES;
        for c in (0..whole).step_by(A::V::LANES) {
            self.vector::<A, N, INTERIOR>(x, c, A::V::LANES);
        }
        if whole < channels {
            self.vector::<A, N, INTERIOR>(x, whole, channels - whole);
        }
    }

    /// The same for channels `c..c + count`, one vector.
    #[inline(always)]
    fn vector<A: Arch, const N: usize, const INTERIOR: bool>(&self, x: usize, c: usize, count: usize) {
        let Layer { shape: s, x: map, filter, target } = self.layer;
        let finish = &target.finish;
        let channels = s.c_in;
        let (image, oy) = (self.row / s.out_height(), self.row % s.out_height());
        let map = map.wrapping_add(image * s.height * s.width * channels + c);
        let out = (self.row * s.out_width() + x) * channels + c;
        let top = (oy * s.stride[0]) as isize - s.padding[0] as isize;
        let left = (x * s.stride[1]) as isize - s.padding[1] as isize;
        // SAFETY: taps outside the map are skipped; lanes past `count` are neither read nor written.
        unsafe {
            let mut acc = [A::V::splat(0.0); N];
            for ky in 0..s.kernel[0] {
                let y = top + (ky * s.dilation[0]) as isize;
                if y < 0 || y >= s.height as isize {
                    continue;
                }
                for kx in 0..s.kernel[1] {
                    let w = A::V::load_up_to(filter.add((ky * s.kernel[1] + kx) * channels + c), count);
                    let x = left + (kx * s.dilation[1]) as isize;
                    if INTERIOR || (x >= 0 && x < s.width as isize) {
                        let first = map.offset((y * s.width as isize + x) * channels as isize);
                        for i in 0..N {
                            let v = A::V::load_up_to(first.add(i * s.stride[1] * channels), count);
                            acc[i] = w.mul_add(v, acc[i]);
                        }
                    }
                }
            }
            let (lo, hi) = (A::V::splat(finish.lo), A::V::splat(finish.hi));
            for i in 0..N {
                let at = out + i * channels;
                let mut v = acc[i];
                if !finish.col_bias.is_null() {
                    v = v.add(A::V::load_up_to(finish.col_bias.add(c), count));
                }
                if !finish.residual.is_null() {
                    v = v.add(A::V::load_up_to(finish.residual.add(at), count));
                }
                v.clamp(lo, hi).store_up_to(target.c.add(at), count);
            }
        }
    }
}
