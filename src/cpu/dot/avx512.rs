//! AVX-512 BF16: a pair of factors of 16 columns an instruction. A broadcast pair of one row meets 32
//! columns; as many rows at once as leave registers for the columns.

use super::finish::{Residual, Rows};
use super::{COLS, Engine, PANEL_STEP, Tile};
use std::arch::x86_64::*;

pub(crate) struct Avx512;

impl Engine for Avx512 {
    const AVX512: bool = true;

    unsafe fn tile(tile: &Tile<'_>) {
        /// Two registers a row, of 32: with more rows the compiler keeps some of the sums in memory.
        const MOST: usize = 8;
        let mut row = 0;
        while row < tile.rows {
            // SAFETY: the caller's contract; all rows of a tile can be read, its sums written.
            unsafe {
                match tile.rows - row {
                    1..=2 => rows::<2>(tile, row),
                    3..=4 => rows::<4>(tile, row),
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
/// The processor has AVX-512 BF16; the result can be written, and the residual has values for all rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn store(rows: &Rows<'_>) {
    let lanes = u32::MAX >> (COLS - rows.cols);
    let halves = [lanes as __mmask16, (lanes >> 16) as __mmask16];
    // SAFETY: the caller's contract; lanes beyond the columns are neither read nor written.
    unsafe {
        let bias = [0, 16].map(|col| _mm512_loadu_ps(rows.bias.as_ptr().add(col)));
        let (low, high) = (_mm512_set1_ps(rows.bounds.0), _mm512_set1_ps(rows.bounds.1));
        for (row, sums) in rows.sums.as_chunks::<COLS>().0.iter().enumerate() {
            let sums = sums.as_ptr();
            let mut a = _mm512_add_ps(_mm512_loadu_ps(sums), bias[0]);
            let mut b = _mm512_add_ps(_mm512_loadu_ps(sums.add(16)), bias[1]);
            match rows.residual {
                Residual::None => {}
                Residual::Bf16(residual) => {
                    let residual = residual.as_ptr().add(row * rows.stride).cast();
                    let residual = _mm512_maskz_loadu_epi16(lanes, residual);
                    let first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(residual));
                    let second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(residual));
                    a = _mm512_add_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)));
                    b = _mm512_add_ps(b, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(second)));
                }
                Residual::F32(residual) => {
                    let residual = residual.as_ptr().add(row * rows.stride);
                    a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(halves[0], residual));
                    b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(halves[1], residual.wrapping_add(16)));
                }
            }
            // Of a comparison with NaN the second operand comes out.
            a = _mm512_min_ps(high, _mm512_max_ps(low, a));
            b = _mm512_min_ps(high, _mm512_max_ps(low, b));
            let narrow = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            _mm512_mask_storeu_epi16(rows.y.add(row * rows.stride).cast(), lanes, narrow);
        }
    }
}
