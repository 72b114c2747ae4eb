//! Sums of a tile of neighbouring outputs.

use super::{ConvShape, Taps};
use crate::cpu::gemm::{Arch, Job, Narrow, Stored, Vector};
use crate::ops::levels::Rule;
use half::bf16;

/// Output pixels of a tile: as many independent sums as keep two multiply-adds a cycle of four cycles'
/// latency busy.
pub(super) const TILE: usize = 8;
/// The same at the end of a row that has no more.
pub(super) const SMALL_TILE: usize = 4;

/// Pixels of a row that a tile reads, at most.
const MOST: usize = (TILE - 1) * 2 + 5;

/// What taps meet.
pub(crate) trait Tap: Copy + Send + Sync {
    /// Whether a multiplication takes them from memory.
    const AS_IS: bool = false;
    /// Lanes of the least vectors that come in tiles: code for processors that come to such maps by name
    /// alone would only be large.
    const LANES: usize;

    /// Factors of `n` stored values.
    ///
    /// # Safety
    /// As of [`Stored::load`].
    unsafe fn factors<V: Narrow>(p: *const Self, n: usize, rule: &Rule) -> V;
}

/// Numbers as they are, and codes of levels without a sign.
macro_rules! as_stored {
    ($($type:ty: $as_is:literal, $lanes:literal;)*) => {
        $(impl Tap for $type {
            const AS_IS: bool = $as_is;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn factors<V: Narrow>(p: *const $type, n: usize, _: &Rule) -> V {
                // SAFETY: the caller's contract.
                unsafe { <$type>::load(p, n) }
            }
        })*
    };
}
as_stored! { f32: true, 1; bf16: false, 16; u8: false, 8; }

/// What becomes a level: numbers, or codes that may have a sign.
#[derive(Clone, Copy, bytemuck::TransparentWrapper)]
#[repr(transparent)]
pub(crate) struct AtLevels<X>(X);

impl<X: Stored> Tap for AtLevels<X> {
    /// Maps of codes are nearly always behind a ReLU, and so without a sign.
    const LANES: usize = usize::MAX;

    #[inline(always)]
    unsafe fn factors<V: Narrow>(p: *const Self, n: usize, rule: &Rule) -> V {
        // SAFETY: the caller's contract.
        unsafe {
            let values: V = X::load(p.cast(), n);
            if X::CODE { values.sub(V::splat(rule.zero.into())) } else { values.level(rule) }
        }
    }
}

/// Sums of outputs from `column` on.
pub(super) struct Sums<'a, X> {
    pub shape: &'a ConvShape,
    /// The first row of taps that falls on the map, at the first channel.
    pub x: *const X,
    /// How many rows fall there.
    pub rows: usize,
    /// Their taps, from the first channel on.
    pub filter: &'a [f32],
    /// How what is stored becomes a level.
    pub rule: &'a Rule,
    pub column: usize,
    pub outputs: usize,
    /// Channels that count.
    pub count: usize,
    /// Where the first output's first channel goes.
    pub to: *mut f32,
    /// Floats from an output to the next.
    pub pitch: usize,
    /// What is done to sums, if that is little.
    pub finish: Option<Finish>,
}

/// Adds a bias, then clamps.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// From the first channel on, if there is one.
    pub bias: Option<*const f32>,
    pub clamp: (f32, f32),
}

impl Finish {
    /// Sums of channels from `c` on.
    ///
    /// # Safety
    /// As of [`Vector`]'s methods; the bias has so many channels there.
    #[inline(always)]
    unsafe fn apply<V: Vector, const N: usize>(&self, mut sums: [V; N], c: usize, count: usize) -> [V; N] {
        // SAFETY: the caller's contract.
        unsafe {
            let bias = match self.bias {
                Some(bias) => V::load_up_to(bias.add(c), count),
                None => V::splat(0.0),
            };
            let (low, high) = (V::splat(self.clamp.0), V::splat(self.clamp.1));
            for i in 0..N {
                sums[i] = sums[i].add(bias).clamp(low, high);
            }
            sums
        }
    }
}

impl<X: Tap> Job for Sums<'_, X> {
    #[inline(always)]
    fn run<A: Arch>(mut self) {
        let (s, outputs) = (self.shape, self.outputs);
        // Beside the map lie columns of the first and last output of a row alone.
        let narrow = s.padding[1] < s.kernel[1] && (s.out_width() - 1) * s.stride[1] < s.padding[1] + s.width;
        if A::V::LANES < X::LANES || self.count < A::V::LANES || outputs < SMALL_TILE || !narrow {
            return self.pixels::<A>();
        }
        match (s.kernel[1], s.stride[1], s.dilation[1]) {
            (3, 1, 1) => self.tiles::<A, 3, 1>(),
            (3, 2, 1) => self.tiles::<A, 3, 2>(),
            (5, 1, 1) => self.tiles::<A, 5, 1>(),
            (5, 2, 1) => self.tiles::<A, 5, 2>(),
            _ => self.pixels::<A>(),
        }
    }
}

