//! Where the two sides of a product come from: what fills strips of A and panels of B.

use std::ptr;

use super::kernel::{Ahead, CHUNK};
use super::vector::{Arch, Vector};

/// Fills strips with rows of A.
///
/// # Safety
/// Implementations read inside the arrays they were built with for any row and k inside their own shape.
pub(crate) trait Rows: Sync {
    /// Writes rows `row..row + rows` (`rows >= 1`), columns `k..k + len`, as consecutive strips of `A::MR`
    /// rows, each `[len.div_ceil(16)][MR][16]`. Places that no valid (row, k) maps to are left as they are.
    ///
    /// # Safety
    /// `strips` holds [`strips_len`] values, and the processor has the features of `A`.
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32);

    /// What to fetch before rows `row..row + rows` are filled from column `k` on; a hint, which may lie
    /// outside.
    fn ahead(&self, row: usize, rows: usize, k: usize) -> Ahead;
}

/// Values that `rows` rows of `len` columns take as strips.
pub(crate) const fn strips_len(rows: usize, len: usize, mr: usize) -> usize {
    rows.div_ceil(mr) * strip_len(len, mr)
}

/// Values of one strip of `len` columns.
pub(crate) const fn strip_len(len: usize, mr: usize) -> usize {
    len.div_ceil(CHUNK) * mr * CHUNK
}

/// Start of row `r` in strips of `len` columns; its chunk `i` lies `i * mr * CHUNK` further.
#[inline(always)]
pub(crate) fn strip_row(r: usize, len: usize, mr: usize) -> usize {
    (r / mr) * strip_len(len, mr) + (r % mr) * CHUNK
}

/// Copies `len` consecutive values to a row that starts at `dst` inside a strip.
///
/// # Safety
/// `src` holds `len` values, `dst` is a row start with room for them.
#[inline(always)]
pub(crate) unsafe fn copy_row(src: *const f32, dst: *mut f32, len: usize, mr: usize) {
    // SAFETY: whole chunks and then the rest, inside both ranges.
    unsafe {
        for i in 0..len / CHUNK {
            ptr::copy_nonoverlapping(src.add(i * CHUNK), dst.add(i * mr * CHUNK), CHUNK);
        }
        let done = len / CHUNK;
        for i in 0..len % CHUNK {
            *dst.add(done * mr * CHUNK + i) = *src.add(done * CHUNK + i);
        }
    }
}

/// A row-major matrix with row stride `ld`.
pub(crate) struct Matrix {
    pub data: *const f32,
    pub ld: usize,
}

// SAFETY: only read, for the duration of a call that borrows the slice behind the pointer.
unsafe impl Sync for Matrix {}

impl Rows for Matrix {
    #[inline(always)]
    fn ahead(&self, row: usize, rows: usize, k: usize) -> Ahead {
        Ahead::along(self.data.wrapping_add(row * self.ld + k), rows, self.ld)
    }

    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        for r in 0..rows {
            // SAFETY: (row + r, k..k + len) is inside the matrix.
            unsafe {
                let src = self.data.add((row + r) * self.ld + k);
                copy_row(src, strips.add(strip_row(r, len, A::MR)), len, A::MR);
            }
        }
    }
}

/// A matrix of logits read as the hard mask `logit > 0 ? 1 : 0` (NaN gives 0).
pub(crate) struct HardMask(pub Matrix);

impl Rows for HardMask {
    #[inline(always)]
    fn ahead(&self, row: usize, rows: usize, k: usize) -> Ahead {
        self.0.ahead(row, rows, k)
    }

    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        let hard = |x: f32| if x > 0.0 { 1.0 } else { 0.0 };
        for r in 0..rows {
            // SAFETY: (row + r, k..k + len) is inside the matrix; the strip has room for it.
            unsafe {
                let src = self.0.data.add((row + r) * self.0.ld + k);
                let dst = strips.add(strip_row(r, len, A::MR));
                for i in 0..len / CHUNK {
                    let logits = src.add(i * CHUNK).cast::<[f32; CHUNK]>().read_unaligned();
                    dst.add(i * A::MR * CHUNK).cast::<[f32; CHUNK]>().write_unaligned(logits.map(hard));
                }
                let done = len / CHUNK;
                for i in 0..len % CHUNK {
                    *dst.add(done * A::MR * CHUNK + i) = hard(*src.add(done * CHUNK + i));
                }
            }
        }
    }
}

