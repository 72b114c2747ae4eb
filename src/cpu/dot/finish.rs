//! What is done to a tile's sums before they are stored: bias, residual, activation, rounding.

#[cfg(target_arch = "x86_64")]
use super::code_lines::Lines;
use super::{COLS, ROWS, Store, Vectors};
use crate::cpu::element::Element;
use crate::cpu::gemm::SharedMut;
use crate::cpu::gemm::{self, Arch, CHUNK, Vector, transpose_square};
use crate::cpu::ops::{activation, normalise};
use crate::isa::{Isa, simd};
use crate::ops::activation::Activation;
use crate::ops::levels::{Levels, Rule};
use half::bf16;
use std::ops::Range;

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
    /// A map of codes.
    Codes(&'a [u8], Levels),
}

/// What a tile's sums are.
#[derive(Clone, Copy)]
pub(crate) enum Sums<'a> {
    /// Numbers.
    F32,
    /// i32 in their place: sums of codes times levels.
    I32 {
        /// The codes' step.
        step: f32,
        /// The code of level 0.
        zero: i32,
        /// Of each column, its step.
        steps: &'a [f32],
        /// Of each column, the sum of its levels.
        sums: &'a [i32],
    },
}

/// How the columns of a tile become numbers.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    /// What the sums are too large by.
    pub excess: [i32; COLS],
    /// What one is worth.
    pub unit: [f32; COLS],
}

impl Sums<'_> {
    /// Of columns `col..col + cols`; `None` if they are numbers.
    fn scales(&self, col: usize, cols: usize) -> Option<Scales> {
        let Sums::I32 { step, zero, steps, sums } = self else { return None };
        let mut scales = Scales { excess: [0; COLS], unit: [0.0; COLS] };
        for at in 0..cols {
            scales.excess[at] = zero * sums[col + at];
            scales.unit[at] = step * steps[col + at];
        }
        Some(scales)
    }
}

impl<'a> Residual<'a> {
    /// From value `at` on, as many as `len`, at least.
    fn from(self, at: usize, len: usize) -> Residual<'a> {
        match self {
            Residual::None => Residual::None,
            Residual::Bf16(values) => Residual::Bf16(&values[at..at + len]),
            Residual::F32(values) => Residual::F32(&values[at..at + len]),
            Residual::Codes(codes, levels) => Residual::Codes(&codes[at..at + len], levels),
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
            Residual::Codes(codes, levels) => {
                let codes = &codes[at..][..sums.len()];
                for col in 0..sums.len() {
                    sums[col] += levels.value(codes[col]);
                }
            }
        }
    }
}

/// The tail of a product.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// What the sums are.
    pub sums: Sums<'a>,
    /// Added per column.
    pub bias: Option<&'a [f32]>,
    /// Added to channels; planes have none.
    pub residual: Residual<'a>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// Levels that results are brought to.
    pub output: Option<Rule>,
    /// Where the result's columns lie.
    pub layout: Layout,
    /// Whose vectors do it.
    pub isa: Isa,
}

/// Where tiles lie in a product.
pub(super) struct Spot {
    /// Their rows that count.
    pub rows: Range<usize>,
    /// Where the first of these is.
    pub row: usize,
    /// Columns: a panel's, or of two neighbours.
    pub cols: Range<usize>,
    /// Where the same line of the next spot is, in values from this one's.
    pub ahead: usize,
}

