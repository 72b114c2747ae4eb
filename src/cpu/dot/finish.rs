//! What is done to a tile's sums before they are stored: bias, residual, activation, rounding.

use super::{COLS, Engine};
use crate::cpu::element::Element;
use crate::cpu::gemm::{self, Arch, CHUNK, Vector, transpose_square};
use crate::cpu::ops::{activation, normalise};
use crate::isa::{Isa, simd};
use crate::ops::activation::Activation;
use half::bf16;

/// Where a product's columns go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Side by side, so many a row: the channels of a map.
    Channels(usize),
    /// Each to a plane of its own, of so many rows.
    Planes(usize),
}

/// What is added to a result, laid out as that.
#[derive(Clone, Copy)]
pub(crate) enum Residual<'a> {
    /// Nothing.
    None,
    /// A map.
    Bf16(&'a [bf16]),
    /// A constant, or a map that callers see.
    F32(&'a [f32]),
}

impl<'a> Residual<'a> {
    /// From value `at` on, as many as `len`, at least.
    fn from(self, at: usize, len: usize) -> Residual<'a> {
        match self {
            Residual::None => Residual::None,
            Residual::Bf16(values) => Residual::Bf16(&values[at..at + len]),
            Residual::F32(values) => Residual::F32(&values[at..at + len]),
        }
    }

    /// Adds the values from `at` on.
    #[inline(always)]
    fn add(self, at: usize, sums: &mut [f32]) {
        match self {
            Residual::None => {}
            Residual::Bf16(values) => {
                let values = &values[at..][..sums.len()];
                for col in 0..sums.len() {
                    sums[col] += values[col].widen();
                }
            }
            Residual::F32(values) => {
                let values = &values[at..][..sums.len()];
                for col in 0..sums.len() {
                    sums[col] += values[col];
                }
            }
        }
    }
}

/// The tail of a product.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// Added per column.
    pub bias: Option<&'a [f32]>,
    /// Added to channels; planes have none.
    pub residual: Residual<'a>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// Where the result's columns lie.
    pub layout: Layout,
    /// Whose vectors do it.
    pub isa: Isa,
}

impl Finish<'_> {
    /// Stores rows of a tile: `sums` are `[rows][COLS]`, of which the first `cols` count. They are rows from
    /// `row` and columns from `col` of the product in `y`.
    ///
    /// # Safety
    /// `y` can be written there, by nobody else meanwhile, and the processor has the instructions of `E`.
    pub unsafe fn store<E: Engine, Y: Element>(
        &self,
        sums: &mut [f32],
        row: usize,
        col: usize,
        cols: usize,
        y: *mut Y,
    ) {
        let mut bias = [0.0; COLS];
        if let Some(all) = self.bias {
            bias[..cols].copy_from_slice(&all[col..col + cols]);
        }
        let stride = match self.layout {
            Layout::Channels(stride) => stride,
            Layout::Planes(plane) => {
                debug_assert!(matches!(self.residual, Residual::None) && self.activation.is_none());
                // SAFETY: the caller's contract.
                let y = unsafe { y.add(col * plane + row) };
                return gemm::on(self.isa, Planes { sums, bias: &bias, cols, y, plane });
            }
        };
        let (at, rows) = (row * stride + col, sums.len() / COLS);
        let mut residual = self.residual.from(at, (rows - 1) * stride + cols);
        if let Some(activation) = self.activation.filter(|a| a.clamp().is_none()) {
            add(self.isa, sums, &bias, residual, cols, stride);
            activation::apply(self.isa, activation, sums);
            (bias, residual) = ([0.0; COLS], Residual::None);
        }
        let bounds = normalise::bounds(self.activation);
        // SAFETY: the caller's contract.
        let y = unsafe { y.add(at) };
        #[cfg(target_arch = "x86_64")]
        if E::AVX512 && Y::BF16 {
            let rows = Rows { sums, cols, bias: &bias, residual, bounds, y: y.cast(), stride };
            // SAFETY: the processor has the instructions, and the result is the caller's, as it says; it is
            // bf16, and the residual covers the rows.
            return unsafe { super::avx512::store(&rows) };
        }
        store(self.isa, sums, &bias, residual, bounds, cols, stride, y);
    }
}

/// Rows of sums, and where they go as bf16.
#[cfg(target_arch = "x86_64")]
pub(super) struct Rows<'a> {
    /// `[rows][COLS]`.
    pub sums: &'a [f32],
    /// Columns that count.
    pub cols: usize,
    pub bias: &'a [f32; COLS],
    /// Row 0's and on.
    pub residual: Residual<'a>,
    /// What values are clamped to.
    pub bounds: (f32, f32),
    /// Where row 0 goes.
    pub y: *mut bf16,
    /// Values from a row to the next, of result and residual.
    pub stride: usize,
}

/// Stores the columns of a tile each to its plane, by squares that are transposed in registers.
struct Planes<'a, Y> {
    sums: &'a [f32],
    bias: &'a [f32; COLS],
    cols: usize,
    y: *mut Y,
    plane: usize,
}

impl<Y: Element> gemm::Job for Planes<'_, Y> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let lanes = A::V::LANES;
        let rows = self.sums.len() / COLS;
        for row in (0..rows).step_by(lanes) {
            let count = lanes.min(rows - row);
            for col in (0..self.cols).step_by(lanes) {
                // SAFETY: the tile has the rows up to the last, of 32 columns each, and the planes are the
                // caller's there: the contract of `Finish::store`.
                unsafe {
                    let mut square = [A::V::splat(0.0); CHUNK];
                    for (i, line) in square.iter_mut().enumerate().take(lanes) {
                        let row = (row + i).min(rows - 1);
                        *line = A::V::load(self.sums.as_ptr().add(row * COLS + col));
                    }
                    let square = transpose_square::<A>(square);
                    for (i, line) in square.iter().enumerate().take(lanes.min(self.cols - col)) {
                        let mut values = [0.0; CHUNK];
                        line.add(A::V::splat(self.bias[col + i])).store(values.as_mut_ptr());
                        let y = self.y.add((col + i) * self.plane + row);
                        for (i, &value) in values.iter().enumerate().take(count) {
                            *y.add(i) = Y::narrow(value);
                        }
                    }
                }
            }
        }
    }
}

simd! {
    /// Adds bias and residual in place.
    fn add(
        isa, sums: &mut [f32], bias: &[f32; COLS], residual: Residual<'_>, cols: usize, stride: usize,
    ) {
        for (row, sums) in sums.as_chunks_mut::<COLS>().0.iter_mut().enumerate() {
            for col in 0..COLS {
                sums[col] += bias[col];
            }
            residual.add(row * stride, &mut sums[..cols]);
        }
    }
}

simd! {
    /// Adds, clamps and stores in rows of which nobody else writes these columns.
    fn store<Y: Element>(
        isa, sums: &[f32], bias: &[f32; COLS], residual: Residual<'_>, bounds: (f32, f32), cols: usize,
        stride: usize, y: *mut Y,
    ) {
        let (low, high) = bounds;
        for (row, sums) in sums.as_chunks::<COLS>().0.iter().enumerate() {
            let mut sums = *sums;
            for col in 0..COLS {
                sums[col] += bias[col];
            }
            residual.add(row * stride, &mut sums[..cols]);
            // SAFETY: as said above.
            let y = unsafe { std::slice::from_raw_parts_mut(y.add(row * stride), cols) };
            for col in 0..cols {
                y[col] = Y::narrow(activation::clamped(sums[col], low, high));
            }
        }
    }
}
