//! Depthwise convolution: one filter a channel, so vectors run over channels and nothing is packed but the
//! filter, as `[tap][channel]`.
//!
//! 3x3 and 5x5 filters with stride 1 or 2 compute tiles of neighbouring output pixels whose taps all fall on
//! the map's columns: sizes are constants there, a filter row stays in registers, and neighbours share what
//! they load. Pixels at the left and right border, filters of other sizes and the last few channels go one by
//! one.

use std::ops::Range;

use crate::cpu::gemm::{Arch, Job, Target, Vector};

use super::ConvShape;

/// Output pixels of a tile: as many independent sums as keep two multiply-adds a cycle of four cycles'
/// latency busy.
const TILE: usize = 8;
/// The same on maps with less than [`TILE`] interior columns.
const SMALL_TILE: usize = 4;

/// Channels that go through an image together: whole vectors of every instruction set, four lines of cache.
const CHANNELS: usize = 64;

/// A depthwise convolution.
pub(super) struct Layer {
    pub shape: ConvShape,
    pub x: *const f32,
    /// `[kernel[0] * kernel[1]][channels]`.
    pub filter: *const f32,
    pub target: Target,
}

// SAFETY: map and filter are only read, for the duration of a call that borrows them; each row of the target
// is written by one task.
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
        let (line, out_w) = (self.layer.line(self.row), s.out_width());
        match (s.kernel, s.stride, s.dilation) {
            ([3, 3], [1, 1], [1, 1]) => line.tiled::<A, 3, 1>(out_w),
            ([3, 3], [2, 2], [1, 1]) => line.tiled::<A, 3, 2>(out_w),
            ([5, 5], [1, 1], [1, 1]) => line.tiled::<A, 5, 1>(out_w),
            ([5, 5], [2, 2], [1, 1]) => line.tiled::<A, 5, 2>(out_w),
            _ => line.pixels::<A>(0..out_w, 0),
        }
    }
}

/// All rows of output pixels of an image whose columns have the zeros around them: no tap falls beside
/// them. A few vectors of channels go through all of them before the next, so that what neighbouring rows
/// read, too, stays in L1.
pub(super) struct PaddedImage<'a>(pub &'a Layer);

impl Job for PaddedImage<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let s = &self.0.shape;
        match (s.kernel, s.stride, s.dilation) {
            ([3, 3], [1, 1], [1, 1]) => self.tiled::<A, 3, 1>(),
            ([3, 3], [2, 2], [1, 1]) => self.tiled::<A, 3, 2>(),
            ([5, 5], [1, 1], [1, 1]) => self.tiled::<A, 5, 1>(),
            ([5, 5], [2, 2], [1, 1]) => self.tiled::<A, 5, 2>(),
            _ => self.pixels::<A>(0),
        }
    }
}

impl PaddedImage<'_> {
    #[inline(always)]
    fn tiled<A: Arch, const K: usize, const S: usize>(&self) {
        match self.0.shape.out_width() {
            TILE.. => self.tiles::<A, K, S, TILE>(),
            SMALL_TILE..TILE => self.tiles::<A, K, S, SMALL_TILE>(),
            _ => self.pixels::<A>(0),
        }
    }

    #[inline(always)]
    fn tiles<A: Arch, const K: usize, const S: usize, const N: usize>(&self) {
        let s = &self.0.shape;
        let (out_w, whole) = (s.out_width(), s.c_in / A::V::LANES * A::V::LANES);
        for c in (0..whole).step_by(CHANNELS) {
            for row in 0..s.out_height() {
                self.0.line(row).tiles::<A, K, S, N>(0..out_w, c..whole.min(c + CHANNELS));
            }
        }
        if whole < s.c_in {
            self.pixels::<A>(whole);
        }
    }

    /// Pixels one by one, channels from `from`.
    #[inline(always)]
    fn pixels<A: Arch>(&self, from: usize) {
        let s = &self.0.shape;
        (0..s.out_height()).for_each(|row| self.0.line(row).pixels::<A>(0..s.out_width(), from));
    }
}

impl Layer {
    /// What a row of outputs reads.
    #[inline(always)]
    fn line(&self, row: usize) -> Line<'_> {
        let s = &self.shape;
        let (image, oy) = (row / s.out_height(), row % s.out_height());
        let (rows, top) = Taps { kernel: s.kernel[0], dilation: s.dilation[0], size: s.height }
            .inside(oy * s.stride[0], s.padding[0]);
        let map = self.x.wrapping_add(image * s.height * s.width * s.c_in);
        Line { layer: self, rows, map, top, out: row * s.out_width() * s.c_in }
    }
}

/// The taps of a filter along one axis of a map.
struct Taps {
    kernel: usize,
    dilation: usize,
    size: usize,
}

impl Taps {
    /// Of the filter whose first tap falls on `at - padding`: the taps that fall on the map, and where the
    /// first of those does.
    #[inline(always)]
    fn inside(&self, at: usize, padding: usize) -> (Range<usize>, usize) {
        let first = padding.saturating_sub(at).div_ceil(self.dilation).min(self.kernel);
        let end = (self.size + padding).saturating_sub(at).div_ceil(self.dilation).min(self.kernel);
        if first >= end { (0..0, 0) } else { (first..end, at + first * self.dilation - padding) }
    }
}

/// A row of outputs and the rows of the map that it reads.
struct Line<'a> {
    layer: &'a Layer,
    /// Filter rows that fall on the map.
    rows: Range<usize>,
    /// The image.
    map: *const f32,
    /// Row of the image that the first of `rows` falls on.
    top: usize,
    /// Where the row's outputs start.
    out: usize,
}

