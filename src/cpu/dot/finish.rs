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

/// The tail of a product.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a, Y> {
    /// Added per column.
    pub bias: Option<&'a [f32]>,
    /// Added, laid out as the result: channels, not planes.
    pub residual: Option<&'a [Y]>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// Where the result's columns lie.
    pub layout: Layout,
    /// Whose vectors do it.
    pub isa: Isa,
}

impl<Y: Element> Finish<'_, Y> {
    /// Stores rows of a tile: `sums` are `[rows][COLS]`, of which the first `cols` count. They are rows from
    /// `row` and columns from `col` of the product in `y`.
    ///
    /// # Safety
    /// `y` can be written there, by nobody else meanwhile, and the processor has the instructions of `E`.
    pub unsafe fn store<E: Engine>(&self, sums: &mut [f32], row: usize, col: usize, cols: usize, y: *mut Y) {
        let mut bias = [0.0; COLS];
        if let Some(all) = self.bias {
            bias[..cols].copy_from_slice(&all[col..col + cols]);
        }
        let stride = match self.layout {
            Layout::Channels(stride) => stride,
            Layout::Planes(plane) => {
                debug_assert!(self.residual.is_none() && self.activation.is_none());
                // SAFETY: the caller's contract.
                let y = unsafe { y.add(col * plane + row) };
                return gemm::on(self.isa, Planes { sums, bias: &bias, cols, y, plane });
            }
        };
        let (at, rows) = (row * stride + col, sums.len() / COLS);
        let mut residual = match self.residual {
            Some(residual) => residual[at..at + (rows - 1) * stride + cols].as_ptr(),
            None => std::ptr::null(),
        };
        if let Some(activation) = self.activation.filter(|a| a.clamp().is_none()) {
            add(self.isa, sums, &bias, residual, cols, stride);
            activation::apply(self.isa, activation, sums);
            (bias, residual) = ([0.0; COLS], std::ptr::null());
        }
        let bounds = normalise::bounds(self.activation);
        // SAFETY: the caller's contract.
        let y = unsafe { y.add(at) };
        #[cfg(target_arch = "x86_64")]
        if E::AVX512 && Y::BF16 {
            let (sums, bias) = (sums.as_ptr(), bias.as_ptr());
            let rows =
                Rows { sums, rows, cols, bias, residual: residual.cast(), bounds, y: y.cast(), stride };
            // SAFETY: the processor has the instructions, as the caller says; `Y` is bf16, and so the pointers
            // are to what `Rows` says.
            return unsafe { super::avx512::store(&rows) };
        }
        store(self.isa, sums, &bias, residual, bounds, cols, stride, y);
    }
}

/// Rows of sums, and where they go as bf16.
pub(super) struct Rows {
    /// `[rows][COLS]`.
    pub sums: *const f32,
    pub rows: usize,
    /// Columns that count.
    pub cols: usize,
    /// [`COLS`] values.
    pub bias: *const f32,
    /// Where row 0's is, laid out as the result; or null.
    pub residual: *const bf16,
    /// What values are clamped to.
    pub bounds: (f32, f32),
    /// Where row 0 goes.
    pub y: *mut bf16,
    /// Values from a row to the next.
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
    /// Adds bias and residual in place. The residual is null or valid for the rows.
    fn add<Y: Element>(
        isa, sums: &mut [f32], bias: &[f32; COLS], residual: *const Y, cols: usize, stride: usize,
    ) {
        for (row, sums) in sums.as_chunks_mut::<COLS>().0.iter_mut().enumerate() {
            for col in 0..COLS {
                sums[col] += bias[col];
            }
            if !residual.is_null() {
                // SAFETY: as said above.
                let residual = unsafe { std::slice::from_raw_parts(residual.add(row * stride), cols) };
                for col in 0..cols {
                    sums[col] += residual[col].widen();
                }
            }
        }
    }
}

simd! {
    /// Adds, clamps and stores. The residual is null or valid for the rows, and nobody else has the result's.
    fn store<Y: Element>(
        isa, sums: &[f32], bias: &[f32; COLS], residual: *const Y, bounds: (f32, f32), cols: usize,
        stride: usize, y: *mut Y,
    ) {
        let (low, high) = bounds;
        for (row, sums) in sums.as_chunks::<COLS>().0.iter().enumerate() {
            let mut sums = *sums;
            for col in 0..COLS {
                sums[col] += bias[col];
            }
            if !residual.is_null() {
                // SAFETY: as said above.
                let residual = unsafe { std::slice::from_raw_parts(residual.add(row * stride), cols) };
                for col in 0..cols {
                    sums[col] += residual[col].widen();
                }
            }
            // SAFETY: as said above.
            let y = unsafe { std::slice::from_raw_parts_mut(y.add(row * stride), cols) };
            for col in 0..cols {
                y[col] = Y::narrow(activation::clamped(sums[col], low, high));
            }
        }
    }
}
