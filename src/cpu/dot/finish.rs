//! What is done to a tile's sums before they are stored: bias, residual, activation, rounding.

use super::COLS;
use crate::cpu::element::Element;
use crate::cpu::gemm::{self, Arch, CHUNK, Vector, transpose_square};
use crate::cpu::ops::{activation, normalise};
use crate::isa::{Isa, simd};
use crate::ops::activation::Activation;

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
    /// `y` can be written there, by nobody else meanwhile.
    pub unsafe fn store(&self, sums: &mut [f32], row: usize, col: usize, cols: usize, y: *mut Y) {
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
        let bounds = normalise::bounds(self.activation);
        let residual = self.residual.map(|residual| &residual[at..at + (rows - 1) * stride + cols]);
        // SAFETY: the caller's contract.
        let y = unsafe { y.add(at) };
        if let Some(activation) = self.activation.filter(|a| a.clamp().is_none()) {
            add(self.isa, sums, &bias, residual, cols, stride);
            activation::apply(self.isa, activation, sums);
            store(self.isa, sums, &[0.0; COLS], None, bounds, cols, stride, y);
        } else {
            store(self.isa, sums, &bias, residual, bounds, cols, stride, y);
        }
    }
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
    fn add<Y: Element>(
        isa, sums: &mut [f32], bias: &[f32; COLS], residual: Option<&[Y]>, cols: usize, stride: usize,
    ) {
        for (row, sums) in sums.as_chunks_mut::<COLS>().0.iter_mut().enumerate() {
            for col in 0..COLS {
                sums[col] += bias[col];
            }
            if let Some(residual) = residual {
                let residual = &residual[row * stride..][..cols];
                sums.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r.widen());
            }
        }
    }
}

simd! {
    /// Adds, clamps and stores.
    fn store<Y: Element>(
        isa, sums: &[f32], bias: &[f32; COLS], residual: Option<&[Y]>, bounds: (f32, f32), cols: usize,
        stride: usize, y: *mut Y,
    ) {
        let (low, high) = bounds;
        for (row, sums) in sums.as_chunks::<COLS>().0.iter().enumerate() {
            // SAFETY: the contract of `Finish::store`: this row of the result is the caller's alone.
            let y = unsafe { std::slice::from_raw_parts_mut(y.add(row * stride), cols) };
            let mut sums = *sums;
            for col in 0..COLS {
                sums[col] += bias[col];
            }
            if let Some(residual) = residual {
                let residual = &residual[row * stride..][..cols];
                if let Some(residual) = residual.first_chunk::<COLS>() {
                    for col in 0..COLS {
                        sums[col] += residual[col].widen();
                    }
                } else {
                    sums.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r.widen());
                }
            }
            let clamped = sums.map(|sum| activation::clamped(sum, low, high));
            if let Some(y) = y.first_chunk_mut::<COLS>() {
                *y = clamped.map(Y::narrow);
            } else {
                y.iter_mut().zip(clamped).for_each(|(y, value)| *y = Y::narrow(value));
            }
        }
    }
}
