//! AVX-512 BF16 and AVX-512 VNNI: a pair, or four, of factors of 16 columns an instruction. A broadcast group
//! of one row meets 32 columns; as many rows at once as leave registers for the columns.

use super::finish::{Residual, Rows};
use super::{COLS, Engine, PANEL_STEP, Tile, Vectors};
use crate::ops::levels::Rule;
use half::bf16;
use std::arch::x86_64::*;

/// AVX-512 BF16.
pub(crate) struct Bf16;

/// AVX-512 VNNI.
pub(crate) struct Vnni;

/// A pair of factors sixteen times.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(pair: i32) -> __m512bh {
    // SAFETY: registers of one size, of which every bit pattern means something.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair)) }
}

/// The engine for factors that one instruction multiplies; its sums, and the steps' bytes, are registers of
/// these types.
macro_rules! engine {
    ($name:ident, $factor:ty, $vectors:expr, $features:literal, $multiply:ident, $broadcast:ident, $sums:ident, $bytes:ident) => {
        impl Engine<$factor> for $name {
            const VECTORS: Vectors = $vectors;

            unsafe fn tile(tile: &Tile<'_>) {
                /// Two registers a row, of 32: with more rows the compiler keeps some of the sums in memory.
                const MOST: usize = 8;

                /// Rows `first..first + R` of the tile; those beyond the last are computed too.
                ///
                /// # Safety
                /// The processor has the features; else as [`Engine::tile`], and the rows lie in the tile.
                #[target_feature(enable = $features)]
                unsafe fn rows<const R: usize>(tile: &Tile<'_>, first: usize) {
                    // SAFETY: the caller's contract. Registers are what their instruction takes them for.
                    unsafe {
                        let sums = tile.sums.add(first * COLS);
                        let mut acc = [[std::mem::zeroed::<$sums>(); 2]; R];
                        if tile.accumulate {
                            for (row, acc) in acc.iter_mut().enumerate() {
                                acc[0] = sums.add(row * COLS).cast::<$sums>().read_unaligned();
                                acc[1] = sums.add(row * COLS + 16).cast::<$sums>().read_unaligned();
                            }
                        }
                        let mut b = tile.b;
                        for &offset in tile.offsets {
                            let mut a = tile.a.add(offset as usize + first * tile.stride);
                            for group in 0..16 {
                                let b = b.add(group * 64);
                                let halves = [
                                    b.cast::<$bytes>().read_unaligned(),
                                    b.add(PANEL_STEP / 2).cast::<$bytes>().read_unaligned(),
                                ];
                                for (row, acc) in acc.iter_mut().enumerate() {
                                    let group = a.add(row * tile.stride).cast::<i32>().read_unaligned();
                                    let group = $broadcast(group);
                                    acc[0] = $multiply(acc[0], group, halves[0]);
                                    acc[1] = $multiply(acc[1], group, halves[1]);
                                }
                                a = a.add(4);
                            }
                            b = b.add(PANEL_STEP);
                        }
                        for (row, acc) in acc.iter().enumerate() {
                            sums.add(row * COLS).cast::<$sums>().write_unaligned(acc[0]);
                            sums.add(row * COLS + 16).cast::<$sums>().write_unaligned(acc[1]);
                        }
                    }
                }

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
    };
}
engine!(
    Bf16,
    bf16,
    Vectors { avx512: true, avx512_bf16: true },
    "avx512f,avx512bf16",
    _mm512_dpbf16_ps,
    pairs,
    __m512,
    __m512bh
);
engine!(
    Vnni,
    u8,
    Vectors { avx512: true, avx512_bf16: false },
    "avx512f,avx512vnni",
    _mm512_dpbusd_epi32,
    _mm512_set1_epi32,
    __m512i,
    __m512i
);

/// Two registers of 16 columns each.
type Halves = (__m512, __m512);

/// The sum of a half, from integers times `unit`.
#[inline]
#[target_feature(enable = "avx512f")]
fn scaled(sum: __m512, excess: __m512i, unit: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(sum), excess)), unit)
}

/// Numbers of 16 codes.
#[inline]
#[target_feature(enable = "avx512f")]
fn values(codes: __m128i, zero: __m512i, step: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(codes), zero)), step)
}

