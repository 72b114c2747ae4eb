//! Winograd convolution, 3x3 with stride 1: `OUT x OUT` outputs from `IN x IN` inputs by `IN^2` products a
//! channel pair rather than `9 OUT^2`.
//!
//! The map is cut into tiles, and blocks of tiles pass through three phases, each parallel:
//! 1. input transform: V`[IN^2][tiles, c_in]`, written straight into the strips that the microkernel reads;
//! 2. `IN^2` matrix products with the transformed filters: M`[IN^2][tiles, c_out]`;
//! 3. output transform with the epilogue, into the map.
//!
//! The outputs of a dilated convolution whose rows and columns are equal modulo the dilation read a map of
//! their own, undilated: tiles are cut from each of these, so that a tile's pixels lie the dilation apart.
//!
//! V and M of one block stay in the last-level cache, and each block streams the filters once. Transforms
//! are vectorised over channels.

mod filter_grad;
mod scheme;
#[cfg(test)]
mod tests;
mod transform;

use std::marker::PhantomData;

use crate::cpu::gemm::{
    Ahead, Arch, Gemm, Job, SharedMut, Target, Tile, for_each_task, on, strip_len, strips_len, tile_shape,
};
use crate::isa::Isa;

use super::ConvShape;
use transform::{Filters, Inputs, Outputs};

pub(super) use filter_grad::FilterPass;
pub(super) use scheme::{F2, F4, Scheme};
pub(super) use transform::Order;

/// Tiles of a block, at most (a multiple of every `MR`).
const BLOCK: usize = 168;
/// k summed in registers before it is added to M: shorter runs round less, and the products' rounding is what
/// the output transform amplifies.
const DEPTH: usize = 64;
/// Channels of one transform task.
const CHANNELS: usize = 64;
/// Keeps the planes of V and M from starting in the same cache set.
const SKEW: usize = 16;

/// Where tiles, planes and blocks lie; a function of shape and instruction set.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub shape: ConvShape,
    pub isa: Isa,
    /// Tiles down and across one image.
    pub down: usize,
    pub across: usize,
    /// Tiles of a block.
    pub block: usize,
    /// Output channels, padded to whole panels.
    pub c_out_padded: usize,
    /// Values of a plane of V, strips of all tiles.
    pub v_plane: usize,
    /// Values of a plane of M, `[c_out_padded / NR][tiles][NR]`.
    pub m_plane: usize,
}

impl Layout {
    pub fn new(shape: ConvShape, out: usize, isa: Isa) -> Layout {
        let (mr, nr) = tile_shape(isa);
        let [down, across] = shape.tiles(out);
        let tiles = shape.batch * down * across;
        let block = tiles.div_ceil(tiles.div_ceil(BLOCK).max(1)).next_multiple_of(mr);
        let c_out_padded = shape.c_out.next_multiple_of(nr);
        Layout {
            shape,
            isa,
            down,
            across,
            block,
            v_plane: strips_len(block, shape.c_in, mr) + SKEW,
            m_plane: block * c_out_padded + SKEW,
            c_out_padded,
        }
    }

    pub fn tiles(&self) -> usize {
        self.shape.batch * self.down * self.across
    }

    /// Values of V and M of one block.
    pub fn workspace_len(&self, planes: usize) -> usize {
        planes * (self.v_plane + self.m_plane)
    }

    /// The product of one plane, as far as packing is concerned.
    pub fn plane_gemm(&self) -> Gemm {
        Gemm { m: self.block, n: self.shape.c_out, k: self.shape.c_in, isa: self.isa }
    }
}

/// One convolution on its way through the phases.
pub(super) struct Pass {
    pub layout: Layout,
    pub x: *const f32,
    /// `[IN^2]` packed filters.
    pub packed: *const f32,
    pub target: Target,
    pub v: *mut f32,
    pub m: *mut f32,
}

// SAFETY: map, filters, bias and residual are only read; tasks of a phase write disjoint parts of V, M or y,
// and a phase ends before the next begins.
unsafe impl Sync for Pass {}

