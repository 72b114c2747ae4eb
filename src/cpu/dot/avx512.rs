//! AVX-512 BF16: a pair of factors of 16 columns an instruction. A broadcast pair of one row meets 32 columns;
//! as many rows at once as leave registers for the columns.

use super::finish::Rows;
use super::{COLS, Engine, PANEL_STEP, Tile};
use std::arch::x86_64::*;

pub(crate) struct Avx512;

impl Engine for Avx512 {
    const AVX512: bool = true;

    unsafe fn tile(tile: &Tile<'_>) {
        /// Two registers a row, of 32: the rest holds columns and a pair.
        const MOST: usize = 12;
        let mut row = 0;
        while row < tile.rows {
            // SAFETY: the caller's contract; all rows of a tile can be read, its sums written.
            unsafe {
                match tile.rows - row {
                    1..=2 => rows::<2>(tile, row),
                    3..=4 => rows::<4>(tile, row),
                    5..=8 => rows::<8>(tile, row),
                    _ => rows::<MOST>(tile, row),
                }
            }
            row += MOST;
        }
    }
}

/// Rows `first..first + R` of the tile; those beyond the last are computed too.
///
/// # Safety
/// The processor has the features; else as [`Engine::tile`], and the rows lie in the tile.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const R: usize>(tile: &Tile<'_>, first: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let sums = tile.sums.add(first * COLS);
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        if tile.accumulate {
            for (row, acc) in acc.iter_mut().enumerate() {
                *acc = [0, 16].map(|col| _mm512_loadu_ps(sums.add(row * COLS + col)));
            }
        }
        let mut b = tile.b;
        for &offset in tile.offsets {
            let mut a = tile.a.add(offset as usize + first * tile.stride);
            for pair in 0..16 {
                let halves = [0, PANEL_STEP / 2].map(|half| {
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(
                        b.add(half + pair * 64).cast(),
                    ))
                });
                for (row, acc) in acc.iter_mut().enumerate() {
                    let pair = a.add(row * tile.stride).cast::<i32>().read_unaligned();
                    let pair = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair));
                    acc[0] = _mm512_dpbf16_ps(acc[0], pair, halves[0]);
                    acc[1] = _mm512_dpbf16_ps(acc[1], pair, halves[1]);
                }
                a = a.add(4);
            }
            b = b.add(PANEL_STEP);
        }
        for (row, acc) in acc.iter().enumerate() {
            _mm512_storeu_ps(sums.add(row * COLS), acc[0]);
            _mm512_storeu_ps(sums.add(row * COLS + 16), acc[1]);
        }
    }
}

/// Adds bias and residual to rows of sums, clamps, and stores them as bf16.
///
/// # Safety
/// The processor has AVX-512 BF16; the pointers are valid for what [`Rows`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn store(rows: &Rows) {
    let lanes = (u32::MAX >> (COLS - rows.cols)) as __mmask32;
    // SAFETY: the caller's contract; lanes beyond the columns are neither read nor written.
    unsafe {
        let bias = [0, 16].map(|col| _mm512_loadu_ps(rows.bias.add(col)));
        let (low, high) = (_mm512_set1_ps(rows.bounds.0), _mm512_set1_ps(rows.bounds.1));
        for row in 0..rows.rows {
            let sums = rows.sums.add(row * COLS);
            let mut values = [
                _mm512_add_ps(_mm512_loadu_ps(sums), bias[0]),
                _mm512_add_ps(_mm512_loadu_ps(sums.add(16)), bias[1]),
            ];
            if !rows.residual.is_null() {
                let residual = _mm512_maskz_loadu_epi16(lanes, rows.residual.add(row * rows.stride).cast());
                let halves = [_mm512_castsi512_si256(residual), _mm512_extracti64x4_epi64::<1>(residual)];
                for (value, half) in values.iter_mut().zip(halves) {
                    let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                    *value = _mm512_add_ps(*value, _mm512_castsi512_ps(wide));
                }
            }
            // The second operand is what a comparison with NaN gives.
            let [a, b] = values.map(|value| _mm512_min_ps(high, _mm512_max_ps(low, value)));
            let narrow = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            _mm512_mask_storeu_epi16(rows.y.add(row * rows.stride).cast(), lanes, narrow);
        }
    }
}
