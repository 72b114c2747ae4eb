//! The microkernel: one `MR x NR` tile of C, held in registers over a block of K.
//!
//! A arrives as a *strip* `[K / 16][MR][16]`: [`CHUNK`] consecutive k of each row lie side by side, so that
//! filling a strip copies whole cache lines (no transposition), and every address in the inner loop is one
//! base register plus a constant. B arrives as a *panel* `[K][NR]`, zero-padded to `NR` columns.

use std::ptr;

use super::vector::{Arch, Vector};

/// Consecutive k of one row that lie side by side in a strip: one cache line.
pub(crate) const CHUNK: usize = 16;

/// What happens to a tile once its sum over K is complete: `clamp(acc + bias + residual, lo, hi)`.
/// Pointers address the tile's first row and column; null means absent.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    pub col_bias: *const f32,
    pub row_bias: *const f32,
    /// Laid out as C.
    pub residual: *const f32,
    pub lo: f32,
    pub hi: f32,
}

impl Finish {
    /// The same epilogue for the part of C that starts at (`row`, `col`).
    #[inline(always)]
    pub fn at(self, row: usize, col: usize, ldc: usize) -> Finish {
        let step = |p: *const f32, by: usize| if p.is_null() { p } else { p.wrapping_add(by) };
        Finish {
            col_bias: step(self.col_bias, col),
            row_bias: step(self.row_bias, row),
            residual: step(self.residual, row * ldc + col),
            ..self
        }
    }
}

/// One call of the microkernel.
pub(crate) struct Tile {
    /// Valid rows, `1..=MR`.
    pub rows: usize,
    /// Valid columns, `1..=NR`.
    pub cols: usize,
    pub k: usize,
    /// Strip `[k / 16][MR][16]`; rows past `rows` are read (up to `MR`) but do not count.
    pub a: *const f32,
    /// Panel `[k][NR]`.
    pub b: *const f32,
    pub c: *mut f32,
    pub ldc: usize,
    /// Add to C rather than overwrite it.
    pub accumulate: bool,
    /// The epilogue, on the last block of K.
    pub finish: Option<Finish>,
}

/// Computes a tile with `ROWS` rows (at least `tile.rows`) and `NV` vectors of columns.
///
/// # Safety
/// The processor has the features of `A`, into which this is inlined; the pointers are valid for the ranges
/// that `tile` describes.
#[inline(always)]
pub(crate) unsafe fn kernel<A: Arch, const ROWS: usize, const NV: usize>(tile: &Tile) {
    // SAFETY: the contract above; every index below stays in the strip, the panel, and the tile's rows and
    // columns of C, bias and residual.
    unsafe {
        let zero = A::V::splat(0.0);
        let mut acc = [[zero; NV]; ROWS];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.k / CHUNK {
            for _ in 0..CHUNK {
                rank_one::<A, ROWS, NV>(&mut acc, a, b);
                a = a.add(1);
                b = b.add(A::NR);
            }
            a = a.add((A::MR - 1) * CHUNK);
        }
        for _ in 0..tile.k % CHUNK {
            rank_one::<A, ROWS, NV>(&mut acc, a, b);
            a = a.add(1);
            b = b.add(A::NR);
        }
        if tile.rows == ROWS && tile.cols == NV * A::V::LANES {
            write::<A, ROWS, NV, true>(acc, tile);
        } else {
            write::<A, ROWS, NV, false>(acc, tile);
        }
    }
}

#[inline(always)]
unsafe fn rank_one<A: Arch, const ROWS: usize, const NV: usize>(
    acc: &mut [[A::V; NV]; ROWS],
    a: *const f32,
    b: *const f32,
) {
    // SAFETY: as `kernel`.
    unsafe {
        let mut bv = [A::V::splat(0.0); NV];
        for (j, v) in bv.iter_mut().enumerate() {
            *v = A::V::load(b.add(j * A::V::LANES));
        }
        for i in 0..ROWS {
            let x = A::V::splat(*a.add(i * CHUNK));
            for j in 0..NV {
                acc[i][j] = x.mul_add(bv[j], acc[i][j]);
            }
        }
    }
}

/// Stores the accumulators, `FULL` when the whole `ROWS x NV` tile is inside C.
#[inline(always)]
unsafe fn write<A: Arch, const ROWS: usize, const NV: usize, const FULL: bool>(
    acc: [[A::V; NV]; ROWS],
    tile: &Tile,
) {
    let lanes = A::V::LANES;
    let none = Finish {
        col_bias: ptr::null(),
        row_bias: ptr::null(),
        residual: ptr::null(),
        lo: f32::NEG_INFINITY,
        hi: f32::INFINITY,
    };
    let finish = tile.finish.unwrap_or(none);
    // SAFETY: as `kernel`; partial tiles touch valid lanes of valid rows alone.
    unsafe {
        let zero = A::V::splat(0.0);
        let (lo, hi) = (A::V::splat(finish.lo), A::V::splat(finish.hi));
        let mut counts = [lanes; NV];
        let mut col_bias = [zero; NV];
        for j in 0..NV {
            if !FULL {
                counts[j] = tile.cols.saturating_sub(j * lanes).min(lanes);
            }
            if !finish.col_bias.is_null() {
                col_bias[j] = A::V::load_up_to(finish.col_bias.add(j * lanes), counts[j]);
            }
        }
        for i in 0..ROWS {
            if !FULL && i >= tile.rows {
                break;
            }
            let c = tile.c.add(i * tile.ldc);
            let row_bias =
                if finish.row_bias.is_null() { zero } else { A::V::splat(*finish.row_bias.add(i)) };
            for j in 0..NV {
                let mut v = acc[i][j];
                if tile.accumulate {
                    v = v.add(A::V::load_up_to(c.add(j * lanes), counts[j]));
                }
                if tile.finish.is_some() {
                    v = v.add(col_bias[j]).add(row_bias);
                    if !finish.residual.is_null() {
                        v = v.add(A::V::load_up_to(finish.residual.add(i * tile.ldc + j * lanes), counts[j]));
                    }
                    v = v.clamp(lo, hi);
                }
                v.store_up_to(c.add(j * lanes), counts[j]);
            }
        }
    }
}
