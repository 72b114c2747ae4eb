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
    /// The panel and the rows of A that are wanted next, to fetch into L2 meanwhile.
    pub next: [Ahead; 2],
}

/// Memory that is wanted soon, fetched into L2 a little with every [`CHUNK`] of a tile's k: `rows` rows, each
/// of `lines` cache lines, then the same `step` values further on.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    start: *const f32,
    rows: usize,
    /// Values from a row to the next.
    stride: usize,
    lines: usize,
    step: usize,
}

impl Ahead {
    pub const NOTHING: Ahead = Ahead { start: ptr::null(), rows: 0, stride: 0, lines: 0, step: 0 };

    /// `rows` rows that lie `stride` apart, read along: a line of each per chunk.
    #[inline(always)]
    pub fn along(start: *const f32, rows: usize, stride: usize) -> Ahead {
        Ahead { start, rows, stride, lines: 1, step: CHUNK }
    }

    /// Rows that lie `stride` apart, read across: the first `lines` lines of [`CHUNK`] more rows per chunk.
    #[inline(always)]
    pub fn across(start: *const f32, stride: usize, lines: usize) -> Ahead {
        Ahead { start, rows: CHUNK, stride, lines, step: CHUNK * stride }
    }

    /// A packed panel of `nr` columns: all lines of [`CHUNK`] rows per chunk.
    #[inline(always)]
    pub fn panel(start: *const f32, nr: usize) -> Ahead {
        Ahead { start, rows: nr, stride: CHUNK, lines: 1, step: nr * CHUNK }
    }

    /// Share `part` of `parts`, cut by rows.
    #[inline(always)]
    pub fn share(self, part: usize, parts: usize) -> Ahead {
        let each = self.rows.div_ceil(parts);
        let from = (part * each).min(self.rows);
        let start = self.start.wrapping_add(from * self.stride);
        Ahead { start, rows: each.min(self.rows - from), ..self }
    }

    /// Fetches what belongs to the next chunk.
    #[inline(always)]
    fn fetch(&mut self) {
        for row in 0..self.rows {
            for line in 0..self.lines {
                prefetch(self.start.wrapping_add(row * self.stride + line * CHUNK));
            }
        }
        self.start = self.start.wrapping_add(self.step);
    }
}

/// The residual of a tile, fetched during the first half of its k: its lines lie a row of C apart, where no
/// hardware prefetcher finds them.
struct ResidualAhead {
    start: *const f32,
    /// Rows yet to fetch, and how many per chunk.
    rows: usize,
    each: usize,
    ld: usize,
}

impl ResidualAhead {
    #[inline(always)]
    fn new(tile: &Tile) -> ResidualAhead {
        let start = tile.finish.as_ref().map_or(ptr::null(), |finish| finish.residual);
        let rows = if start.is_null() { 0 } else { tile.rows };
        ResidualAhead { start, rows, each: rows.div_ceil((tile.k / CHUNK / 2).max(1)), ld: tile.ldc }
    }

    #[inline(always)]
    fn fetch<const NV: usize>(&mut self, lanes: usize) {
        let now = self.each.min(self.rows);
        for _ in 0..now {
            for line in 0..(NV * lanes).div_ceil(CHUNK) {
                prefetch(self.start.wrapping_add(line * CHUNK));
            }
            self.start = self.start.wrapping_add(self.ld);
        }
        self.rows -= now;
    }
}

/// Fetches the line at `p`, which may be anywhere, into L2.
#[inline(always)]
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetches never fault, and SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
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
        let [mut panel, mut strip] = tile.next;
        let mut residual = ResidualAhead::new(tile);
        for _ in 0..tile.k / CHUNK {
            panel.fetch();
            strip.fetch();
            residual.fetch::<NV>(A::V::LANES);
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

/// Finishes and stores the accumulators, `FULL` when the whole `ROWS x NV` tile is inside C. One pass over
/// all accumulators a term: short loops unroll, so that the accumulators stay in registers.
#[inline(always)]
unsafe fn write<A: Arch, const ROWS: usize, const NV: usize, const FULL: bool>(
    mut acc: [[A::V; NV]; ROWS],
    tile: &Tile,
) {
    // SAFETY: as `kernel`; `Edge` touches valid lanes of valid rows alone.
    unsafe {
        let edge = Edge::<FULL> { rows: tile.rows, cols: tile.cols };
        if tile.accumulate {
            edge.add::<A, ROWS, NV>(&mut acc, tile.c, tile.ldc);
        }
        if let Some(finish) = &tile.finish {
            if !finish.col_bias.is_null() {
                edge.add::<A, ROWS, NV>(&mut acc, finish.col_bias, 0);
            }
            if !finish.row_bias.is_null() {
                for i in 0..ROWS {
                    if edge.has_row(i) {
                        let bias = A::V::splat(*finish.row_bias.add(i));
                        for j in 0..NV {
                            acc[i][j] = acc[i][j].add(bias);
                        }
                    }
                }
            }
            if !finish.residual.is_null() {
                edge.add::<A, ROWS, NV>(&mut acc, finish.residual, tile.ldc);
            }
            let (lo, hi) = (A::V::splat(finish.lo), A::V::splat(finish.hi));
            for i in 0..ROWS {
                for j in 0..NV {
                    acc[i][j] = acc[i][j].clamp(lo, hi);
                }
            }
        }
        for i in 0..ROWS {
            if edge.has_row(i) {
                for j in 0..NV {
                    let to = tile.c.add(i * tile.ldc + j * A::V::LANES);
                    if FULL { acc[i][j].store(to) } else { acc[i][j].store_first(to, edge.lanes::<A>(j)) }
                }
            }
        }
    }
}

/// Which part of a tile counts.
struct Edge<const FULL: bool> {
    rows: usize,
    cols: usize,
}

impl<const FULL: bool> Edge<FULL> {
    #[inline(always)]
    fn has_row(&self, i: usize) -> bool {
        FULL || i < self.rows
    }

    #[inline(always)]
    fn lanes<A: Arch>(&self, j: usize) -> usize {
        self.cols.saturating_sub(j * A::V::LANES).min(A::V::LANES)
    }

    /// Adds the matrix at `p` with row stride `ld`.
    #[inline(always)]
    unsafe fn add<A: Arch, const ROWS: usize, const NV: usize>(
        &self,
        acc: &mut [[A::V; NV]; ROWS],
        p: *const f32,
        ld: usize,
    ) {
        for i in 0..ROWS {
            if self.has_row(i) {
                for j in 0..NV {
                    // SAFETY: as `kernel`.
                    unsafe {
                        let p = p.add(i * ld + j * A::V::LANES);
                        let v = if FULL { A::V::load(p) } else { A::V::load_first(p, self.lanes::<A>(j)) };
                        acc[i][j] = acc[i][j].add(v);
                    }
                }
            }
        }
    }
}