impl Pass {
    /// Runs all blocks.
    pub fn run<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize>(&self) {
        let Layout { shape, isa, block, .. } = self.layout;
        let (mr, nr) = tile_shape(isa);
        let tiles = self.layout.tiles();
        for first in (0..tiles).step_by(block.max(1)) {
            let count = block.min(tiles - first);
            let groups = count.div_ceil(mr);
            let slice = |i: usize| (i % groups * mr, mr.min(count - i % groups * mr), i / groups * CHANNELS);
            for_each_task(groups * shape.c_in.div_ceil(CHANNELS), |i| {
                let (tile, tiles, channel) = slice(i);
                let channels = channel..(channel + CHANNELS).min(shape.c_in);
                on(isa, Inputs::<S, IN, OUT>::new(self, first, tile..tile + tiles, channels));
            });
            let width = nr * 128usize.div_ceil(nr);
            let parts = shape.c_out.div_ceil(width);
            for_each_task(IN * IN * parts, |i| {
                let (plane, col) = (i / parts, i % parts * width);
                on(
                    isa,
                    Products {
                        pass: self,
                        plane,
                        count,
                        cols: col..(col + width).min(self.layout.c_out_padded),
                    },
                );
            });
            for_each_task(groups * shape.c_out.div_ceil(CHANNELS), |i| {
                let (tile, tiles, channel) = slice(i);
                let channels = channel..(channel + CHANNELS).min(shape.c_out);
                on(isa, Outputs::<S, IN, OUT>::new(self, first, tile..tile + tiles, channels));
            });
        }
    }
}

/// Some columns of one plane's product, for the first `count` tiles of the block.
struct Products<'a> {
    pass: &'a Pass,
    plane: usize,
    count: usize,
    cols: std::ops::Range<usize>,
}

impl Job for Products<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let Layout { shape, block, v_plane, m_plane, .. } = self.pass.layout;
        let k_total = shape.c_in;
        let v = self.pass.v.wrapping_add(self.plane * v_plane);
        let m = self.pass.m.wrapping_add(self.plane * m_plane);
        let filters = self.pass.packed.wrapping_add(self.plane * self.pass.layout.plane_gemm().packed_len());
        let strips = self.count.div_ceil(A::MR);
        for col in self.cols.step_by(A::NR) {
            let panel = filters.wrapping_add(col * k_total);
            for k in (0..k_total.max(1)).step_by(DEPTH) {
                for strip in 0..strips {
                    let row = strip * A::MR;
                    // SAFETY: strips, panels and M are laid out as `Layout` says, with whole panels in M.
                    unsafe {
                        A::tile(&Tile {
                            rows: A::MR.min(self.count - row),
                            cols: A::NR,
                            k: DEPTH.min(k_total - k),
                            a: v.add(strip * strip_len(k_total, A::MR) + k * A::MR),
                            b: panel.add(k * A::NR),
                            c: m.add(col * block + row * A::NR),
                            ldc: A::NR,
                            accumulate: k > 0,
                            finish: None,
                            next: [
                                Ahead::panel(panel.wrapping_add((k + DEPTH) * A::NR), A::NR)
                                    .share(strip, strips),
                                Ahead::NOTHING,
                            ],
                        });
                    }
                }
            }
        }
    }
}

/// Transforms filters and packs each plane as B, in parallel over panels.
pub(super) fn pack_parallel<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize>(
    layout: &Layout,
    filter: &[f32],
    order: Order,
    packed: &mut [f32],
) {
    let nr = tile_shape(layout.isa).1;
    let shared = SharedMut::new(packed);
    let slices = layout.shape.c_in.div_ceil(CHANNELS);
    for_each_task(layout.c_out_padded / nr * slices, |i| {
        let (panel, channel) = (i / slices, i % slices * CHANNELS);
        let scheme = PhantomData::<S>;
        on(
            layout.isa,
            Filters::<S, IN, OUT> { layout, filter, order, panel, channel, packed: shared, scheme },
        );
    });
}
