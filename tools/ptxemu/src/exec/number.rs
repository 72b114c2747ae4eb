//! Floating-point types of PTX and exact conversions between them, branch-free where lanes need it.

use super::lanes::Val;

/// `f16` bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct F16(pub u16);
/// `bf16` bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bf16(pub u16);
/// An `f32` whose subnormals are flushed to zero, as operand and as result.
#[derive(Clone, Copy)]
pub(crate) struct Ftz(pub f32);

/// Rounding direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Near,
    /// Towards zero.
    Zero,
    /// Down.
    Down,
    /// Up.
    Up,
    /// To nearest, ties away from zero.
    Away,
}

impl Round {
    pub const ALL: [Round; 5] = [Round::Near, Round::Zero, Round::Down, Round::Up, Round::Away];

    pub fn of(code: i64) -> Round {
        Round::ALL[(code as usize).min(4)]
    }
}

#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    // Shift exponent and mantissa into place, then scale by 2^112: subnormals come out exact; infinities and
    // NaNs are fixed up.
    let magnitude = u32::from(h & 0x7fff) << 13;
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let bits = if h & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { scaled };
    f32::from_bits(bits | u32::from(h & 0x8000) << 16)
}

#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = bits >> 16 & 0x8000;
    let a = bits & 0x7fff_ffff;
    // Normal range: add half of the last kept place, minus one if it is even, and let the carry run into the
    // exponent.
    let normal = (a.wrapping_add(0xc800_0fff).wrapping_add(a >> 13 & 1)) >> 13;
    // Below 2^-14: adding 0.5 aligns the mantissa so that the sum's own rounding is the wanted one.
    let small = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if a < 0x3880_0000 { small } else { normal };
    let large = if a > 0x7f80_0000 { 0x7fff } else { 0x7c00 };
    (sign | if a >= 0x477f_f000 { large } else { finite }) as u16
}

#[inline(always)]
pub(crate) fn bf16_to_f32(b: u16) -> f32 {
    f32::from_bits(u32::from(b) << 16)
}

#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded as u16 }
}

/// Rounds a finite or infinite `x` (exact) to a format with `mantissa` explicit bits, least exponent `low`
/// (of the last place of subnormals) and greatest finite magnitude `max`.
fn round_to(x: f64, mantissa: i32, low: i32, max: f64, round: Round) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = if x.abs() < f64::MIN_POSITIVE { -1022 } else { (x.abs().to_bits() >> 52) as i32 - 1023 };
    let last = (exponent - mantissa).max(low);
    let unit = power(last);
    let scaled = x / unit;
    let whole = match round {
        Round::Near => scaled.round_ties_even(),
        Round::Zero => scaled.trunc(),
        Round::Down => scaled.floor(),
        Round::Up => scaled.ceil(),
        Round::Away => scaled.round(),
    };
    let result = (whole * unit).copysign(x);
    if result.abs() > max {
        let keep = match round {
            Round::Near | Round::Away => false,
            Round::Zero => true,
            Round::Down => x > 0.0,
            Round::Up => x < 0.0,
        };
        return if keep { max } else { f64::INFINITY }.copysign(x);
    }
    result
}

fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023).clamp(1, 2046) as u64) << 52)
}

/// Rounds to `f32` in any direction.
pub(crate) fn f64_to_f32(x: f64, round: Round) -> f32 {
    if round == Round::Near { x as f32 } else { round_to(x, 23, -149, f64::from(f32::MAX), round) as f32 }
}

/// Rounds to `f16` in any direction.
pub(crate) fn f64_to_f16(x: f64, round: Round) -> u16 {
    // The rounded value is exact in f32, so the last step does not round again.
    f32_to_f16(round_to(x, 10, -24, 65504.0, round) as f32)
}

/// Rounds to `bf16` in any direction.
pub(crate) fn f64_to_bf16(x: f64, round: Round) -> u16 {
    f32_to_bf16(round_to(x, 7, -133, f64::from(f32::from_bits(0x7f7f_0000)), round) as f32)
}

