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
        let out_w = self.layer.shape.out_width();
        let mut x = 0;
        while x + PIXELS <= out_w {
            self.pixels::<A, PIXELS>(x);
            x += PIXELS;
        }
        while x < out_w {
            self.pixels::<A, 1>(x);
            x += 1;
        }
    }
}

impl OutputRow<'_> {
    /// Output pixels `x0..x0 + N` of the row, all channels.
    #[inline(always)]
    fn pixels<A: Arch, const N: usize>(&self, x0: usize) {
        let Layer { shape: s, x: map, filter, target } = self.layer;
        let finish = &target.finish;
        let channels = s.c_in;
        let (image, oy) = (self.row / s.out_height(), self.row % s.out_height());
        let map = map.wrapping_add(image * s.height * s.width * channels);
        let out = (self.row * s.out_width() + x0) * channels;
        let top = (oy * s.stride[0]) as isize - s.padding[0] as isize;
        let left = (x0 * s.stride[1]) as isize - s.padding[1] as isize;
        let right = left + ((N - 1) * s.stride[1]) as isize;
        // Whether every tap of every pixel lies inside the map's columns.
        let reach = (s.dilation[1] * (s.kernel[1] - 1)) as isize;
        let interior = left >= 0 && right + reach < s.width as isize;
        for c in (0..channels).step_by(A::V::LANES) {
            let count = A::V::LANES.min(channels - c);
            // SAFETY: taps outside the map are skipped; lanes past `count` are neither read nor written.
            unsafe {
                let mut acc = [A::V::splat(0.0); N];
                for ky in 0..s.kernel[0] {
                    let y = top + (ky * s.dilation[0]) as isize;
                    if y < 0 || y >= s.height as isize {
                        continue;
                    }
                    let line = map.wrapping_add(y as usize * s.width * channels + c);
                    for kx in 0..s.kernel[1] {
                        let w = A::V::load_up_to(filter.add((ky * s.kernel[1] + kx) * channels + c), count);
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let x = left + (i * s.stride[1] + kx * s.dilation[1]) as isize;
                            if interior || (x >= 0 && x < s.width as isize) {
                                *acc =
                                    w.mul_add(A::V::load_up_to(line.add(x as usize * channels), count), *acc);
                            }
                        }
                    }
                }
                let (lo, hi) = (A::V::splat(finish.lo), A::V::splat(finish.hi));
                for (i, acc) in acc.into_iter().enumerate() {
                    let at = out + i * channels + c;
                    let mut v = acc;
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
}