/// The transpose of a row-major matrix with row stride `ld`: row `r` of A is column `r` of the matrix.
pub(crate) struct Transposed(pub Matrix);

impl Rows for Transposed {
    #[inline(always)]
    fn ahead(&self, row: usize, rows: usize, k: usize) -> Ahead {
        Ahead::across(self.0.data.wrapping_add(k * self.0.ld + row), self.0.ld, rows.div_ceil(CHUNK))
    }

    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        let lanes = A::V::LANES;
        for r in (0..rows).step_by(A::MR) {
            let count = A::MR.min(rows - r);
            let mut at = 0;
            while at < len {
                let width = lanes.min(len - at);
                // A strip has more rows than a vector lanes where registers are short.
                for first in (0..A::MR).step_by(lanes) {
                    let there = count.saturating_sub(first).min(lanes);
                    // SAFETY: rows k + at.. and the `there` columns from row + r + first on are inside the
                    // matrix; the strip has room for whole chunks of MR rows.
                    unsafe {
                        let src = self.0.data.wrapping_add((k + at) * self.0.ld + row + r + first);
                        let line = strip_row(r + first, len, A::MR) + at / CHUNK * A::MR * CHUNK;
                        let dst = strips.add(line + at % CHUNK);
                        let mut square = [A::V::splat(0.0); CHUNK];
                        for (i, line) in square.iter_mut().enumerate().take(lanes) {
                            if i < width {
                                *line = A::V::load_up_to(src.wrapping_add(i * self.0.ld), there);
                            }
                        }
                        let square = transpose_square::<A>(square);
                        for (i, line) in square.iter().enumerate().take(lanes.min(A::MR - first)) {
                            line.store(dst.add(i * CHUNK));
                        }
                    }
                }
                at += lanes;
            }
        }
    }
}

/// The transpose of a matrix of logits, read as the hard mask `logit > 0 ? 1 : 0` (NaN gives 0).
pub(crate) struct TransposedMask(pub Matrix);