impl Line<'_> {
    /// All pixels of a row, filters of `K x K` taps with stride `S`.
    #[inline(always)]
    fn tiled<A: Arch, const K: usize, const S: usize>(&self, out_w: usize) {
        let s = &self.layer.shape;
        let padding = s.padding[1];
        // Pixels whose taps all fall on the map's columns.
        let first = padding.div_ceil(S).min(out_w);
        let end = (s.width + padding).checked_sub(K).map_or(0, |last| last / S + 1).clamp(first, out_w);
        let whole = s.c_in / A::V::LANES * A::V::LANES;
        match end - first {
            TILE.. => self.tiles::<A, K, S, TILE>(first..end, 0..whole),
            SMALL_TILE..TILE => self.tiles::<A, K, S, SMALL_TILE>(first..end, 0..whole),
            _ => return self.pixels::<A>(0..out_w, 0),
        }
        self.pixels::<A>(0..first, 0);
        self.pixels::<A>(end..out_w, 0);
        if whole < s.c_in {
            self.pixels::<A>(first..end, whole);
        }
    }

    /// Interior pixels by tiles of `N`, whole vectors of channels. The last tile overlaps the one before it
    /// if need be, and writes the same values again.
    #[inline(always)]
    fn tiles<A: Arch, const K: usize, const S: usize, const N: usize>(
        &self,
        xs: Range<usize>,
        channels: Range<usize>,
    ) {
        for x in xs.clone().step_by(N) {
            let x = x.min(xs.end - N);
            for c in channels.clone().step_by(A::V::LANES) {
                self.tile::<A, K, S, N>(x, c);
            }
        }
    }

    /// Interior pixels `x..x + N`, one vector of channels.
    #[inline(always)]
    fn tile<A: Arch, const K: usize, const S: usize, const N: usize>(&self, x: usize, c: usize) {
        let Layer { shape: s, filter, .. } = self.layer;
        let (channels, row) = (s.c_in, s.width * s.c_in);
        // SAFETY: all taps in `rows` of all N pixels fall on the map, and the channels are whole vectors.
        unsafe {
            let mut acc = [A::V::splat(0.0); N];
            let mut first = self.map.wrapping_add(self.top * row + (x * S - s.padding[1]) * channels + c);
            for ky in self.rows.clone() {
                let taps = filter.add(ky * K * channels + c);
                for kx in 0..K {
                    let w = A::V::load(taps.add(kx * channels));
                    for i in 0..N {
                        acc[i] = w.mul_add(A::V::load(first.add((i * S + kx) * channels)), acc[i]);
                    }
                }
                // Past the last row this is never read.
                first = first.wrapping_add(row);
            }
            for i in 0..N {
                self.finish::<A>(acc[i], x + i, c, A::V::LANES);
            }
        }
    }

    /// Pixels one by one, channels from `from`.
    #[inline(always)]
    fn pixels<A: Arch>(&self, xs: Range<usize>, from: usize) {
        let s = &self.layer.shape;
        let taps = Taps { kernel: s.kernel[1], dilation: s.dilation[1], size: s.width };
        for x in xs {
            let (columns, left) = taps.inside(x * s.stride[1], s.padding[1]);
            for c in (from..s.c_in).step_by(A::V::LANES) {
                self.pixel::<A>(x, c, (&columns, left));
            }
        }
    }

    /// One pixel, up to a vector of channels, with the filter columns that fall on the map and where the
    /// first does.
    #[inline(always)]
    fn pixel<A: Arch>(&self, x: usize, c: usize, (columns, left): (&Range<usize>, usize)) {
        let Layer { shape: s, filter, .. } = self.layer;
        let (channels, count) = (s.c_in, A::V::LANES.min(s.c_in - c));
        // SAFETY: taps in `rows` and `columns` fall on the map; lanes past `count` are neither read nor
        // written.
        unsafe {
            let mut acc = A::V::splat(0.0);
            for ky in self.rows.clone() {
                let y = self.top + (ky - self.rows.start) * s.dilation[0];
                let first = self.map.add((y * s.width + left) * channels + c);
                for (i, kx) in columns.clone().enumerate() {
                    let w = A::V::load_up_to(filter.add((ky * s.kernel[1] + kx) * channels + c), count);
                    let v = A::V::load_up_to(first.add(i * s.dilation[1] * channels), count);
                    acc = w.mul_add(v, acc);
                }
            }
            self.finish::<A>(acc, x, c, count);
        }
    }

    /// Epilogue and store of `count` channels from `c` of pixel `x`.
    ///
    /// # Safety
    /// Pixel and channels lie in the row; features as for `A`.
    #[inline(always)]
    unsafe fn finish<A: Arch>(&self, sum: A::V, x: usize, c: usize, count: usize) {
        let Target { c: y, finish, .. } = &self.layer.target;
        let at = self.out + x * self.layer.shape.c_in + c;
        // SAFETY: bias and residual are as long as the channels and the map; the contract above.
        unsafe {
            let mut v = sum;
            if !finish.col_bias.is_null() {
                v = v.add(A::V::load_up_to(finish.col_bias.add(c), count));
            }
            if !finish.residual.is_null() {
                v = v.add(A::V::load_up_to(finish.residual.add(at), count));
            }
            v.clamp(A::V::splat(finish.lo), A::V::splat(finish.hi)).store_up_to(y.add(at), count);
        }
    }
}
