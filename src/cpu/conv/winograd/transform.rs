//! The two-dimensional transforms, from and to NHWC maps.

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::gemm::{Arch, CHUNK, Job, SharedMut, Vector, strip_row, tile_shape};

use super::{CHANNELS, Layout, Pass, Scheme};

/// Input transform of tiles `first + tiles` and some channels, into V.
pub(super) struct Inputs<'a, S, const IN: usize, const OUT: usize> {
    pass: &'a Pass,
    first: usize,
    /// Within the block.
    tiles: Range<usize>,
    channels: Range<usize>,
    scheme: PhantomData<S>,
}

/// Output transform of tiles `first + tiles` and some channels, from M into the map.
pub(super) struct Outputs<'a, S, const IN: usize, const OUT: usize> {
    pass: &'a Pass,
    first: usize,
    /// Within the block.
    tiles: Range<usize>,
    channels: Range<usize>,
    scheme: PhantomData<S>,
}

impl<'a, S, const IN: usize, const OUT: usize> Inputs<'a, S, IN, OUT> {
    pub fn new(pass: &'a Pass, first: usize, tiles: Range<usize>, channels: Range<usize>) -> Self {
        Inputs { pass, first, tiles, channels, scheme: PhantomData }
    }
}

impl<'a, S, const IN: usize, const OUT: usize> Outputs<'a, S, IN, OUT> {
    pub fn new(pass: &'a Pass, first: usize, tiles: Range<usize>, channels: Range<usize>) -> Self {
        Outputs { pass, first, tiles, channels, scheme: PhantomData }
    }
}

impl Layout {
    /// Image, first output row and first output column of a tile.
    #[inline(always)]
    fn corner(&self, tile: usize, out: usize) -> (usize, usize, usize) {
        let (image, rest) = (tile / (self.down * self.across), tile % (self.down * self.across));
        (image, rest / self.across * out, rest % self.across * out)
    }
}

impl<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize> Job for Inputs<'_, S, IN, OUT> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let Layout { shape: s, v_plane, .. } = self.pass.layout;
        for tile in self.tiles {
            let (image, y, x) = self.pass.layout.corner(self.first + tile, OUT);
            // The tile's corner in the map, which may lie in the padding.
            let (y, x) = (y as isize - s.padding[0] as isize, x as isize - s.padding[1] as isize);
            let (height, width) = (s.height as isize, s.width as isize);
            let inside = y >= 0 && y + IN as isize <= height && x >= 0 && x + IN as isize <= width;
            let map = self.pass.x.wrapping_add(image * s.height * s.width * s.c_in);
            let row = self.pass.v.wrapping_add(strip_row(tile, s.c_in, A::MR));
            for c in self.channels.clone().step_by(A::V::LANES) {
                let count = A::V::LANES.min(s.c_in - c);
                // SAFETY: pixels outside the map and channels past `count` are not read; V has room for whole
                // chunks of every tile of the block.
                unsafe {
                    let zero = A::V::splat(0.0);
                    let mut half = [[zero; IN]; IN];
                    for j in 0..IN {
                        let mut column = [zero; IN];
                        for (i, d) in column.iter_mut().enumerate() {
                            let (y, x) = (y + i as isize, x + j as isize);
                            if inside || (y >= 0 && y < height && x >= 0 && x < width) {
                                let at = (y * width + x) as usize * s.c_in + c;
                                *d = A::V::load_up_to(map.add(at), count);
                            }
                        }
                        let column = S::input(column);
                        for i in 0..IN {
                            half[i][j] = column[i];
                        }
                    }
                    let dst = row.wrapping_add(c / CHUNK * CHUNK * A::MR + c % CHUNK);
                    for i in 0..IN {
                        let line = S::input(half[i]);
                        for j in 0..IN {
                            line[j].store(dst.add((i * IN + j) * v_plane));
                        }
                    }
                }
            }
        }
    }
}

