//! Drivers that apply a per-lane function to whole slots.
//!
//! An operation is a zero-sized type with a plain scalar function; the drivers loop over 32 lanes, which the
//! compiler turns into vector code, and store under the active mask. Each driver is compiled for three
//! instruction sets and picked once, at decode.

use super::Machine;
use crate::ir::{Flow, Ins};

/// A scalar as it lies in a slot.
pub(crate) trait Val: Copy {
    type Raw: Copy + Default;
    fn get(raw: Self::Raw) -> Self;
    fn put(self) -> Self::Raw;
}

macro_rules! vals {
    ($($t:ty: $raw:ty, |$r:ident| $get:expr, |$v:ident| $put:expr;)*) => {$(
        impl Val for $t {
            type Raw = $raw;
            #[inline(always)]
            fn get($r: $raw) -> $t { $get }
            #[inline(always)]
            fn put(self) -> $raw { let $v = self; $put }
        }
    )*};
}

vals! {
    u32: u32, |r| r, |v| v;
    i32: u32, |r| r as i32, |v| v as u32;
    f32: u32, |r| f32::from_bits(r), |v| v.to_bits();
    u16: u32, |r| r as u16, |v| u32::from(v);
    i16: u32, |r| r as i16, |v| u32::from(v as u16);
    u64: u64, |r| r, |v| v;
    i64: u64, |r| r as i64, |v| v as u64;
    f64: u64, |r| f64::from_bits(r), |v| v.to_bits();
}

/// An operation on one value.
pub(crate) trait Op1 {
    type A: Val;
    type D: Val;
    fn f(a: Self::A, imm: i64) -> Self::D;
}

/// An operation on two values.
pub(crate) trait Op2 {
    type A: Val;
    type B: Val;
    type D: Val;
    fn f(a: Self::A, b: Self::B, imm: i64) -> Self::D;
}

/// An operation on three values.
pub(crate) trait Op3 {
    type A: Val;
    type B: Val;
    type C: Val;
    type D: Val;
    fn f(a: Self::A, b: Self::B, c: Self::C, imm: i64) -> Self::D;
}

/// A comparison.
pub(crate) trait Cmp {
    type A: Val;
    fn f(a: Self::A, b: Self::A) -> bool;
}

/// Lane `l`'s bit.
pub(crate) const BITS: [u32; 32] = {
    let mut bits = [0; 32];
    let mut l = 0;
    while l < 32 {
        bits[l] = 1 << l;
        l += 1;
    }
    bits
};

/// Stores `out` under the active mask.
///
/// # Safety
/// `slot` must be a register slot of the machine's program, wide enough for `T`.
#[inline(always)]
pub(crate) unsafe fn store<T: Copy>(m: &mut Machine, slot: u32, out: &[T; 32]) {
    // SAFETY: by the caller's promise.
    let to = unsafe { &mut *m.slot::<T>(slot) };
    if m.mask == u32::MAX {
        *to = *out;
    } else {
        for l in 0..32 {
            to[l] = if m.mask & BITS[l] != 0 { out[l] } else { to[l] };
        }
    }
}

#[inline(always)]
unsafe fn run1<O: Op1>(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let a = &*m.slot::<<O::A as Val>::Raw>(i.a);
        let mut out = [<O::D as Val>::Raw::default(); 32];
        for l in 0..32 {
            out[l] = O::f(O::A::get(a[l]), i.imm).put();
        }
        store(m, i.d, &out);
    }
    Flow::Next
}

#[inline(always)]
unsafe fn run2<O: Op2>(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: as in `run1`.
    unsafe {
        let a = &*m.slot::<<O::A as Val>::Raw>(i.a);
        let b = &*m.slot::<<O::B as Val>::Raw>(i.b);
        let mut out = [<O::D as Val>::Raw::default(); 32];
        for l in 0..32 {
            out[l] = O::f(O::A::get(a[l]), O::B::get(b[l]), i.imm).put();
        }
        store(m, i.d, &out);
    }
    Flow::Next
}

