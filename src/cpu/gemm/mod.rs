//! Packed, cache-blocked matrix products in f32, and the two products K-Net's masks need.
//!
//! `C[M, N] = epilogue(A[M, K] B[K, N])`, row-major. B is packed once into panels of `NR` columns; A is
//! copied block by block into strips of `MR` rows, which is how convolution, hard masks and plain matrices
//! all reach the same microkernel (`kernel.rs`). Sums over K run in a fixed order that depends on K alone,
//! so results do not depend on the number of threads, nor on how C is cut into tasks.

mod block;
mod kernel;
mod long;
mod mask;
mod matmul;
mod narrow;
mod operand;
#[cfg(test)]
pub(crate) mod tests;
mod vector;

use std::ptr;

use crate::isa::Isa;

use operand::Unpacked;

pub use long::LongGemm;
pub use mask::{MaskConv, MaskPool};
pub use matmul::Product;
pub use operand::BLayout;

pub(crate) use block::{Block, Dense, KC, MC, Places, SharedMut, Target, for_each_task, run, run_at};
pub(crate) use kernel::{Ahead, CHUNK, Finish, Tile};
pub(crate) use long::add_up;
pub(crate) use narrow::{Narrow, Stored};
pub(crate) use operand::{
    Matrix, Packed, Panels, Rows, Transposed, copy_row, strip_len, strip_row, strips_len, transpose_square,
};
pub(crate) use vector::{Arch, Job, Vector, on, tile_shape};

/// A bias that is added to every element of C.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// One value per column `[N]`: a channel's bias.
    Column(&'a [f32]),
    /// One value per row `[M]`: an object's bias in a mask convolution.
    Row(&'a [f32]),
}

/// What happens to C at its final store: `clamp(acc + bias + residual, lo, hi)`. NaN stays NaN.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added first.
    pub bias: Option<Bias<'a>>,
    /// Added next; laid out as C, with the same row stride.
    pub residual: Option<&'a [f32]>,
    /// `(lo, hi)`: ReLU is `(0, inf)`, ReLU6 is `(0, 6)`.
    pub clamp: Option<(f32, f32)>,
}

impl Epilogue<'_> {
    /// As the microkernel reads it, for an `m x n` C with row stride `ldc`.
    pub(crate) fn finish(&self, m: usize, n: usize, ldc: usize) -> Finish {
        let (mut col_bias, mut row_bias) = (ptr::null(), ptr::null());
        match self.bias {
            Some(Bias::Column(b)) => {
                assert!(b.len() >= n, "bias of {} values for {n} columns", b.len());
                col_bias = b.as_ptr();
            }
            Some(Bias::Row(b)) => {
                assert!(b.len() >= m, "bias of {} values for {m} rows", b.len());
                row_bias = b.as_ptr();
            }
            None => {}
        }
        let residual = self.residual.map_or(ptr::null(), |r| {
            assert!(r.len() >= span(m, n, ldc), "residual of {} values for {m} x {n}", r.len());
            r.as_ptr()
        });
        let (lo, hi) = self.clamp.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        Finish { col_bias, row_bias, residual, lo, hi }
    }
}

/// Values from the first to the last element of a `rows x cols` matrix with row stride `ld`.
pub(crate) fn span(rows: usize, cols: usize, ld: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * ld + cols }
}

/// A product `C[m, n] = A[m, k] B[k, n]`.
///
/// All methods panic when a slice is shorter than its shape says: shapes are checked when a plan is made,
/// so that is a bug in the caller. None of them allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// The instruction set; B must be packed for the same one.
    pub isa: Isa,
}

impl Gemm {
    /// Values of packed B: `k` rows of columns padded to whole panels.
    pub fn packed_len(&self) -> usize {
        self.n.next_multiple_of(tile_shape(self.isa).1) * self.k
    }

    /// Packs a dense B, `[k, n]` or `[n, k]`, into `packed[..packed_len()]`, in parallel.
    pub fn pack_b(&self, b: &[f32], layout: BLayout, packed: &mut [f32]) {
        let ld = if layout == BLayout::RowMajor { self.n } else { self.k };
        self.pack_b_strided(b, ld, layout, packed);
    }

    /// Packs B with leading dimension `ld` (row stride of `[k, n]` or of `[n, k]`).
    pub fn pack_b_strided(&self, b: &[f32], ld: usize, layout: BLayout, packed: &mut [f32]) {
        let need = match layout {
            BLayout::RowMajor => span(self.k, self.n, ld),
            BLayout::Transposed => span(self.n, self.k, ld),
        };
        assert!(b.len() >= need, "B of {} values for {self:?}, ld {ld}", b.len());
        assert!(packed.len() >= self.packed_len(), "packed B of {} values for {self:?}", packed.len());
        let b = Unpacked { data: b.as_ptr(), ld, n: self.n, layout };
        let shared = SharedMut::new(packed);
        let nr = tile_shape(self.isa).1;
        // A task packs at most `KC` rows of one panel.
        let depth = self.k.div_ceil(KC);
        for_each_task(self.n.div_ceil(nr) * depth, |i| {
            let (index, k) = (i / depth, i % depth * KC);
            // SAFETY: (panel, k) names a range of `packed` that no other task writes.
            let to = unsafe { shared.get().add((index * self.k + k) * nr) };
            on(self.isa, PackPanel { b: &b, index, k, len: KC.min(self.k - k), to });
        });
    }

    /// `c = epilogue(a B)` with row strides `lda` and `ldc`, tasks in parallel on the current rayon pool.
    pub fn run(&self, a: &[f32], lda: usize, packed: &[f32], epilogue: &Epilogue, c: &mut [f32], ldc: usize) {
        let Gemm { m, n, k, isa } = *self;
        assert!(a.len() >= span(m, k, lda), "A of {} values for {self:?}, lda {lda}", a.len());
        assert!(packed.len() >= self.packed_len(), "packed B of {} values for {self:?}", packed.len());
        assert!(c.len() >= span(m, n, ldc) && ldc >= n, "C of {} values for {self:?}, ldc {ldc}", c.len());
        let a = Matrix { data: a.as_ptr(), ld: lda };
        let b = Packed { data: packed.as_ptr(), k_total: k };
        run(isa, [m, n, k], &a, &b, Target { c: c.as_mut_ptr(), ldc, finish: epilogue.finish(m, n, ldc) });
    }
}

/// Packs `len` rows of one panel.
struct PackPanel<'a> {
    b: &'a Unpacked,
    index: usize,
    k: usize,
    len: usize,
    to: *mut f32,
}

impl Job for PackPanel<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        // SAFETY: `on` chose an available A; `to` has room for the panel's rows.
        unsafe { self.b.panel::<A>(self.index, self.k, self.len, self.to) };
    }
}
