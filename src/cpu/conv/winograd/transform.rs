//! The two-dimensional transforms, from and to NHWC maps.

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::gemm::{Arch, CHUNK, Job, SharedMut, Vector, strip_row, transpose_square};

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
    /// Image, first output row and first output column of a tile; its others follow the dilation apart. A
    /// tile of the last residues may lie past the map.
    #[inline(always)]
    fn corner(&self, tile: usize, out: usize) -> (usize, usize, usize) {
        let (image, rest) = (tile / (self.down * self.across), tile % (self.down * self.across));
        let first = |tile: usize, axis: usize| {
            let residues = self.shape.residues(axis);
            tile % residues + tile / residues * out * self.shape.dilation[axis]
        };
        (image, first(rest / self.across, 0), first(rest % self.across, 1))
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
            let [down, across] = s.dilation.map(|step| step as isize);
            let reach = IN as isize - 1;
            let inside = y >= 0 && y + reach * down < height && x >= 0 && x + reach * across < width;
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
                            let (y, x) = (y + i as isize * down, x + j as isize * across);
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
            let [down, across] = s.dilation;
            let rows = out_h.saturating_sub(y).div_ceil(down).min(OUT);
            let cols = out_w.saturating_sub(x).div_ceil(across).min(OUT);
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
                                let at = origin + (i * down * out_w + j * across) * s.c_out + c;
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

/// `G g G^T` for one panel of filters and up to [`CHANNELS`] channels from `channel`, vectorised over
/// filters: in a training step the filters are new, so that packing them is part of every convolution. In
/// double precision: rounding the filters twice would cost as much accuracy as the rest of the convolution.
pub(super) struct Filters<'a, S, const IN: usize, const OUT: usize> {
    pub layout: &'a Layout,
    pub filter: &'a [f32],
    pub order: Order,
    pub panel: usize,
    pub channel: usize,
    /// `IN^2` planes.
    pub packed: SharedMut,
    pub scheme: PhantomData<S>,
}

/// How the filters of a convolution from `c_in` to `c_out` channels lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Order {
    /// `[c_out][tap][c_in]`.
    Krsc,
    /// `[c_in][tap][c_out]` with the taps in reverse order: as they lie for the convolution that this one is
    /// the gradient of.
    Turned,
}

impl<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize> Job for Filters<'_, S, IN, OUT> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let Filters { layout, filter, order, panel, channel, packed, .. } = self;
        let (c_in, c_out) = (layout.shape.c_in, layout.shape.c_out);
        assert!(filter.len() >= layout.shape.filter_len(), "filter of {} values", filter.len());
        let plane = layout.plane_gemm().packed_len();
        let lanes = A::V::LANES;
        let g = S::filter();
        for c in (channel..(channel + CHANNELS).min(c_in)).step_by(lanes) {
            let count = lanes.min(c_in - c);
            for j in (0..A::NR).step_by(lanes) {
                let first = panel * A::NR + j;
                let filters = c_out.saturating_sub(first).min(lanes);
                // SAFETY: reads channels c..c + count of filters that exist, writes the panel's rows of these
                // channels in every plane, which belong to this task.
                unsafe {
                    let zero = A::V::splat(0.0);
                    // Of each tap, a register a channel with one filter a lane.
                    let mut taps = [[zero; CHUNK]; 9];
                    for (tap, square) in taps.iter_mut().enumerate() {
                        match order {
                            Order::Krsc => {
                                for (i, row) in square.iter_mut().enumerate().take(filters) {
                                    let source = filter.as_ptr().add(((first + i) * 9 + tap) * c_in + c);
                                    *row = A::V::load_up_to(source, count);
                                }
                                *square = transpose_square::<A>(*square);
                            }
                            Order::Turned if filters > 0 => {
                                for (l, row) in square.iter_mut().enumerate().take(count) {
                                    let source = filter.as_ptr().add(((c + l) * 9 + 8 - tap) * c_out + first);
                                    *row = A::V::load_up_to(source, filters);
                                }
                            }
                            Order::Turned => {}
                        }
                    }
                    for l in 0..count {
                        let to = packed.get().add((panel * c_in + c + l) * A::NR + j);
                        let mut w = [[0.0f64; CHUNK]; 9];
                        for (w, square) in w.iter_mut().zip(&taps) {
                            let mut row = [0.0f32; CHUNK];
                            square[l].store(row.as_mut_ptr());
                            w.iter_mut().zip(row).for_each(|(w, v)| *w = f64::from(v));
                        }
                        // Columns, then rows.
                        let mut half = [[[0.0f64; CHUNK]; 3]; IN];
                        for (half, g) in half.iter_mut().zip(&g) {
                            for s in 0..3 {
                                for n in 0..CHUNK {
                                    half[s][n] = g[0] * w[s][n] + g[1] * w[3 + s][n] + g[2] * w[6 + s][n];
                                }
                            }
                        }
                        for (i, half) in half.iter().enumerate() {
                            for (k, g) in g.iter().enumerate() {
                                let mut sum = [0.0f32; CHUNK];
                                for n in 0..CHUNK {
                                    sum[n] =
                                        (half[0][n] * g[0] + half[1][n] * g[1] + half[2][n] * g[2]) as f32;
                                }
                                A::V::load(sum.as_ptr()).store(to.add((i * IN + k) * plane));
                            }
                        }
                    }
                }
            }
        }
    }
}
