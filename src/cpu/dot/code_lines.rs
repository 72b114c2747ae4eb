//! Codes of 64 columns, which are a cache line of a pixel: two tiles side by side become such lines, each
//! read and written once. Bits are those of [`store_codes`](super::avx512::store_codes), by fewer
//! instructions: where levels end is left to instructions that saturate, after the products are integers.
//! Of a sum that is not a number (a bias of a damaged file) the code is the activation's lowest, not the
//! levels'.

use super::finish::{Residual, Spot, Sums};
use super::{COLS, ROWS};
use crate::ops::levels::Rule;
use std::arch::x86_64::*;

/// Registers of a line.
const PARTS: usize = 4;

/// Two tiles of sums of integers, and what becomes of them.
pub(super) struct Lines<'a> {
    /// `[2][ROWS][COLS]`.
    pub sums: &'a [f32],
    /// What they are: [`Sums::I32`].
    pub of: Sums<'a>,
    /// All columns', as the product's.
    pub bias: Option<&'a [f32]>,
    /// Codes, or nothing.
    pub residual: Residual<'a>,
    /// What numbers are clamped to before they become codes.
    pub bounds: (f32, f32),
    /// The codes' levels.
    pub levels: Rule,
    /// Where the tiles lie; all of their columns count.
    pub spot: &'a Spot,
    /// Codes from a row to the next, of result and residual.
    pub stride: usize,
}

/// What is done to the sums of a line's columns.
struct Columns {
    excess: [__m512i; PARTS],
    unit: [__m512; PARTS],
    bias: [__m512; PARTS],
}

impl Lines<'_> {
    /// Of the columns of the spot, as `Sums::scales` has them.
    ///
    /// # Safety
    /// The processor has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn columns(&self) -> Columns {
        let mut columns = Columns {
            excess: [_mm512_setzero_si512(); PARTS],
            unit: [_mm512_setzero_ps(); PARTS],
            bias: [_mm512_setzero_ps(); PARTS],
        };
        let cols = self.spot.cols.clone();
        let Sums::I32 { step, zero, steps, sums } = self.of else { return columns };
        let (steps, sums) = (&steps[cols.clone()], &sums[cols.clone()]);
        for part in 0..PARTS {
            let at = 16 * part;
            // SAFETY: both have the columns.
            unsafe {
                let sums = _mm512_loadu_si512(sums.as_ptr().add(at).cast());
                columns.excess[part] = _mm512_mullo_epi32(_mm512_set1_epi32(zero), sums);
                let steps = _mm512_loadu_ps(steps.as_ptr().add(at));
                columns.unit[part] = _mm512_mul_ps(_mm512_set1_ps(step), steps);
                if let Some(bias) = self.bias {
                    columns.bias[part] = _mm512_loadu_ps(bias[cols.clone()].as_ptr().add(at));
                }
            }
        }
        columns
    }

    /// Stores the lines from `y` on, where the first goes.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW, `y` can be written there, and nobody else does meanwhile.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn store(&self, y: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe {
            match self.residual {
                Residual::Codes(codes, levels) if levels.signed => self.lines::<true>(codes, levels.step, y),
                Residual::Codes(codes, levels) => self.lines::<false>(codes, levels.step, y),
                _ => self.lines::<false>(&[], 0.0, y),
            }
        }
    }

    /// The same, for a residual whose codes are of levels with a sign or without, or for none.
    ///
    /// # Safety
    /// As [`Lines::store`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn lines<const SIGNED: bool>(&self, residual: &[u8], step: f32, y: *mut u8) {
        // SAFETY: the caller's contract.
        let columns = unsafe { self.columns() };
        let Spot { rows, ahead, .. } = self.spot;
        let Rule { inverse, low: lowest, high: highest, zero, .. } = self.levels;
        // Products with a positive number keep their order, so that bounds of numbers are bounds of levels.
        let least = (self.bounds.0 * inverse).clamp(lowest, highest).round_ties_even() as i16;
        let most = _mm512_set1_ps((self.bounds.1 * inverse).min(highest));
        let (inverse, step) = (_mm512_set1_ps(inverse), _mm512_set1_ps(step));
        let (least, zero) = (_mm512_set1_epi16(least), _mm512_set1_epi16(zero.into()));
        // Packing interleaves quarters.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for (line, row) in rows.clone().enumerate() {
            let at = line * self.stride;
            let mut level = [_mm512_setzero_si512(); PARTS];
            if !residual.is_empty() {
                _mm_prefetch::<_MM_HINT_T0>(residual.as_ptr().wrapping_add(at + ahead).cast());
            }
            for part in 0..PARTS {
                let sums = self.sums[part / 2 * ROWS * COLS + row * COLS + part % 2 * 16..][..16].as_ptr();
                // SAFETY: of sixteen sums, and of the residual's sixteen codes there.
                unsafe {
                    let sum = _mm512_sub_epi32(_mm512_loadu_si512(sums.cast()), columns.excess[part]);
                    let value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), columns.unit[part]);
                    let mut value = _mm512_add_ps(value, columns.bias[part]);
                    if !residual.is_empty() {
                        let codes = _mm_loadu_si128(residual[at + 16 * part..][..16].as_ptr().cast());
                        let codes = if SIGNED {
                            _mm512_cvtepi8_epi32(_mm_xor_si128(codes, _mm_set1_epi8(i8::MIN)))
                        } else {
                            _mm512_cvtepu8_epi32(codes)
                        };
                        value = _mm512_add_ps(value, _mm512_mul_ps(_mm512_cvtepi32_ps(codes), step));
                    }
                    // What is too low for an integer, or not a number, becomes the lowest of them.
                    let value = _mm512_min_ps(most, _mm512_mul_ps(value, inverse));
                    level[part] = _mm512_cvtps_epi32(value);
                }
            }
            let [a, b, c, d] = level;
            let first = _mm512_add_epi16(_mm512_max_epi16(_mm512_packs_epi32(a, b), least), zero);
            let second = _mm512_add_epi16(_mm512_max_epi16(_mm512_packs_epi32(c, d), least), zero);
            let codes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
            // SAFETY: the caller's contract.
            unsafe { _mm512_storeu_si512(y.add(at).cast(), codes) };
        }
    }
}
