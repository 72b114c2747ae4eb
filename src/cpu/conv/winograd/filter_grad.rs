//! The gradient of 3x3 filters by the adjoint of F(4x4, 3x3). From `Y = A^T ((G g G^T) . (B^T d B)) A`
//! follows, summed over tiles, `dg = G^T (sum of (A dY A^T) . (B^T d B)) G`: 36 products over the tiles, 4
//! times fewer multiplications.
//!
//! Blocks of tiles pass through two parallel phases, transforms and products; a last phase transforms the
//! sums. V, the transformed map, is written straight into the panels that the microkernel reads.

use std::ops::Range;

use crate::cpu::gemm::{
    Arch, Block, Dense, Epilogue, Job, MC, Matrix, Packed, SharedMut, Target, Transposed, Vector,
    for_each_task, on, tile_shape,
};
use crate::isa::Isa;

use super::super::grad::GradShape;
use super::{F4, SKEW, Scheme};

const IN: usize = 6;
const OUT: usize = 4;
const PLANES: usize = IN * IN;
/// Tiles of a block, at most: the depth of one block of a product.
const BLOCK: usize = 256;
/// Tiles of one transform task.
const TILES: usize = 8;

/// The pass for one shape.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct FilterPass {
    shape: GradShape,
    isa: Isa,
    /// Tiles down and across one image, and of a block.
    down: usize,
    across: usize,
    block: usize,
    /// Values of a plane of V `[c_in / NR][block][NR]` and of D, the transformed gradient, `[block][c_out]`.
    v_plane: usize,
    d_plane: usize,
}

impl FilterPass {
    /// The pass, if it suits the shape and is expected to save time.
    ///
    /// Cost in multiplications a pair of channels: products, transforms, dearer with fewer channels to share
    /// them, and for each block reading and writing the sums, which takes as long as computing with each
    /// value some thirty times.
    pub fn new(shape: GradShape, isa: Isa) -> Option<FilterPass> {
        const STREAM: f64 = 30.0;
        /// Fewer tiles save little time in all, and direct sums are more precise.
        const FEWEST: usize = 64;
        let s = &shape;
        if (s.kernel, s.stride, s.dilation, s.groups) != ([3; 2], [1; 2], [1; 2], 1) {
            return None;
        }
        let (down, across) = (s.out[0].div_ceil(OUT), s.out[1].div_ceil(OUT));
        let tiles = s.batch * down * across;
        let blocks = tiles.div_ceil(BLOCK);
        let transforms = 16.0 / s.c_in as f64 + 16.0 / s.c_out as f64;
        let cost = PLANES as f64 * (tiles as f64 * (1.4 + transforms) + STREAM * blocks as f64);
        if tiles < FEWEST || cost >= 9.0 * s.out_pixels() as f64 {
            return None;
        }
        let block = tiles.div_ceil(blocks).next_multiple_of(TILES);
        let c_in = s.c_in.next_multiple_of(tile_shape(isa).1);
        let (v_plane, d_plane) = (block * c_in + SKEW, block * s.c_out + SKEW);
        Some(FilterPass { shape, isa, down, across, block, v_plane, d_plane })
    }

    /// Values of V and D of one block and of the sums.
    pub fn workspace_len(&self) -> usize {
        PLANES * (self.v_plane + self.d_plane + self.shape.c_out * self.shape.c_in)
    }

    /// Computes KRSC `dw`. The slices are as long as the shape says.
    pub fn run(&self, x: &[f32], dy: &[f32], dw: &mut [f32], workspace: &mut [f32]) {
        let (s, isa) = (&self.shape, self.isa);
        let size = s.c_out * s.c_in;
        let (v, rest) = workspace[..self.workspace_len()].split_at_mut(PLANES * self.v_plane);
        let (d, sums) = rest.split_at_mut(PLANES * self.d_plane);
        let (v, d, sums) = (SharedMut::new(v), SharedMut::new(d), SharedMut::new(sums));
        let tiles = s.batch * self.down * self.across;
        for first in (0..tiles).step_by(self.block) {
            let count = self.block.min(tiles - first);
            for_each_task(2 * count.div_ceil(TILES), |i| {
                let tiles = i / 2 * TILES..(i / 2 * TILES + TILES).min(count);
                if i % 2 == 0 {
                    on(isa, Maps { pass: self, x, v, first, tiles });
                } else {
                    on(isa, Gradients { pass: self, dy, d, first, tiles });
                }
            });
            let parts = s.c_out.div_ceil(MC);
            let rows = s.c_out.div_ceil(parts).next_multiple_of(tile_shape(isa).0);
            for_each_task(PLANES * parts, |i| {
                let (plane, row) = (i / parts, i % parts * rows);
                let a = Matrix { data: d.get().wrapping_add(plane * self.d_plane), ld: s.c_out };
                let b = Packed { data: v.get().wrapping_add(plane * self.v_plane), k_total: self.block };
                let c = sums.get().wrapping_add(plane * size);
                let mut finish = Epilogue::default().finish(s.c_out, s.c_in, s.c_in);
                if first > 0 {
                    // The sums so far are added where a residual would be.
                    finish.residual = c;
                }
                let target = Target { c, ldc: s.c_in, finish };
                let rows = row.min(s.c_out)..(row + rows).min(s.c_out);
                let (a, places) = (&Transposed(a), &Dense);
                on(isa, Block { a, b: &b, target, places, rows, cols: 0..s.c_in, k: 0..count });
            });
        }
        let dw = SharedMut::new(&mut dw[..s.filter_len()]);
        for_each_task(s.c_out, |k| on(isa, Filter { pass: self, sums, dw, k }));
    }

