//! Integer and bit operations on lanes.

use std::marker::PhantomData;

use super::lanes::{Cmp, Op1, Op2, Op3, Val};

/// The integer types of PTX.
pub(crate) trait Int: Val + Ord {
    const BITS: u32;
    fn wadd(self, b: Self) -> Self;
    fn wsub(self, b: Self) -> Self;
    fn wmul(self, b: Self) -> Self;
    /// High half of the double-width product.
    fn hi(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    fn rem(self, b: Self) -> Self;
    fn wneg(self) -> Self;
    fn wabs(self) -> Self;
    fn inv(self) -> Self;
    /// Shifts by a count that may exceed the width: zeros, or the sign, are shifted in.
    fn left(self, by: u32) -> Self;
    fn right(self, by: u32) -> Self;
    fn bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;
    fn sat_add(self, b: Self) -> Self;
    fn sat_sub(self, b: Self) -> Self;
}

macro_rules! ints {
    ($($t:ident $u:ident $wide:ident;)*) => {$(
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn wadd(self, b: $t) -> $t { self.wrapping_add(b) }
            #[inline(always)]
            fn wsub(self, b: $t) -> $t { self.wrapping_sub(b) }
            #[inline(always)]
            fn wmul(self, b: $t) -> $t { self.wrapping_mul(b) }
            #[inline(always)]
            fn hi(self, b: $t) -> $t { (($wide::from(self) * $wide::from(b)) >> <$t>::BITS) as $t }
            #[inline(always)]
            fn div(self, b: $t) -> $t { if b == 0 { !0 } else { self.wrapping_div(b) } }
            #[inline(always)]
            fn rem(self, b: $t) -> $t { if b == 0 { self } else { self.wrapping_rem(b) } }
            #[inline(always)]
            fn wneg(self) -> $t { (0 as $t).wrapping_sub(self) }
            #[inline(always)]
            fn wabs(self) -> $t { if self > 0 { self } else { (0 as $t).wrapping_sub(self) } }
            #[inline(always)]
            fn inv(self) -> $t { !self }
            #[inline(always)]
            fn left(self, by: u32) -> $t { if by >= <$t>::BITS { 0 } else { self << (by & (<$t>::BITS - 1)) } }
            #[inline(always)]
            fn right(self, by: u32) -> $t {
                let last = <$t>::BITS - 1;
                if by > last { (self >> last) >> 1 } else { self >> (by & last) }
            }
            #[inline(always)]
            fn bits(self) -> u64 { u64::from(self as $u) }
            #[inline(always)]
            fn from_bits(bits: u64) -> $t { bits as $t }
            #[inline(always)]
            fn sat_add(self, b: $t) -> $t { self.saturating_add(b) }
            #[inline(always)]
            fn sat_sub(self, b: $t) -> $t { self.saturating_sub(b) }
        }
    )*};
}

ints! {
    u16 u16 u32;
    i16 u16 i32;
    u32 u32 u64;
    i32 u32 i64;
    u64 u64 u128;
    i64 u64 i128;
}