/// Rounds to `tf32` (10 mantissa bits in an `f32`), ties away from zero (`rna`) or to even (`rn`).
#[inline(always)]
pub(crate) fn f32_to_tf32(x: f32, even: bool) -> f32 {
    let bits = x.to_bits();
    let half = if even { 0xfff + (bits >> 13 & 1) } else { 0x1000 };
    let special = bits & 0x7f80_0000 == 0x7f80_0000;
    f32::from_bits(if special { bits } else { bits.wrapping_add(half) & !0x1fff })
}

/// `a * b + c` in `f32` with any rounding: exact product and error-free sum in `f64`, then one directed step.
pub(crate) fn fma_round(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    let back = sum - product;
    let error = (product - (sum - back)) + (c - back);
    // Nudging the sum towards the true value never crosses an f32 but makes inexactness visible to the
    // directed rounding.
    let exact = if error == 0.0 || round == Round::Near {
        sum
    } else if error > 0.0 {
        sum.next_up()
    } else {
        sum.next_down()
    };
    if sum == 0.0 && error == 0.0 {
        return if round == Round::Down && (product.is_sign_negative() || c.is_sign_negative()) {
            -0.0
        } else {
            sum as f32
        };
    }
    f64_to_f32(exact, round)
}

/// The floating-point types.
pub(crate) trait Float: Val {
    fn add(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn fma(self, b: Self, c: Self) -> Self;
    fn div(self, b: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn is_nan(self) -> bool;
    fn lt(self, b: Self) -> bool;
    fn same(self, b: Self) -> bool;
    fn negative(self) -> bool;
    /// A NaN.
    fn nan() -> Self;
    /// Clamped to [0, 1], NaN to 0.
    fn saturate(self) -> Self;
    /// Negative to 0; NaN stays.
    fn relu(self) -> Self;
}

macro_rules! native {
    ($t:ident) => {
        impl Float for $t {
            #[inline(always)]
            fn add(self, b: $t) -> $t {
                self + b
            }
            #[inline(always)]
            fn mul(self, b: $t) -> $t {
                self * b
            }
            #[inline(always)]
            fn fma(self, b: $t, c: $t) -> $t {
                self.mul_add(b, c)
            }
            #[inline(always)]
            fn div(self, b: $t) -> $t {
                self / b
            }
            #[inline(always)]
            fn neg(self) -> $t {
                -self
            }
            #[inline(always)]
            fn abs(self) -> $t {
                $t::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self != self
            }
            #[inline(always)]
            fn lt(self, b: $t) -> bool {
                self < b
            }
            #[inline(always)]
            fn same(self, b: $t) -> bool {
                self == b
            }
            #[inline(always)]
            fn negative(self) -> bool {
                self.is_sign_negative()
            }
            #[inline(always)]
            fn nan() -> $t {
                $t::NAN
            }
            #[inline(always)]
            fn saturate(self) -> $t {
                if self >= 1.0 {
                    1.0
                } else if self > 0.0 {
                    self
                } else {
                    0.0
                }
            }
            #[inline(always)]
            fn relu(self) -> $t {
                if self < 0.0 { 0.0 } else { self }
            }
        }
    };
}
native!(f32);
native!(f64);

#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    let tiny = x.to_bits() & 0x7f80_0000 == 0;
    f32::from_bits(if tiny { x.to_bits() & 0x8000_0000 } else { x.to_bits() })
}

/// Types whose arithmetic goes through a wider one: `$wide(self)`, then `$narrow`; fused forms go through
/// `f64`.
macro_rules! through {
    ($t:ident, $raw:ty, |$v:ident| $wide:expr, |$r:ident| $narrow:expr, |$p:ident| $from64:expr) => {
        impl Val for $t {
            type Raw = u32;
            #[inline(always)]
            fn get(raw: u32) -> $t {
                $t(<$raw>::get(raw))
            }
            #[inline(always)]
            fn put(self) -> u32 {
                self.0.put()
            }
        }
        impl $t {
            #[inline(always)]
            fn wide(self) -> f32 {
                let $v = self.0;
                $wide
            }
            #[inline(always)]
            fn narrow($r: f32) -> $t {
                $t($narrow)
            }
            #[inline(always)]
            fn narrow64($p: f64) -> $t {
                $t($from64)
            }
            #[inline(always)]
            fn with_sign(self, flip: u32, keep: u32) -> $t {
                let raw = self.0.put();
                let top = 0x8000_u32;
                $t(<$raw>::get((raw & !(top & !keep)) ^ (top & flip)))
            }
        }
        impl Float for $t {
            #[inline(always)]
            fn add(self, b: $t) -> $t {
                $t::narrow(self.wide() + b.wide())
            }
            #[inline(always)]
            fn mul(self, b: $t) -> $t {
                $t::narrow(self.wide() * b.wide())
            }
            #[inline(always)]
            fn fma(self, b: $t, c: $t) -> $t {
                $t::narrow64(f64::from(self.wide()) * f64::from(b.wide()) + f64::from(c.wide()))
            }
            #[inline(always)]
            fn div(self, b: $t) -> $t {
                $t::narrow(self.wide() / b.wide())
            }
            #[inline(always)]
            fn neg(self) -> $t {
                self.with_sign(u32::MAX, u32::MAX)
            }
            #[inline(always)]
            fn abs(self) -> $t {
                self.with_sign(0, 0)
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                $t::narrow(self.wide().sqrt())
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                Float::is_nan(self.wide())
            }
            #[inline(always)]
            fn lt(self, b: $t) -> bool {
                self.wide() < b.wide()
            }
            #[inline(always)]
            fn same(self, b: $t) -> bool {
                self.wide() == b.wide()
            }
            #[inline(always)]
            fn negative(self) -> bool {
                self.wide().is_sign_negative()
            }
            #[inline(always)]
            fn nan() -> $t {
                $t::narrow(f32::NAN)
            }
            #[inline(always)]
            fn saturate(self) -> $t {
                $t::narrow(self.wide().saturate())
            }
            #[inline(always)]
            fn relu(self) -> $t {
                if self.wide() < 0.0 { $t::narrow(0.0) } else { self }
            }
        }
    };
}

through!(F16, u16, |v| f16_to_f32(v), |r| f32_to_f16(r), |p| f64_to_f16(p, Round::Near));
through!(Bf16, u16, |v| bf16_to_f32(v), |r| f32_to_bf16(r), |p| f64_to_bf16(p, Round::Near));

impl Val for Ftz {
    type Raw = u32;
    #[inline(always)]
    fn get(raw: u32) -> Ftz {
        Ftz(flush(f32::from_bits(raw)))
    }
    #[inline(always)]
    fn put(self) -> u32 {
        flush(self.0).to_bits()
    }
}

impl Float for Ftz {
    #[inline(always)]
    fn add(self, b: Ftz) -> Ftz {
        Ftz(self.0 + b.0)
    }
    #[inline(always)]
    fn mul(self, b: Ftz) -> Ftz {
        Ftz(self.0 * b.0)
    }
    #[inline(always)]
    fn fma(self, b: Ftz, c: Ftz) -> Ftz {
        Ftz(self.0.mul_add(b.0, c.0))
    }
    #[inline(always)]
    fn div(self, b: Ftz) -> Ftz {
        Ftz(self.0 / b.0)
    }
    #[inline(always)]
    fn neg(self) -> Ftz {
        Ftz(-self.0)
    }
    #[inline(always)]
    fn abs(self) -> Ftz {
        Ftz(self.0.abs())
    }
    #[inline(always)]
    fn sqrt(self) -> Ftz {
        Ftz(self.0.sqrt())
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        Float::is_nan(self.0)
    }
    #[inline(always)]
    fn lt(self, b: Ftz) -> bool {
        self.0 < b.0
    }
    #[inline(always)]
    fn same(self, b: Ftz) -> bool {
        self.0 == b.0
    }
    #[inline(always)]
    fn negative(self) -> bool {
        self.0.is_sign_negative()
    }
    #[inline(always)]
    fn nan() -> Ftz {
        Ftz(f32::NAN)
    }
    #[inline(always)]
    fn saturate(self) -> Ftz {
        Ftz(self.0.saturate())
    }
    #[inline(always)]
    fn relu(self) -> Ftz {
        Ftz(self.0.relu())
    }
}