#[inline(always)]
unsafe fn run3<O: Op3>(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: as in `run1`.
    unsafe {
        let a = &*m.slot::<<O::A as Val>::Raw>(i.a);
        let b = &*m.slot::<<O::B as Val>::Raw>(i.b);
        let c = &*m.slot::<<O::C as Val>::Raw>(i.c);
        let mut out = [<O::D as Val>::Raw::default(); 32];
        for l in 0..32 {
            out[l] = O::f(O::A::get(a[l]), O::B::get(b[l]), O::C::get(c[l]), i.imm).put();
        }
        store(m, i.d, &out);
    }
    Flow::Next
}

/// `setp`: predicate 0 gets the comparison, predicate 1 its complement, both combined with predicate 2.
/// `imm`: bit 0 negates the comparison; bits 1-2 are 0 for no combination, 1 and, 2 or, 3 xor; bit 3 negates
/// predicate 2.
#[inline(always)]
unsafe fn compare<O: Cmp>(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: as in `run1`; predicate numbers are in bounds by the same contract.
    unsafe {
        let a = &*m.slot::<<O::A as Val>::Raw>(i.a);
        let b = &*m.slot::<<O::A as Val>::Raw>(i.b);
        let mut bits = 0;
        for l in 0..32 {
            bits |= if O::f(O::A::get(a[l]), O::A::get(b[l])) { BITS[l] } else { 0 };
        }
        if i.imm & 1 != 0 {
            bits = !bits;
        }
        set_predicates(m, i, bits);
    }
    Flow::Next
}

/// Stores a comparison's lane mask as [`compare`] says.
///
/// # Safety
/// `i` must belong to the machine's program.
#[inline(always)]
pub(crate) unsafe fn set_predicates(m: &mut Machine, i: &Ins, bits: u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        let third = m.predicate(i.p[2]) ^ if i.imm & 8 != 0 { u32::MAX } else { 0 };
        let combine = |bits: u32| match i.imm >> 1 & 3 {
            0 => bits,
            1 => bits & third,
            2 => bits | third,
            _ => bits ^ third,
        };
        let (yes, no) = (combine(bits), combine(!bits));
        m.set_predicate(i.p[0], yes);
        if i.p[1] != 0 {
            m.set_predicate(i.p[1], no);
        }
    }
}

/// Instruction set to run lanes with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    Base,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The best instruction set this machine has.
pub(crate) fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        let v4 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512cd");
        if v3 && v4 {
            return Isa::Avx512;
        }
        if v3 {
            return Isa::Avx2;
        }
    }
    Isa::Base
}

/// Compiles `$body` (an `#[inline(always)]` generic function) for each instruction set and defines `$pick`,
/// which returns the best.
macro_rules! multiversion {
    ($(#[$doc:meta])* $pick:ident, $body:ident $(, <$o:ident: $bound:path>)?) => {
        $(#[$doc])*
        pub(crate) fn $pick$(<$o: $bound>)?() -> $crate::ir::Exec {
            use $crate::exec::{Machine, lanes::{Isa, isa}};
            use $crate::ir::{Flow, Ins};
            unsafe fn base$(<$o: $bound>)?(m: &mut Machine, i: &Ins) -> Flow {
                // SAFETY: the caller keeps the contract of `Exec`.
                unsafe { $body$(::<$o>)?(m, i) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            unsafe fn avx2$(<$o: $bound>)?(m: &mut Machine, i: &Ins) -> Flow {
                // SAFETY: the caller keeps the contract of `Exec`.
                unsafe { $body$(::<$o>)?(m, i) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(
                enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"
            )]
            unsafe fn avx512$(<$o: $bound>)?(m: &mut Machine, i: &Ins) -> Flow {
                // SAFETY: the caller keeps the contract of `Exec`.
                unsafe { $body$(::<$o>)?(m, i) }
            }
            match isa() {
                Isa::Base => base$(::<$o>)? as $crate::ir::Exec,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2$(::<$o>)? as $crate::ir::Exec,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512$(::<$o>)? as $crate::ir::Exec,
            }
        }
    };
}
pub(crate) use multiversion;

multiversion!(/// The driver of a one-operand operation.
    lane1, run1, <O: Op1>);
multiversion!(/// The driver of a two-operand operation.
    lane2, run2, <O: Op2>);
multiversion!(/// The driver of a three-operand operation.
    lane3, run3, <O: Op3>);
multiversion!(/// The driver of a comparison.
    lane_compare, compare, <O: Cmp>);