macro_rules! op1 {
    ($($(#[$doc:meta])* $name:ident: $t:ident => $d:ty, |$a:ident, $imm:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<$t>(PhantomData<$t>);
        impl<$t: Int> Op1 for $name<$t> {
            type A = $t;
            type D = $d;
            #[inline(always)]
            fn f($a: $t, $imm: i64) -> $d { $body }
        }
    )*};
}

macro_rules! op2 {
    ($($(#[$doc:meta])* $name:ident: $b_t:ty, |$a:ident, $b:ident, $imm:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Int> Op2 for $name<T> {
            type A = T;
            type B = $b_t;
            type D = T;
            #[inline(always)]
            fn f($a: T, $b: $b_t, $imm: i64) -> T { $body }
        }
    )*};
}

op1! {
    Neg: T => T, |a, _i| a.wneg();
    Abs: T => T, |a, _i| a.wabs();
    Not: T => T, |a, _i| a.inv();
    /// Logical not: 1 for zero.
    CNot: T => T, |a, _i| T::from_bits(u64::from(a.bits() == 0));
    Popc: T => u32, |a, _i| a.bits().count_ones();
    Clz: T => u32, |a, _i| a.bits().leading_zeros() - (64 - T::BITS);
    Brev: T => T, |a, _i| T::from_bits(a.bits().reverse_bits() >> (64 - T::BITS));
    /// `bfind`: place of the highest significant bit; `imm` 1 gives the shift amount instead.
    Bfind: T => u32, |a, imm| bfind(a.bits(), T::BITS, a < T::from_bits(0), imm);
}

#[inline(always)]
fn bfind(bits: u64, width: u32, negative: bool, imm: i64) -> u32 {
    let bits = if negative { !bits & (u64::MAX >> (64 - width)) } else { bits };
    match 63_u32.wrapping_sub(bits.leading_zeros()) {
        u32::MAX => u32::MAX,
        at if imm == 1 => width - 1 - at,
        at => at,
    }
}

op2! {
    Add: T, |a, b, _i| a.wadd(b);
    Sub: T, |a, b, _i| a.wsub(b);
    AddSat: T, |a, b, _i| a.sat_add(b);
    SubSat: T, |a, b, _i| a.sat_sub(b);
    Mul: T, |a, b, _i| a.wmul(b);
    MulHi: T, |a, b, _i| a.hi(b);
    Div: T, |a, b, _i| a.div(b);
    Rem: T, |a, b, _i| a.rem(b);
    Min: T, |a, b, _i| a.min(b);
    Max: T, |a, b, _i| a.max(b);
    And: T, |a, b, _i| T::from_bits(a.bits() & b.bits());
    Or: T, |a, b, _i| T::from_bits(a.bits() | b.bits());
    Xor: T, |a, b, _i| T::from_bits(a.bits() ^ b.bits());
    Shl: u32, |a, b, _i| a.left(b);
    Shr: u32, |a, b, _i| a.right(b);
}

macro_rules! op3 {
    ($($(#[$doc:meta])* $name:ident: $b_t:ty, $c_t:ty, |$a:ident, $b:ident, $c:ident, $imm:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Int> Op3 for $name<T> {
            type A = T;
            type B = $b_t;
            type C = $c_t;
            type D = T;
            #[inline(always)]
            fn f($a: T, $b: $b_t, $c: $c_t, $imm: i64) -> T { $body }
        }
    )*};
}

op3! {
    Mad: T, T, |a, b, c, _i| a.wmul(b).wadd(c);
    MadHi: T, T, |a, b, c, _i| a.hi(b).wadd(c);
    Sad: T, T, |a, b, c, _i| c.wadd(if a > b { a.wsub(b) } else { b.wsub(a) });
    /// Three-input logic by table `imm`.
    Lop3: T, T, |a, b, c, imm| T::from_bits(lop3(a.bits(), b.bits(), c.bits(), imm));
    /// Bit-field extract, signed or unsigned by the type.
    Bfe: u32, u32, |a, b, c, _i| bfe(a, b & 255, c & 255);
}

#[inline(always)]
fn lop3(a: u64, b: u64, c: u64, table: i64) -> u64 {
    let mut out = 0;
    for row in 0..8 {
        let term = (if row & 4 != 0 { a } else { !a })
            & (if row & 2 != 0 { b } else { !b })
            & (if row & 1 != 0 { c } else { !c });
        out |= if table >> row & 1 != 0 { term } else { 0 };
    }
    out
}

#[inline(always)]
fn bfe<T: Int>(a: T, start: u32, len: u32) -> T {
    if len == 0 {
        return T::from_bits(0);
    }
    let last = (start + len - 1).min(T::BITS - 1);
    let sign = a.bits() >> last & 1 != 0 && T::from_bits(!0) < T::from_bits(0);
    let field = if start > 63 { 0 } else { a.bits() >> start };
    let keep = len.min(T::BITS.saturating_sub(start));
    let low = if keep >= 64 { u64::MAX } else { (1 << keep) - 1 };
    T::from_bits(field & low | if sign { !low } else { 0 })
}

macro_rules! widening {
    ($($name:ident: $t:ty => $d:ty;)*) => {$(
        /// Double-width product.
        pub(crate) struct $name;
        impl Op2 for $name {
            type A = $t;
            type B = $t;
            type D = $d;
            #[inline(always)]
            fn f(a: $t, b: $t, _: i64) -> $d { <$d>::from(a).wrapping_mul(<$d>::from(b)) }
        }
        impl Op3 for $name {
            type A = $t;
            type B = $t;
            type C = $d;
            type D = $d;
            #[inline(always)]
            fn f(a: $t, b: $t, c: $d, _: i64) -> $d { <$d>::from(a).wrapping_mul(<$d>::from(b)).wrapping_add(c) }
        }
    )*};
}

widening! {
    WideU16: u16 => u32;
    WideS16: i16 => i32;
    WideU32: u32 => u64;
    WideS32: i32 => i64;
}

macro_rules! plain {
    (1: $($(#[$doc:meta])* $name:ident: $a_t:ty => $d:ty, |$a:ident, $imm:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Op1 for $name {
            type A = $a_t;
            type D = $d;
            #[inline(always)]
            fn f($a: $a_t, $imm: i64) -> $d { $body }
        }
    )*};
    (2: $($(#[$doc:meta])* $name:ident: $a_t:ty, $b_t:ty => $d:ty, |$a:ident, $b:ident, $imm:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Op2 for $name {
            type A = $a_t;
            type B = $b_t;
            type D = $d;
            #[inline(always)]
            fn f($a: $a_t, $b: $b_t, $imm: i64) -> $d { $body }
        }
    )*};
    (3: $($(#[$doc:meta])* $name:ident: $a_t:ty, $b_t:ty, $c_t:ty => $d:ty,
        |$a:ident, $b:ident, $c:ident, $imm:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl Op3 for $name {
            type A = $a_t;
            type B = $b_t;
            type C = $c_t;
            type D = $d;
            #[inline(always)]
            fn f($a: $a_t, $b: $b_t, $c: $c_t, $imm: i64) -> $d { $body }
        }
    )*};
}
pub(crate) use plain;

plain! {1:
    Copy32: u32 => u32, |a, _i| a;
    Copy64: u64 => u64, |a, _i| a;
    /// The low 32 bits of a pair.
    Low: u64 => u32, |a, _i| a as u32;
    /// 32 bits from bit `imm` on.
    Part: u64 => u32, |a, imm| (a >> (imm & 63)) as u32;
    /// 16 bits from bit `imm` on.
    Half: u32 => u32, |a, imm| a >> (imm & 31) & 0xffff;
    ZeroExtend: u32 => u64, |a, _i| u64::from(a);
    SignExtend: i32 => i64, |a, _i| i64::from(a);
    /// `szext`-free sign extension of the low `imm` bits.
    SignLow: i32 => i32, |a, imm| a << ((32 - imm as u32) & 31) >> ((32 - imm as u32) & 31);
    /// The low `imm` bits.
    ZeroLow: u32 => u32, |a, imm| a & ((1_u64 << imm) - 1) as u32;
    /// Adds `imm`: address arithmetic.
    AddImm: i64 => i64, |a, imm| a.wrapping_add(imm);
}

plain! {2:
    /// Two 16-bit values to 32 bits.
    Pack16: u32, u32 => u32, |a, b, _i| a & 0xffff | b << 16;
    /// Two 32-bit values to 64.
    Pack32: u32, u32 => u64, |a, b, _i| u64::from(a) | u64::from(b) << 32;
    /// `bmsk`: `b` ones from bit `a` on; `imm` 1 wraps both.
    Bmsk: u32, u32 => u32, |a, b, imm| {
        let (a, b) = if imm == 1 { (a & 31, b & 31) } else { (a.min(32), b.min(32)) };
        ((((1_u64 << b) - 1) << a) & 0xffff_ffff) as u32
    };
    Mul24: u32, u32 => u32, |a, b, _i| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff);
    Mul24S: i32, i32 => i32, |a, b, _i| (a << 8 >> 8).wrapping_mul(b << 8 >> 8);
    /// Adds pairs of 16-bit halves.
    Add16x2: u32, u32 => u32, |a, b, _i| (a.wrapping_add(b) & 0xffff) | (a >> 16).wrapping_add(b >> 16) << 16;
}

plain! {3:
    /// Funnel shift left; `imm` 1 clamps, 0 wraps.
    ShfL: u32, u32, u32 => u32, |a, b, c, imm| {
        let by = if imm == 1 { c.min(32) } else { c & 31 };
        ((((u64::from(b) << 32) | u64::from(a)) << by) >> 32) as u32
    };
    /// Funnel shift right; `imm` 1 clamps, 0 wraps.
    ShfR: u32, u32, u32 => u32, |a, b, c, imm| {
        let by = if imm == 1 { c.min(32) } else { c & 31 };
        (((u64::from(b) << 32) | u64::from(a)) >> by) as u32
    };
    /// Byte permute; `imm` is the mode.
    Prmt: u32, u32, u32 => u32, |a, b, c, imm| prmt(a, b, c, imm);
    Mad24: u32, u32, u32 => u32, |a, b, c, _i| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c);
    Mad24S: i32, i32, i32 => i32, |a, b, c, _i| (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c);
    /// Four 8-bit products summed; `imm` bit 0: `a` signed, bit 1: `b` signed.
    Dp4a: u32, u32, i32 => i32, |a, b, c, imm| {
        let mut sum = c;
        for at in [0, 8, 16, 24] {
            let byte = |v: u32, signed: bool| if signed { i32::from((v >> at) as i8) } else { i32::from((v >> at) as u8) };
            sum = sum.wrapping_add(byte(a, imm & 1 != 0) * byte(b, imm & 2 != 0));
        }
        sum
    };
    /// Two 16-bit by 8-bit products summed; `imm` bits 0-1 as in `Dp4a`, bit 2 takes the high bytes of `b`.
    Dp2a: u32, u32, i32 => i32, |a, b, c, imm| {
        let b = if imm & 4 != 0 { b >> 16 } else { b };
        let mut sum = c;
        for at in [0_u32, 1] {
            let (x, y) = (a >> (16 * at), b >> (8 * at));
            let x = if imm & 1 != 0 { i32::from(x as i16) } else { i32::from(x as u16) };
            let y = if imm & 2 != 0 { i32::from(y as i8) } else { i32::from(y as u8) };
            sum = sum.wrapping_add(x.wrapping_mul(y));
        }
        sum
    };
    /// Takes `a` where `c` is not negative.
    Slct32: u32, u32, i32 => u32, |a, b, c, _i| if c >= 0 { a } else { b };
    Slct64: u64, u64, i32 => u64, |a, b, c, _i| if c >= 0 { a } else { b };
    SlctF32: u32, u32, f32 => u32, |a, b, c, _i| if c >= 0.0 { a } else { b };
}

