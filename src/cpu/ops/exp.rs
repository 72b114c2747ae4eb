//! The exponential function in a form that compilers vectorise, and the two loops over it that softmax and
//! attention share.
//!
//! `exp(x) = 2^n * exp(r)` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`; a polynomial of degree 7 (the
//! minimax coefficients of Cephes' `expf`) gives `exp(r)`. At most 2 ulp over the whole range, with correct
//! limits, subnormal results and NaN. Only additions and multiplications that round the same everywhere:
//! every instruction set gives the same bits.

/// Lanes of the unrolled loops: one AVX-512 register, two of AVX2, four of SSE2 or NEON.
pub(crate) const LANES: usize = 16;

/// `exp(x)`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these bounds results round to 0 and infinity; within them `n` fits the exponent arithmetic
    // below.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    // Adding 1.5 * 2^23 leaves the rounded sum in the low bits of the mantissa: rounding and the conversion
    // to an integer in one addition, without the range checks of `as i32`.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    // ln 2 in two parts; the first has so few bits that its product with `n` is exact.
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * (r * r) + r + 1.0;
    // 2^n as two factors: n reaches from -150 to 128, an exponent from -126 to 127.
    let half = bits >> 1;
    p * power_of_two(half) * power_of_two(bits.wrapping_sub(half))
}

/// `ln(1 + exp(x))`, relative error a few ulp.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    let positive = if x > 0.0 { x } else { 0.0 };
    positive + ln_1p(exp(-x.abs()))
}

/// `ln(1 + e)` for `0 <= e <= 1`: `2 atanh(s)` with `s = e / (2 + e) <= 1/3`, whose series is cut after
/// `s^15` (the rest is below 2e-9 of the sum).
#[inline(always)]
fn ln_1p(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let z = s * s;
    let p = 1.0 / 15.0;
    let p = p * z + 1.0 / 13.0;
    let p = p * z + 1.0 / 11.0;
    let p = p * z + 1.0 / 9.0;
    let p = p * z + 1.0 / 7.0;
    let p = p * z + 1.0 / 5.0;
    let p = p * z + 1.0 / 3.0;
    2.0 * s + 2.0 * s * (z * p)
}

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// `1 / (1 + exp(-x))`. The exponent is never positive, so that nothing overflows and small results keep
/// their digits.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// The error function: an odd rational function (that of Eigen's `erf`), relative error a few ulp. Beyond its
/// range the result rounds to 1.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let z = x * x;
    let p = -2.726_142_3e-10;
    let p = p * z + 2.770_681_4e-8;
    let p = p * z - 2.101_024e-6;
    let p = p * z - 5.692_506_4e-5;
    let p = p * z - 7.349_906_3e-4;
    let p = p * z - 2.954_6e-3;
    let p = p * z - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * z - 2.133_740_6e-4;
    let q = q * z - 1.682_827e-3;
    let q = q * z - 7.373_329e-3;
    let q = q * z - 1.426_473_9e-2;
    let inside = x * p / q;
    let beyond = 1f32.copysign(x);
    if x.abs() > 3.92 { beyond } else { inside }
}

/// The probability that a standard normal variable lies below `x`.
#[inline(always)]
fn normal_below(x: f32) -> f32 {
    0.5 + 0.5 * erf(std::f32::consts::FRAC_1_SQRT_2 * x)
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    x * normal_below(x)
}

/// The derivative of [`gelu`] at `x`.
#[inline(always)]
pub(crate) fn gelu_slope(x: f32) -> f32 {
    const DENSITY_AT_0: f32 = 0.398_942_3;
    normal_below(x) + x * (DENSITY_AT_0 * exp(-0.5 * x * x))
}

/// The largest element that is not NaN, negative infinity if there is none.
#[inline(always)]
pub(crate) fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], block[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// `x[i] = exp((x[i] - max) * scale)` in place; gives the sum.
#[inline(always)]
pub(crate) fn exponentials(x: &mut [f32], max: f32, scale: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut add = |block: &mut [f32; LANES]| {
        for i in 0..LANES {
            block[i] = exp((block[i] - max) * scale);
            lanes[i] += block[i];
        }
    };
    let (blocks, rest) = x.as_chunks_mut::<LANES>();
    blocks.iter_mut().for_each(&mut add);
    // The exponential of negative infinity adds nothing to the sum.
    let mut tail = [f32::NEG_INFINITY; LANES];
    tail[..rest.len()].copy_from_slice(rest);
    add(&mut tail);
    rest.copy_from_slice(&tail[..rest.len()]);
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_everywhere() {
        let mut worst = 0.0f64;
        // A stride that is no power of two walks all exponents and mantissa patterns.
        for bits in (0..=u32::MAX).step_by(1013) {
            let x = f32::from_bits(bits);
            let (y, exact) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(y.is_nan());
            } else if exact >= f64::from(f32::MAX) * (1.0 + 2f64.powi(-25)) {
                assert_eq!(y, f32::INFINITY, "exp({x})");
            } else {
                // Spacing of f32 at the exact value; 2^-149 among subnormals.
                let ulp = 2f64.powi((exact.log2().floor() as i32).max(-126) - 23);
                worst = worst.max((f64::from(y) - exact).abs() / ulp);
            }
        }
        assert!(worst <= 2.0, "worst error {worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-103.5), f32::from_bits(1));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_do_not_depend_on_the_tail() {
        for n in 0..40 {
            let mut x: Vec<f32> = (0..n).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            let exact: f64 = x.iter().map(|&v| ((f64::from(v) - 5.0) * 0.5).exp()).sum();
            let max = maximum(&x);
            assert_eq!(max, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum = exponentials(&mut x, 5.0, 0.5);
            assert!((f64::from(sum) - exact).abs() <= 1e-6 * exact, "{n} elements: {sum} is not {exact}");
        }
    }
}