    /// Image, first output row and first output column of a tile.
    #[inline(always)]
    fn corner(&self, tile: usize) -> (usize, usize, usize) {
        let (image, rest) = (tile / (self.down * self.across), tile % (self.down * self.across));
        (image, rest / self.across * OUT, rest % self.across * OUT)
    }
}

/// `B^T d B` of tiles `first + tiles`, into V.
struct Maps<'a> {
    pass: &'a FilterPass,
    x: &'a [f32],
    v: SharedMut,
    first: usize,
    /// Within the block.
    tiles: Range<usize>,
}

impl Job for Maps<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let FilterPass { shape: s, block, v_plane, .. } = *self.pass;
        let [height, width] = s.map.map(|size| size as isize);
        for tile in self.tiles {
            let (image, y, x) = self.pass.corner(self.first + tile);
            // The tile's corner in the map, which may lie in the padding.
            let (y, x) = (y as isize - s.padding[0] as isize, x as isize - s.padding[1] as isize);
            let map = self.x.as_ptr().wrapping_add(image * s.map[0] * s.map[1] * s.c_in);
            for c in (0..s.c_in).step_by(A::V::LANES) {
                let count = s.c_in - c;
                // SAFETY: pixels outside the map and channels past the last are not read; V has whole panels.
                unsafe {
                    let zero = A::V::splat(0.0);
                    let mut half = [[zero; IN]; IN];
                    for j in 0..IN {
                        let mut column = [zero; IN];
                        for (i, d) in column.iter_mut().enumerate() {
                            let (y, x) = (y + i as isize, x + j as isize);
                            if y >= 0 && y < height && x >= 0 && x < width {
                                let at = (y * width + x) as usize * s.c_in + c;
                                *d = A::V::load_up_to(map.add(at), count);
                            }
                        }
                        let column = F4::input(column);
                        for i in 0..IN {
                            half[i][j] = column[i];
                        }
                    }
                    let to = self.v.get().add((c / A::NR * block + tile) * A::NR + c % A::NR);
                    for i in 0..IN {
                        let line = F4::input(half[i]);
                        for j in 0..IN {
                            line[j].store(to.add((i * IN + j) * v_plane));
                        }
                    }
                }
            }
        }
    }
}

/// `A dY A^T` of tiles `first + tiles`, into D.
struct Gradients<'a> {
    pass: &'a FilterPass,
    dy: &'a [f32],
    d: SharedMut,
    first: usize,
    /// Within the block.
    tiles: Range<usize>,
}

impl Job for Gradients<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let FilterPass { shape: s, d_plane, .. } = *self.pass;
        for tile in self.tiles {
            let (image, y, x) = self.pass.corner(self.first + tile);
            let (rows, cols) = (OUT.min(s.out[0] - y), OUT.min(s.out[1] - x));
            let origin = ((image * s.out[0] + y) * s.out[1] + x) * s.c_out;
            for c in (0..s.c_out).step_by(A::V::LANES) {
                let count = s.c_out - c;
                // SAFETY: results past the edge and channels past the last are neither read nor written.
                unsafe {
                    let zero = A::V::splat(0.0);
                    let mut half = [[zero; OUT]; IN];
                    for j in 0..OUT {
                        let mut column = [zero; OUT];
                        for (i, d) in column.iter_mut().enumerate() {
                            if i < rows && j < cols {
                                let at = origin + (i * s.out[1] + j) * s.c_out + c;
                                *d = A::V::load_up_to(self.dy.as_ptr().add(at), count);
                            }
                        }
                        let column = F4::output_adjoint(column);
                        for i in 0..IN {
                            half[i][j] = column[i];
                        }
                    }
                    let to = self.d.get().add(tile * s.c_out + c);
                    for i in 0..IN {
                        let line = F4::output_adjoint(half[i]);
                        for j in 0..IN {
                            line[j].store_up_to(to.add((i * IN + j) * d_plane), count);
                        }
                    }
                }
            }
        }
    }
}

/// `G^T sums G` of filter `k`, all channels.
struct Filter<'a> {
    pass: &'a FilterPass,
    sums: SharedMut,
    dw: SharedMut,
    k: usize,
}

impl Job for Filter<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let s = &self.pass.shape;
        let (g, size) = (F4::filter(), s.c_out * s.c_in);
        for c in (0..s.c_in).step_by(A::V::LANES) {
            let count = s.c_in - c;
            // SAFETY: channels past the last are neither read nor written; the filter belongs to this task.
            unsafe {
                let zero = A::V::splat(0.0);
                let from = self.sums.get().add(self.k * s.c_in + c);
                let mut half = [[zero; IN]; 3];
                for j in 0..IN {
                    for i in 0..IN {
                        let sum = A::V::load_up_to(from.add((i * IN + j) * size), count);
                        for r in 0..3 {
                            half[r][j] = A::V::splat(g[i][r] as f32).mul_add(sum, half[r][j]);
                        }
                    }
                }
                for r in 0..3 {
                    for t in 0..3 {
                        let mut w = zero;
                        for j in 0..IN {
                            w = A::V::splat(g[j][t] as f32).mul_add(half[r][j], w);
                        }
                        w.store_up_to(self.dw.get().add(((self.k * 3 + r) * 3 + t) * s.c_in + c), count);
                    }
                }
            }
        }
    }
}