impl<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize> Job for Outputs<'_, S, IN, OUT> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let Layout { shape: s, block, m_plane, .. } = self.pass.layout;
        let finish = &self.pass.target.finish;
        let (out_h, out_w) = (s.out_height(), s.out_width());
        for tile in self.tiles {
            let (image, y, x) = self.pass.layout.corner(self.first + tile, OUT);
            let (rows, cols) = (OUT.min(out_h - y), OUT.min(out_w - x));
            let origin = ((image * out_h + y) * out_w + x) * s.c_out;
            for c in self.channels.clone().step_by(A::V::LANES) {
                let count = A::V::LANES.min(s.c_out - c);
                // SAFETY: M has padded rows for every tile of the block; outputs past the map's edge and
                // channels past `count` are neither read nor written.
                unsafe {
                    let m = self.pass.m.add(c / A::NR * A::NR * block + tile * A::NR + c % A::NR);
                    let zero = A::V::splat(0.0);
                    let mut half = [[zero; IN]; OUT];
                    for j in 0..IN {
                        let mut column = [zero; IN];
                        for (i, v) in column.iter_mut().enumerate() {
                            *v = A::V::load(m.add((i * IN + j) * m_plane));
                        }
                        let column = S::output(column);
                        for i in 0..OUT {
                            half[i][j] = column[i];
                        }
                    }
                    let mut bias = zero;
                    if !finish.col_bias.is_null() {
                        bias = A::V::load_up_to(finish.col_bias.add(c), count);
                    }
                    let (lo, hi) = (A::V::splat(finish.lo), A::V::splat(finish.hi));
                    for i in 0..OUT {
                        let line = S::output(half[i]);
                        for j in 0..OUT {
                            if i < rows && j < cols {
                                let at = origin + (i * out_w + j) * s.c_out + c;
                                let mut v = line[j].add(bias);
                                if !finish.residual.is_null() {
                                    v = v.add(A::V::load_up_to(finish.residual.add(at), count));
                                }
                                v.clamp(lo, hi).store_up_to(self.pass.target.c.add(at), count);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `G g G^T` in f64 for one panel of filters and up to [`CHANNELS`] channels from `channel`.
pub(in super::super) fn pack<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize>(
    layout: &Layout,
    filter: &[f32],
    panel: usize,
    channel: usize,
    packed: SharedMut,
) {
    const WIDE: usize = 8;
    let (c_in, nr) = (layout.shape.c_in, tile_shape(layout.isa).1);
    let plane = layout.plane_gemm().packed_len();
    let g = S::filter();
    for c in (channel..(channel + CHANNELS).min(c_in)).step_by(WIDE) {
        let count = WIDE.min(c_in - c);
        for j in 0..nr {
            let n = panel * nr + j;
            let mut taps = [[[0.0f64; WIDE]; 3]; 3];
            if n < layout.shape.c_out {
                for (tap, lanes) in taps.as_flattened_mut().iter_mut().enumerate() {
                    let source = &filter[(n * 9 + tap) * c_in + c..][..count];
                    for (lane, &w) in lanes.iter_mut().zip(source) {
                        *lane = w as f64;
                    }
                }
            }
            // Rows, then columns.
            let mut half = [[[0.0f64; WIDE]; 3]; IN];
            for (half, g) in half.iter_mut().zip(&g) {
                for s in 0..3 {
                    for l in 0..WIDE {
                        half[s][l] = g[0] * taps[0][s][l] + g[1] * taps[1][s][l] + g[2] * taps[2][s][l];
                    }
                }
            }
            for (i, half) in half.iter().enumerate() {
                for (k, g) in g.iter().enumerate() {
                    for l in 0..count {
                        let value = half[0][l] * g[0] + half[1][l] * g[1] + half[2][l] * g[2];
                        let at = (i * IN + k) * plane + (panel * c_in + c + l) * nr + j;
                        // SAFETY: inside the packed planes, at an element that belongs to this panel and channel.
                        unsafe { *packed.get().add(at) = value as f32 };
                    }
                }
            }
        }
    }
}