impl Rows for TransposedMask {
    #[inline(always)]
    fn ahead(&self, row: usize, rows: usize, k: usize) -> Ahead {
        Transposed(Matrix { ..self.0 }).ahead(row, rows, k)
    }

    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        // SAFETY: the caller's contract; the transposing copy writes whole chunks of `LANES` columns, so that
        // all that is read here was written.
        unsafe {
            Transposed(Matrix { ..self.0 }).fill::<A>(row, rows, k, len, strips);
            for r in 0..rows {
                let row = strips.add(strip_row(r, len, A::MR));
                for at in (0..len).step_by(A::V::LANES) {
                    let piece = row.add(at / CHUNK * A::MR * CHUNK + at % CHUNK);
                    for i in 0..A::V::LANES {
                        *piece.add(i) = if *piece.add(i) > 0.0 { 1.0 } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Supplies panels of B.
pub(crate) trait Panels: Sync {
    /// Rows `k..k + len` of panel `index` as `[len][NR]`, either where they already lie or in `scratch`.
    ///
    /// # Safety
    /// `scratch` holds `len * NR` values, and the processor has the features of `A`.
    unsafe fn panel<A: Arch>(&self, index: usize, k: usize, len: usize, scratch: *mut f32) -> *const f32;

    /// What to fetch before panel `index` is used from row `k` on; a hint, which may lie outside.
    fn ahead<A: Arch>(&self, index: usize, k: usize) -> Ahead;
}

/// B packed beforehand as `[panel][k_total][NR]`.
pub(crate) struct Packed {
    pub data: *const f32,
    pub k_total: usize,
}

// SAFETY: only read, for the duration of a call that borrows the slice behind the pointer.
unsafe impl Sync for Packed {}

impl Panels for Packed {
    #[inline(always)]
    unsafe fn panel<A: Arch>(&self, index: usize, k: usize, _: usize, _: *mut f32) -> *const f32 {
        self.data.wrapping_add((index * self.k_total + k) * A::NR)
    }

    #[inline(always)]
    fn ahead<A: Arch>(&self, index: usize, k: usize) -> Ahead {
        Ahead::panel(self.data.wrapping_add((index * self.k_total + k) * A::NR), A::NR)
    }
}

/// How an unpacked B lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BLayout {
    /// `[K, N]`.
    RowMajor,
    /// `[N, K]`: linear-layer weights, and filters in KRSC order.
    Transposed,
}

/// B as it lies in memory (`n` columns, leading dimension `ld`), packed panel by panel.
pub(crate) struct Unpacked {
    pub data: *const f32,
    pub ld: usize,
    pub n: usize,
    pub layout: BLayout,
}

// SAFETY: only read, for the duration of a call that borrows the slice behind the pointer.
unsafe impl Sync for Unpacked {}

impl Panels for Unpacked {
    #[inline(always)]
    unsafe fn panel<A: Arch>(&self, index: usize, k: usize, len: usize, scratch: *mut f32) -> *const f32 {
        let col = index * A::NR;
        let cols = A::NR.min(self.n - col);
        // SAFETY: rows k..k + len and columns col..col + cols are inside B.
        unsafe {
            match self.layout {
                BLayout::RowMajor => {
                    let src = self.data.add(k * self.ld + col);
                    for r in 0..len {
                        let (src, dst) = (src.add(r * self.ld), scratch.add(r * A::NR));
                        let lanes = A::V::LANES;
                        for j in (0..A::NR).step_by(lanes) {
                            let count = cols.saturating_sub(j).min(lanes);
                            let v = A::V::load_up_to(src.wrapping_add(j), count);
                            v.store(dst.add(j));
                        }
                    }
                }
                BLayout::Transposed => {
                    for j in (0..A::NR).step_by(A::V::LANES) {
                        let src = self.data.wrapping_add((col + j) * self.ld + k);
                        let count = cols.saturating_sub(j).min(A::V::LANES);
                        transpose::<A>(src, self.ld, count, len, scratch.add(j));
                    }
                }
            }
        }
        scratch
    }

    #[inline(always)]
    fn ahead<A: Arch>(&self, index: usize, k: usize) -> Ahead {
        let col = index * A::NR;
        match self.layout {
            BLayout::RowMajor => {
                let start = self.data.wrapping_add(k * self.ld + col);
                Ahead::across(start, self.ld, A::NR.div_ceil(CHUNK))
            }
            BLayout::Transposed => Ahead::along(self.data.wrapping_add(col * self.ld + k), A::NR, self.ld),
        }
    }
}

/// Writes `count <= LANES` rows of `len` values (row stride `ld`) as `LANES` columns of an `[len][NR]` panel,
/// missing rows as zeros.
///
/// # Safety
/// The ranges are readable and writable; features as for `A`.
#[inline(always)]
unsafe fn transpose<A: Arch>(src: *const f32, ld: usize, count: usize, len: usize, dst: *mut f32) {
    let lanes = A::V::LANES;
    // SAFETY: reads rows below `count` and columns below `len` alone.
    unsafe {
        let zero = A::V::splat(0.0);
        let mut k = 0;
        while k < len {
            let width = lanes.min(len - k);
            let mut rows = [zero; CHUNK];
            for (i, row) in rows.iter_mut().enumerate().take(lanes) {
                if i < count {
                    let p = src.add(i * ld + k);
                    *row = A::V::load_up_to(p, width);
                }
            }
            let rows = transpose_square::<A>(rows);
            for (i, row) in rows.iter().enumerate().take(width) {
                row.store(dst.add((k + i) * A::NR));
            }
            k += lanes;
        }
    }
}

/// Transposes the first `LANES` registers, a square.
///
/// # Safety
/// Features as for `A`.
#[inline(always)]
pub(crate) unsafe fn transpose_square<A: Arch>(mut rows: [A::V; CHUNK]) -> [A::V; CHUNK] {
    let lanes = A::V::LANES;
    // log2(LANES) perfect shuffles.
    let mut done = 1;
    while done < lanes {
        let mut next = rows;
        for i in 0..lanes / 2 {
            // SAFETY: the contract above.
            (next[2 * i], next[2 * i + 1]) = unsafe { rows[i].interleave(rows[i + lanes / 2]) };
        }
        rows = next;
        done *= 2;
    }
    rows
}