#[inline(always)]
fn prmt(a: u32, b: u32, c: u32, mode: i64) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let start = c & 3;
    let mut out = 0;
    for at in 0..4_u32 {
        let pick = match mode {
            0 => c >> (4 * at) & 15,
            // f4e, b4e, rc8, ecl, ecr, rc16
            1 => start + at,
            2 => (8 + start - at) & 7,
            3 => start,
            4 => start.max(at),
            5 => start.min(at),
            _ => (start & 1) * 2 + (at & 1),
        };
        let byte = (bytes >> (8 * (pick & 7))) as u8;
        let byte = if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out |= u32::from(byte) << (8 * at);
    }
    out
}

/// `bfi`: inserts the low bits of `a` into `b`; `c` = position | length << 8.
macro_rules! bfi {
    ($name:ident, $t:ty) => {
        /// Bit-field insert; the third operand packs position and length << 8.
        pub(crate) struct $name;
        impl Op3 for $name {
            type A = $t;
            type B = $t;
            type C = u32;
            type D = $t;
            #[inline(always)]
            fn f(a: $t, b: $t, c: u32, _: i64) -> $t {
                let (at, len) = (c & 255, c >> 8 & 255);
                let ones = if len >= <$t>::BITS { !0 } else { ((1 as $t) << len).wrapping_sub(1) };
                let field = if at >= <$t>::BITS { 0 } else { ones << at };
                let value = if at >= <$t>::BITS { 0 } else { a << at };
                b & !field | value & field
            }
        }
    };
}
bfi!(Bfi32, u32);
bfi!(Bfi64, u64);

macro_rules! cmp {
    ($($name:ident |$a:ident, $b:ident| $body:expr;)*) => {$(
        /// Integer comparison.
        pub(crate) struct $name<T>(PhantomData<T>);
        impl<T: Int> Cmp for $name<T> {
            type A = T;
            #[inline(always)]
            fn f($a: T, $b: T) -> bool { $body }
        }
    )*};
}
cmp! {
    Eq |a, b| a == b;
    Lt |a, b| a < b;
    Le |a, b| a <= b;
}
