//! Floating-point operations on lanes.
//!
//! `f32` and `f64` are computed natively (IEEE, round to nearest even); the half types through `f32`, whose
//! single rounding gives the correctly rounded sum, product and quotient, and through `f64` for the fused
//! form. The `.approx` functions are more accurate here than on hardware: they are the rounded values of the
//! true function.

use std::marker::PhantomData;

use super::int::plain;
use super::lanes::{Cmp, Op1, Op2, Op3, Val};
use super::number::{Float, Ftz, Round, f32_to_tf32, f64_to_f32, flush, fma_round};

macro_rules! float {
    (1: $($(#[$doc:meta])* $name:ident |$a:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Float> Op1 for $name<T> {
            type A = T;
            type D = T;
            #[inline(always)]
            fn f($a: T, _: i64) -> T { $body }
        }
    )*};
    (2: $($(#[$doc:meta])* $name:ident |$a:ident, $b:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Float> Op2 for $name<T> {
            type A = T;
            type B = T;
            type D = T;
            #[inline(always)]
            fn f($a: T, $b: T, _: i64) -> T { $body }
        }
    )*};
    (3: $($(#[$doc:meta])* $name:ident |$a:ident, $b:ident, $c:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Float> Op3 for $name<T> {
            type A = T;
            type B = T;
            type C = T;
            type D = T;
            #[inline(always)]
            fn f($a: T, $b: T, $c: T, _: i64) -> T { $body }
        }
    )*};
    (cmp: $($(#[$doc:meta])* $name:ident |$a:ident, $b:ident| $body:expr;)*) => {$(
        /// Floating-point comparison; false for NaN.
        $(#[$doc])*
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Float> Cmp for $name<T> {
            type A = T;
            #[inline(always)]
            fn f($a: T, $b: T) -> bool { $body }
        }
    )*};
}

float! {1:
    Neg |a| a.neg();
    Abs |a| a.abs();
    Sqrt |a| a.sqrt();
}

float! {2:
    Add |a, b| a.add(b);
    Sub |a, b| a.add(b.neg());
    Mul |a, b| a.mul(b);
    Div |a, b| a.div(b);
    AddSat |a, b| a.add(b).saturate();
    SubSat |a, b| a.add(b.neg()).saturate();
    MulSat |a, b| a.mul(b).saturate();
    Min |a, b| min(a, b);
    Max |a, b| max(a, b);
    /// NaN if either is.
    MinNan |a, b| if a.is_nan() || b.is_nan() { T::nan() } else { min(a, b) };
    MaxNan |a, b| if a.is_nan() || b.is_nan() { T::nan() } else { max(a, b) };
    /// `b` with the sign of `a`.
    CopySign |a, b| if a.negative() != b.negative() { b.neg() } else { b };
}

#[inline(always)]
fn min<T: Float>(a: T, b: T) -> T {
    let first = a.lt(b) || b.is_nan() || a.same(b) && a.negative();
    if first { a } else { b }
}

#[inline(always)]
fn max<T: Float>(a: T, b: T) -> T {
    let first = b.lt(a) || b.is_nan() || a.same(b) && !a.negative();
    if first { a } else { b }
}

float! {3:
    Fma |a, b, c| a.fma(b, c);
    FmaSat |a, b, c| a.fma(b, c).saturate();
    FmaRelu |a, b, c| a.fma(b, c).relu();
}

float! {cmp:
    Eq |a, b| a.same(b);
    Lt |a, b| a.lt(b);
    Le |a, b| a.lt(b) || a.same(b);
    /// Ordered and unequal.
    Unequal |a, b| a.lt(b) || b.lt(a);
    Num |a, b| !a.is_nan() && !b.is_nan();
}

/// `set` on packed halves: `imm` (its low 16 bits) in each half whose comparison holds, or fails with bit 16
/// set.
pub(crate) struct SetTwo<C>(PhantomData<C>);

impl<V: Val<Raw = u32>, C: Cmp<A = V>> Op2 for SetTwo<C> {
    type A = u32;
    type B = u32;
    type D = u32;
    #[inline(always)]
    fn f(a: u32, b: u32, imm: i64) -> u32 {
        let ((x, y), (u, v)) = (halves(a), halves(b));
        let (yes, flip) = (imm as u32 & 0xffff, imm >> 16 & 1 != 0);
        let pick = |holds: bool| if holds != flip { yes } else { 0 };
        pick(C::f(x, u)) | pick(C::f(y, v)) << 16
    }
}

/// Applies a 16-bit operation to both halves of a word.
pub(crate) struct Two<O>(PhantomData<O>);

#[inline(always)]
fn halves<V: Val<Raw = u32>>(word: u32) -> (V, V) {
    (V::get(word & 0xffff), V::get(word >> 16))
}

#[inline(always)]
fn word<V: Val<Raw = u32>>(low: V, high: V) -> u32 {
    low.put() & 0xffff | high.put() << 16
}

impl<V: Val<Raw = u32>, O: Op1<A = V, D = V>> Op1 for Two<O> {
    type A = u32;
    type D = u32;
    #[inline(always)]
    fn f(a: u32, imm: i64) -> u32 {
        let (x, y) = halves(a);
        word(O::f(x, imm), O::f(y, imm))
    }
}

impl<V: Val<Raw = u32>, O: Op2<A = V, B = V, D = V>> Op2 for Two<O> {
    type A = u32;
    type B = u32;
    type D = u32;
    #[inline(always)]
    fn f(a: u32, b: u32, imm: i64) -> u32 {
        let ((x, y), (u, v)) = (halves(a), halves(b));
        word(O::f(x, u, imm), O::f(y, v, imm))
    }
}

impl<V: Val<Raw = u32>, O: Op3<A = V, B = V, C = V, D = V>> Op3 for Two<O> {
    type A = u32;
    type B = u32;
    type C = u32;
    type D = u32;
    #[inline(always)]
    fn f(a: u32, b: u32, c: u32, imm: i64) -> u32 {
        let ((x, y), (u, v), (s, t)) = (halves(a), halves(b), halves(c));
        word(O::f(x, u, s, imm), O::f(y, v, t, imm))
    }
}

#[inline(always)]
fn finish(x: f32, imm: i64) -> f32 {
    let x = if imm & 32 != 0 { flush(x) } else { x };
    if imm & 16 != 0 { x.saturate() } else { x }
}

/// Operand, flushed if the instruction says `.ftz`.
#[inline(always)]
fn input(x: f32, imm: i64) -> f32 {
    if imm & 32 != 0 { flush(x) } else { x }
}

// `imm` of the rounded and approximate forms: bits 0-2 rounding (`Round::ALL`), bit 4 saturate, bit 5 flush
// subnormals.
plain! {3:
    FmaRound: f32, f32, f32 => f32, |a, b, c, imm| {
        finish(fma_round(input(a, imm), input(b, imm), input(c, imm), Round::of(imm & 7)), imm)
    };
}

plain! {2:
    AddRound: f32, f32 => f32, |a, b, imm| finish(fma_round(input(a, imm), 1.0, input(b, imm), Round::of(imm & 7)), imm);
    MulRound: f32, f32 => f32, |a, b, imm| {
        finish(f64_to_f32(f64::from(input(a, imm)) * f64::from(input(b, imm)), Round::of(imm & 7)), imm)
    };
    DivRound: f32, f32 => f32, |a, b, imm| {
        let (a, b) = (input(a, imm), input(b, imm));
        let quotient = f64::from(a) / f64::from(b);
        let left = f64::from(a) - quotient * f64::from(b);
        let up = (left > 0.0) == (b > 0.0);
        let exact = if left == 0.0 || !quotient.is_finite() {
            quotient
        } else if up {
            quotient.next_up()
        } else {
            quotient.next_down()
        };
        finish(f64_to_f32(exact, Round::of(imm & 7)), imm)
    };
}

plain! {1:
    SqrtRound: f32 => f32, |a, imm| {
        let a = f64::from(input(a, imm));
        let root = a.sqrt();
        let left = root.mul_add(-root, a);
        let exact = if left > 0.0 { root.next_up() } else if left < 0.0 { root.next_down() } else { root };
        finish(f64_to_f32(exact, Round::of(imm & 7)), imm)
    };
    Rcp: f32 => f32, |a, imm| finish(1.0 / input(a, imm), imm);
    RcpRound: f32 => f32, |a, imm| DivRound::f(1.0, a, imm);
    Rsqrt: f32 => f32, |a, imm| finish((1.0 / f64::from(input(a, imm)).sqrt()) as f32, imm);
    Rsqrt64: f64 => f64, |a, _i| 1.0 / a.sqrt();
    Rcp64: f64 => f64, |a, _i| 1.0 / a;
    Ex2: f32 => f32, |a, imm| finish(exp2(input(a, imm)), imm);
    Lg2: f32 => f32, |a, imm| finish(input(a, imm).log2(), imm);
    Sin: f32 => f32, |a, imm| finish(input(a, imm).sin(), imm);
    Cos: f32 => f32, |a, imm| finish(input(a, imm).cos(), imm);
    Tanh: f32 => f32, |a, _i| a.tanh();
    ToTf32Away: f32 => f32, |a, _i| f32_to_tf32(a, false);
    ToTf32Even: f32 => f32, |a, _i| f32_to_tf32(a, true);
}

/// 2^x, within one unit in the last place: 2^n times a degree-10 Taylor sum of e^(f ln 2), |f| <= 1/2, in
/// `f64` (error 2e-13).
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // NaN passes through the clamp and makes the sum NaN.
    let x = f64::from(x.clamp(-160.0, 160.0));
    let n = x.round_ties_even();
    let t = (x - n) * std::f64::consts::LN_2;
    const FACTORIALS: [f64; 10] = [3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0];
    let mut sum = 1.0 / FACTORIALS[0];
    for factorial in &FACTORIALS[1..] {
        sum = sum * t + 1.0 / factorial;
    }
    sum = sum * t + 1.0;
    // n is within +-160, NaN gives 0; 2^n is a normal f64.
    let scale = f64::from_bits(((n as i32 + 1023) as u64) << 52);
    (sum * scale) as f32
}

/// A unary `f32` function on a half type.
macro_rules! on_half {
    ($($name:ident: $f:expr;)*) => {$(
        /// The function on `f16`.
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: HalfType> Op1 for $name<T> {
            type A = T;
            type D = T;
            #[inline(always)]
            fn f(a: T, _: i64) -> T {
                let f: fn(f32) -> f32 = $f;
                T::narrow(f(a.wide()))
            }
        }
    )*};
}

/// `f16` and `bf16`.
pub(crate) trait HalfType: Float {
    fn wide(self) -> f32;
    fn narrow(x: f32) -> Self;
}

impl HalfType for super::number::F16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        super::number::f16_to_f32(self.0)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        super::number::F16(super::number::f32_to_f16(x))
    }
}

impl HalfType for super::number::Bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        super::number::bf16_to_f32(self.0)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        super::number::Bf16(super::number::f32_to_bf16(x))
    }
}

on_half! {
    HalfEx2: |x| exp2(x);
    HalfTanh: |x| x.tanh();
}

/// `f32` arithmetic with subnormals flushed.
pub(crate) type Flushed = Ftz;