impl<X: Tap> Sums<'_, X> {
    /// Rows of `K` taps with stride `S`, by tiles. The last one overlaps the one before it if need be, and
    /// finds the same sums again.
    #[inline(always)]
    fn tiles<A: Arch, const K: usize, const S: usize>(&mut self) {
        let (s, outputs) = (self.shape, self.outputs);
        let mut next = 0;
        while next < outputs {
            let large = outputs - next > SMALL_TILE && outputs >= TILE;
            let tile = if large { TILE } else { SMALL_TILE };
            let at = next.min(outputs - tile);
            let first = (self.column + at) * S;
            let inside = first >= s.padding[1] && first + (tile - 1) * S + K <= s.padding[1] + s.width;
            match (large, inside) {
                (true, true) => self.tile::<A, K, S, TILE, false>(at),
                (true, false) => self.tile::<A, K, S, TILE, true>(at),
                _ => self.tile::<A, K, S, SMALL_TILE, true>(at),
            }
            next = at + tile;
        }
    }

    /// `N` outputs from `at` on, whole vectors of channels. The last one overlaps the one before it, too.
    #[inline(always)]
    fn tile<A: Arch, const K: usize, const S: usize, const N: usize, const EDGE: bool>(&mut self, at: usize) {
        let (s, lanes, column) = (self.shape, A::V::LANES, (self.column + at) * S);
        let channels = s.c_in;
        assert!(self.filter.len() >= (self.rows * K).saturating_sub(1) * channels + self.count);
        let columns = (N - 1) * S + K;
        // Those of these columns that lie on the map.
        let left = s.padding[1].saturating_sub(column);
        let right = s.padding[1] + s.width - column;
        let row = s.dilation[0] * s.width * channels;
        let start = column.wrapping_sub(s.padding[1]).wrapping_mul(channels);
        let to = self.to.wrapping_add(at * self.pitch);
        for c in (0..self.count).step_by(lanes) {
            let c = c.min(self.count - lanes);
            // SAFETY: rows, and columns that are read, lie on the map, and the channels are whole vectors;
            // the filter is as long as asserted, and the caller's outputs have that pitch.
            unsafe {
                let mut acc = [A::V::splat(0.0); N];
                let mut x = self.x.wrapping_add(start).wrapping_add(c);
                let mut taps = self.filter.as_ptr().wrapping_add(c);
                for _ in 0..self.rows {
                    if X::AS_IS && !EDGE {
                        for kx in 0..K {
                            let w = A::V::load(taps.add(kx * channels));
                            for i in 0..N {
                                let v = X::factors(x.add((i * S + kx) * channels), lanes, self.rule);
                                acc[i] = w.mul_add(v, acc[i]);
                            }
                        }
                        x = x.wrapping_add(row);
                        taps = taps.wrapping_add(K * channels);
                        continue;
                    }
                    let mut pixels = [A::V::splat(0.0); MOST];
                    for j in 0..columns {
                        let border = j < K - 1 || j + K > columns;
                        if !EDGE || !border || (left..right).contains(&j) {
                            pixels[j] = X::factors(x.wrapping_add(j * channels), lanes, self.rule);
                        }
                    }
                    for kx in 0..K {
                        let w = A::V::load(taps.add(kx * channels));
                        for i in 0..N {
                            acc[i] = w.mul_add(pixels[i * S + kx], acc[i]);
                        }
                    }
                    x = x.wrapping_add(row);
                    taps = taps.wrapping_add(K * channels);
                }
                if let Some(finish) = &self.finish {
                    acc = finish.apply(acc, c, lanes);
                }
                for i in 0..N {
                    acc[i].store(to.add(i * self.pitch + c));
                }
            }
        }
    }

    /// Outputs one by one, filters of any size.
    #[inline(always)]
    fn pixels<A: Arch>(&mut self) {
        let s = self.shape;
        let horizontal = Taps { kernel: s.kernel[1], dilation: s.dilation[1], size: s.width };
        let channels = s.c_in;
        for at in 0..self.outputs {
            let (columns, left) = horizontal.inside((self.column + at) * s.stride[1], s.padding[1]);
            for c in (0..self.count).step_by(A::V::LANES) {
                let count = self.count - c;
                // SAFETY: taps in `rows` and `columns` fall on the map; no lane past `count` is read.
                unsafe {
                    let mut acc = A::V::splat(0.0);
                    for row in 0..self.rows {
                        let y = row * s.dilation[0];
                        for (i, kx) in columns.clone().enumerate() {
                            let w = &self.filter[(row * s.kernel[1] + kx) * channels + c..];
                            let w = A::V::load_up_to(w.as_ptr(), count);
                            let x = (y * s.width + left + i * s.dilation[1]) * channels + c;
                            acc =
                                w.mul_add(X::factors(self.x.add(x), count.min(A::V::LANES), self.rule), acc);
                        }
                    }
                    if let Some(finish) = &self.finish {
                        [acc] = finish.apply([acc], c, count);
                    }
                    acc.store_up_to(self.to.add(at * self.pitch + c), count);
                }
            }
        }
    }
}
