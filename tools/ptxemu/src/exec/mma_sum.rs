//! Sums of products as tensor cores make them ([`MmaSum::Truncated`](crate::MmaSum::Truncated)).
//!
//! The exponent of a product is the sum of its factors' exponents: its significand is in [1, 4). f16
//! subnormals count by their value, not by the exponent that f16 writes them with. Sums below 2^-100, which
//! nobody measured, are cut at a fixed place; infinities and NaN come out as of plain sums.

/// Bits below the largest exponent that are kept.
const FRACTION: i32 = 24;
/// Smallest largest exponent.
const LEAST: i32 = -100;

/// Bits of an f32's exponent.
const EXPONENT: u32 = 0x7f80_0000;

/// The power of two at or below the magnitude of a number, or 0.
fn power(x: f32) -> f64 {
    f64::from(f32::from_bits(x.to_bits() & EXPONENT))
}

/// `c` plus the products of `factors`.
pub(super) fn truncated(factors: impl Iterator<Item = (f32, f32)> + Clone, c: f32) -> f32 {
    let plain: f32 = factors.clone().map(|(a, b)| a * b).sum::<f32>() + c;
    if !plain.is_finite() {
        return plain;
    }
    let powers = factors.clone().map(|(a, b)| power(a) * power(b));
    let largest = powers.fold(power(c).max(2_f64.powi(LEAST)), f64::max);
    let unit = largest * 2_f64.powi(-FRACTION);
    // All of it is exact: 9 numbers below 2^26 units.
    let cut = |x: f64| (x / unit).trunc();
    let sum: f64 = factors.map(|(a, b)| cut(f64::from(a) * f64::from(b))).sum::<f64>() + cut(f64::from(c));
    let sum = sum * unit;
    let nearest = sum as f32;
    // One step towards zero where rounding went away from it.
    if f64::from(nearest).abs() > sum.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod vector {
    //! The same with AVX2, eight sums at a time.
    use super::{EXPONENT, FRACTION, LEAST};
    use std::arch::x86_64::*;

    /// `c` (8 x 8) plus the product of `a` and `b`, all row-major, `together` values of k at a time.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[inline(always)]
    pub(in super::super) unsafe fn truncated(
        a: &[f32; 64],
        b: &[f32; 64],
        together: usize,
        c: &mut [[f32; 8]; 8],
    ) {
        // SAFETY: AVX2 and FMA are there; loads and stores stay inside the arrays.
        unsafe {
            let exponent = _mm256_castsi256_ps(_mm256_set1_epi32(EXPONENT as i32));
            let least = _mm256_castsi256_ps(_mm256_set1_epi32((LEAST + 127) << 23));
            let rows: [__m256; 8] = std::array::from_fn(|k| _mm256_loadu_ps(b.as_ptr().add(8 * k)));
            let row_powers = rows.map(|row| _mm256_and_ps(row, exponent));
            for (r, c) in c.iter_mut().enumerate() {
                for first in (0..8).step_by(together) {
                    let sum = _mm256_loadu_ps(c.as_ptr());
                    let mut products = [_mm256_setzero_ps(); 8];
                    let mut largest = _mm256_max_ps(_mm256_and_ps(sum, exponent), least);
                    // Zero, or NaN where something is not finite.
                    let mut odd = _mm256_mul_ps(sum, _mm256_setzero_ps());
                    for k in first..first + together {
                        let factor = _mm256_broadcast_ss(&a[8 * r + k]);
                        let power = _mm256_mul_ps(_mm256_and_ps(factor, exponent), row_powers[k]);
                        products[k - first] = _mm256_mul_ps(factor, rows[k]);
                        largest = _mm256_max_ps(largest, power);
                        odd = _mm256_fmadd_ps(products[k - first], _mm256_setzero_ps(), odd);
                    }
                    if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(odd, odd)) == 0 {
                        let sum = cut_and_add(&products[..together], sum, largest);
                        _mm256_storeu_ps(c.as_mut_ptr(), sum);
                    } else {
                        for (n, c) in c.iter_mut().enumerate() {
                            let factors = (first..first + together).map(|k| (a[8 * r + k], b[8 * k + n]));
                            *c = super::truncated(factors, *c);
                        }
                    }
                }
            }
        }
    }

    /// `sum` plus `products`, each cut to multiples of 2^-24 of the powers of two in `largest`.
    #[inline(always)]
    unsafe fn cut_and_add(products: &[__m256], sum: __m256, largest: __m256) -> __m256 {
        // SAFETY: AVX2 is there.
        unsafe {
            let exponents = _mm256_castps_si256(largest);
            let unit = _mm256_castsi256_ps(_mm256_sub_epi32(exponents, _mm256_set1_epi32(FRACTION << 23)));
            // The exponent of 1 / unit, in the bits of an f32; the difference of bits wraps.
            let one = _mm256_set1_epi32(((FRACTION as u32 + 254) << 23) as i32);
            let units = _mm256_castsi256_ps(_mm256_sub_epi32(one, exponents));
            // Nine numbers below 2^26.
            let mut total = _mm256_cvttps_epi32(_mm256_mul_ps(sum, units));
            for &product in products {
                total = _mm256_add_epi32(total, _mm256_cvttps_epi32(_mm256_mul_ps(product, units)));
            }
            let nearest = _mm256_cvtepi32_ps(total);
            // One step towards zero (-1 to the bits) where rounding went away from it.
            let rounded = _mm256_abs_epi32(_mm256_cvttps_epi32(nearest));
            let away = _mm256_cmpgt_epi32(rounded, _mm256_abs_epi32(total));
            let cut = _mm256_add_epi32(_mm256_castps_si256(nearest), away);
            _mm256_mul_ps(_mm256_castsi256_ps(cut), unit)
        }
    }
}