/// Row `row` finished: numbers in two halves, with bias and residual, clamped.
///
/// No closure works on registers here: what `array::map` calls has not these features, and takes them from
/// memory.
///
/// # Safety
/// The processor has the features, and the residual has values for all rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn finished(rows: &Rows<'_>, row: usize, lanes: u32) -> Halves {
    let halves = [lanes as __mmask16, (lanes >> 16) as __mmask16];
    let at = row * rows.stride;
    // SAFETY: the caller's contract; lanes beyond the columns are neither read nor written.
    unsafe {
        let sums = rows.sums.as_ptr().add(row * COLS);
        let (mut a, mut b) = (_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(16)));
        if let Some(scales) = rows.scales {
            let (excess, unit) = (scales.excess.as_ptr(), scales.unit.as_ptr());
            a = scaled(a, _mm512_loadu_si512(excess.cast()), _mm512_loadu_ps(unit));
            b = scaled(b, _mm512_loadu_si512(excess.add(16).cast()), _mm512_loadu_ps(unit.add(16)));
        }
        let bias = rows.bias.as_ptr();
        a = _mm512_add_ps(a, _mm512_loadu_ps(bias));
        b = _mm512_add_ps(b, _mm512_loadu_ps(bias.add(16)));
        match rows.residual {
            Residual::None => {}
            Residual::Bf16(residual) => {
                _mm_prefetch::<_MM_HINT_T0>(residual.as_ptr().wrapping_add(at + rows.ahead).cast());
                let residual = _mm512_maskz_loadu_epi16(lanes, residual.as_ptr().add(at).cast());
                let first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(residual));
                let second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(residual));
                a = _mm512_add_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)));
                b = _mm512_add_ps(b, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(second)));
            }
            Residual::F32(residual) => {
                let residual = residual.as_ptr().add(at);
                a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(halves[0], residual));
                b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(halves[1], residual.wrapping_add(16)));
            }
            Residual::Codes(codes, levels) => {
                let codes = _mm256_maskz_loadu_epi8(lanes, codes.as_ptr().add(at).cast());
                let (zero, step) = (_mm512_set1_epi32(levels.zero().into()), _mm512_set1_ps(levels.step));
                a = _mm512_add_ps(a, values(_mm256_castsi256_si128(codes), zero, step));
                b = _mm512_add_ps(b, values(_mm256_extracti128_si256::<1>(codes), zero, step));
            }
        }
        let (low, high) = (_mm512_set1_ps(rows.bounds.0), _mm512_set1_ps(rows.bounds.1));
        // Of a comparison with NaN the second operand comes out.
        a = _mm512_min_ps(high, _mm512_max_ps(low, a));
        b = _mm512_min_ps(high, _mm512_max_ps(low, b));
        (a, b)
    }
}

/// Stores rows of sums as bf16.
///
/// # Safety
/// The processor has AVX-512 BF16; `y`, where row 0 goes, can be written with all rows, and the residual has
/// values for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn store_bf16(rows: &Rows<'_>, y: *mut bf16) {
    let lanes = u32::MAX >> (COLS - rows.cols);
    for row in 0..rows.sums.len() / COLS {
        // SAFETY: the caller's contract; lanes beyond the columns are not written.
        unsafe {
            let (a, b) = finished(rows, row, lanes);
            let narrow = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            _mm512_mask_storeu_epi16(y.add(row * rows.stride).cast(), lanes, narrow);
        }
    }
}

/// What finds the codes of levels.
#[derive(Clone, Copy)]
struct Coder {
    inverse: __m512,
    low: __m512,
    high: __m512,
    zero: __m512i,
}

/// Codes of 16 numbers; NaN has the lowest level's.
#[inline]
#[target_feature(enable = "avx512f")]
fn codes(values: __m512, coder: Coder) -> __m128i {
    let level = _mm512_max_ps(_mm512_mul_ps(values, coder.inverse), coder.low);
    let level = _mm512_cvtps_epi32(_mm512_min_ps(level, coder.high));
    _mm512_cvtepi32_epi8(_mm512_add_epi32(level, coder.zero))
}

/// Stores rows of sums as codes of their levels.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL; else as [`store_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn store_codes(rows: &Rows<'_>, rule: Rule, y: *mut u8) {
    let lanes = u32::MAX >> (COLS - rows.cols);
    let coder = Coder {
        inverse: _mm512_set1_ps(rule.inverse),
        low: _mm512_set1_ps(rule.low),
        high: _mm512_set1_ps(rule.high),
        zero: _mm512_set1_epi32(rule.zero.into()),
    };
    for row in 0..rows.sums.len() / COLS {
        // SAFETY: the caller's contract; lanes beyond the columns are not written.
        unsafe {
            let (a, b) = finished(rows, row, lanes);
            let codes = _mm256_set_m128i(codes(b, coder), codes(a, coder));
            _mm256_mask_storeu_epi8(y.add(row * rows.stride).cast(), lanes, codes);
        }
    }
}