/// Where results go, whatever they are stored as: as [`Map`](super::factor::Map).
pub(super) trait Target: Sync {
    /// Stores the tiles of a spot as `finish` says: `sums` are `[tiles][ROWS][COLS]`.
    ///
    /// # Safety
    /// Nobody else writes there meanwhile, and the processor has these `vectors`.
    unsafe fn store(&self, finish: &Finish<'_>, vectors: Vectors, sums: &mut [f32], spot: &Spot);
}

impl<Y: Store> Target for SharedMut<Y> {
    unsafe fn store(&self, finish: &Finish<'_>, vectors: Vectors, sums: &mut [f32], spot: &Spot) {
        #[cfg(target_arch = "x86_64")]
        if Y::CODE
            && vectors.avx512
            && let Some((lines, at)) = finish.lines(sums, spot)
        {
            // SAFETY: the caller's contract; results are codes.
            return unsafe { lines.store(self.get().cast::<u8>().add(at)) };
        }
        for (tile, col) in spot.cols.clone().step_by(COLS).enumerate() {
            let rows = tile * ROWS + spot.rows.start..tile * ROWS + spot.rows.end;
            let spot = Spot { rows: spot.rows.clone(), cols: col..spot.cols.end.min(col + COLS), ..*spot };
            // SAFETY: the caller's contract.
            unsafe {
                finish.store(vectors, &mut sums[rows.start * COLS..rows.end * COLS], &spot, self.get())
            };
        }
    }
}

impl Finish<'_> {
    /// How a spot of two whole tiles becomes lines of codes, and where in the result, unless something is
    /// asked that they have not.
    #[cfg(target_arch = "x86_64")]
    fn lines<'a>(&'a self, sums: &'a [f32], spot: &'a Spot) -> Option<(Lines<'a>, usize)> {
        let (Some(levels), Layout::Channels(stride)) = (self.output, self.layout) else { return None };
        let clamps = self.activation.is_none_or(|activation| activation.clamp().is_some());
        let codes = matches!(self.residual, Residual::None | Residual::Codes(..));
        if spot.cols.len() != 2 * COLS || !clamps || !codes || matches!(self.sums, Sums::F32) {
            return None;
        }
        let at = spot.row * stride + spot.cols.start;
        let residual = self.residual.from(at, (spot.rows.len() - 1) * stride + 2 * COLS);
        let (of, bias, bounds) = (self.sums, self.bias, normalise::bounds(self.activation));
        Some((Lines { sums, of, bias, residual, bounds, levels, spot, stride }, at))
    }

    /// Stores the rows of a tile that count: `sums` are `[rows][COLS]`, of which the spot's columns count.
    ///
    /// # Safety
    /// `y` can be written where the spot says, by nobody else meanwhile, and the processor has these
    /// `vectors`.
    unsafe fn store<Y: Store>(&self, vectors: Vectors, sums: &mut [f32], spot: &Spot, y: *mut Y) {
        let Spot { row, ahead, .. } = *spot;
        let (col, cols) = (spot.cols.start, spot.cols.len());
        let mut bias = [0.0; COLS];
        if let Some(all) = self.bias {
            bias[..cols].copy_from_slice(&all[col..col + cols]);
        }
        let stride = match self.layout {
            Layout::Channels(stride) => stride,
            Layout::Planes(plane) => {
                debug_assert!(matches!(self.residual, Residual::None) && self.activation.is_none());
                debug_assert!(matches!(self.sums, Sums::F32) && self.output.is_none());
                // SAFETY: the caller's contract.
                let y = unsafe { y.add(col * plane + row) };
                return gemm::on(self.isa, Planes { sums, bias: &bias, cols, y, plane });
            }
        };
        let (at, rows) = (row * stride + col, sums.len() / COLS);
        let mut residual = self.residual.from(at, (rows - 1) * stride + cols);
        let mut scales = self.sums.scales(col, cols);
        if let Some(activation) = self.activation.filter(|a| a.clamp().is_none()) {
            if let Some(scales) = scales.take() {
                scale(self.isa, sums, &scales);
            }
            add(self.isa, sums, &bias, residual, cols, stride);
            activation::apply(self.isa, activation, sums);
            (bias, residual) = ([0.0; COLS], Residual::None);
        }
        let bounds = normalise::bounds(self.activation);
        // SAFETY: the caller's contract.
        let y = unsafe { y.add(at) };
        #[cfg(target_arch = "x86_64")]
        if vectors.avx512 && (Y::CODE || Y::BF16 && vectors.avx512_bf16 && self.output.is_none()) {
            let rows =
                Rows { sums, scales: scales.as_ref(), cols, bias: &bias, residual, bounds, stride, ahead };
            // SAFETY: the processor has the instructions, and the result is the caller's, as it says; it is
            // of that type, and the residual covers the rows.
            return unsafe {
                match self.output {
                    Some(levels) => super::avx512::store_codes(&rows, levels, y.cast()),
                    None => super::avx512::store_bf16(&rows, y.cast()),
                }
            };
        }
        if let Some(scales) = &scales {
            scale(self.isa, sums, scales);
        }
        store(self.isa, sums, &bias, residual, bounds, self.output, cols, stride, y);
    }
}

/// Rows of sums, and what is done to them.
#[cfg(target_arch = "x86_64")]
pub(super) struct Rows<'a> {
    /// `[rows][COLS]`, i32 in their place if there are scales.
    pub sums: &'a [f32],
    /// How these become numbers.
    pub scales: Option<&'a Scales>,
    /// Columns that count.
    pub cols: usize,
    pub bias: &'a [f32; COLS],
    /// Row 0's and on.
    pub residual: Residual<'a>,
    /// What values are clamped to.
    pub bounds: (f32, f32),
    /// Values from a row to the next, of result and residual.
    pub stride: usize,
    /// Values from a row to where the next tile's lies.
    pub ahead: usize,
}

/// Stores the columns of a tile each to its plane, by squares that are transposed in registers.
struct Planes<'a, Y> {
    sums: &'a [f32],
    bias: &'a [f32; COLS],
    cols: usize,
    y: *mut Y,
    plane: usize,
}

impl<Y: Store> gemm::Job for Planes<'_, Y> {
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
                            *y.add(i) = Y::store(value, None);
                        }
                    }
                }
            }
        }
    }
}

simd! {
    /// Makes sums of integers numbers, in place.
    fn scale(isa, sums: &mut [f32], scales: &Scales) {
        for sums in sums.as_chunks_mut::<COLS>().0 {
            for col in 0..COLS {
                let sum = sums[col].to_bits() as i32;
                sums[col] = (sum - scales.excess[col]) as f32 * scales.unit[col];
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
    fn store<Y: Store>(
        isa, sums: &[f32], bias: &[f32; COLS], residual: Residual<'_>, bounds: (f32, f32),
        levels: Option<Rule>, cols: usize, stride: usize, y: *mut Y,
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
                y[col] = Y::store(activation::clamped(sums[col], low, high), levels);
            }
        }
    }
}
