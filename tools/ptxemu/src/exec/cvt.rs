//! `cvt`: the common pairs as vector code, every other pair lane by lane.

use super::Machine;
use super::int::plain;
use super::lanes::{Op1, Op2, store};
use super::number::{
    Float, Round, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, f64_to_bf16, f64_to_f16, f64_to_f32,
    flush,
};
use crate::ir::{Exec, Flow, Ins};
use crate::text::ast::Ty;

plain! {1:
    F16ToF32: u32 => f32, |a, _i| f16_to_f32(a as u16);
    Bf16ToF32: u32 => f32, |a, _i| bf16_to_f32(a as u16);
    F32ToF16: f32 => u32, |a, _i| u32::from(f32_to_f16(a));
    F32ToBf16: f32 => u32, |a, _i| u32::from(f32_to_bf16(a));
    S32ToF32: i32 => f32, |a, _i| a as f32;
    U32ToF32: u32 => f32, |a, _i| a as f32;
    U16ToF32: u32 => f32, |a, _i| (a & 0xffff) as f32;
    U8ToF32: u32 => f32, |a, _i| (a & 0xff) as f32;
    F32ToS32Zero: f32 => i32, |a, _i| a as i32;
    F32ToU32Zero: f32 => u32, |a, _i| a as u32;
    F32ToS32Near: f32 => i32, |a, _i| a.round_ties_even() as i32;
    F32ToS32Down: f32 => i32, |a, _i| a.floor() as i32;
    F32ToU32Near: f32 => u32, |a, _i| a.round_ties_even() as u32;
    F32Sat: f32 => f32, |a, _i| a.saturate();
    F32Near: f32 => f32, |a, _i| a.round_ties_even();
    F32Zero: f32 => f32, |a, _i| a.trunc();
    F32Down: f32 => f32, |a, _i| a.floor();
    F32Up: f32 => f32, |a, _i| a.ceil();
    F32ToF64: f32 => f64, |a, _i| f64::from(a);
    F64ToF32: f64 => f32, |a, _i| a as f32;
    S32ToF64: i32 => f64, |a, _i| f64::from(a);
}

// Packed conversions: `a` is the high half. `imm` bit 0 clamps negative values to zero.
plain! {2:
    PackF16: f32, f32 => u32, |a, b, imm| {
        let (a, b) = if imm & 1 != 0 { (a.relu(), b.relu()) } else { (a, b) };
        u32::from(f32_to_f16(a)) << 16 | u32::from(f32_to_f16(b))
    };
    PackBf16: f32, f32 => u32, |a, b, imm| {
        let (a, b) = if imm & 1 != 0 { (a.relu(), b.relu()) } else { (a, b) };
        u32::from(f32_to_bf16(a)) << 16 | u32::from(f32_to_bf16(b))
    };
    PackF16Zero: f32, f32 => u32, |a, b, imm| {
        let (a, b) = if imm & 1 != 0 { (a.relu(), b.relu()) } else { (a, b) };
        let half = |x| u32::from(f64_to_f16(f64::from(x), Round::Zero));
        half(a) << 16 | half(b)
    };
    PackBf16Zero: f32, f32 => u32, |a, b, imm| {
        let (a, b) = if imm & 1 != 0 { (a.relu(), b.relu()) } else { (a, b) };
        let half = |x| u32::from(f64_to_bf16(f64::from(x), Round::Zero));
        half(a) << 16 | half(b)
    };
}

/// How to convert: packed into `Ins::imm` by [`Conversion::pack`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub from: Ty,
    pub to: Ty,
    /// `None` for the type pair's exact or default conversion.
    pub round: Option<Round>,
    /// `.rni` and kin: round to an integral value.
    pub integral: bool,
    pub saturate: bool,
    pub relu: bool,
    pub flush: bool,
    /// Whether source and destination registers are 64 bits wide.
    pub wide_source: bool,
    pub wide_target: bool,
}

/// Types that `cvt` converts between, in the order of their codes.
const TYPES: [Ty; 12] = [
    Ty::U8,
    Ty::S8,
    Ty::U16,
    Ty::S16,
    Ty::U32,
    Ty::S32,
    Ty::U64,
    Ty::S64,
    Ty::F16,
    Ty::Bf16,
    Ty::F32,
    Ty::F64,
];

impl Conversion {
    /// Bits for `Ins::imm`; `None` if a type cannot be converted.
    pub fn pack(&self) -> Option<i64> {
        let code = |ty| TYPES.iter().position(|t| *t == ty).map(|p| p as i64);
        let round = self.round.map_or(7, |r| Round::ALL.iter().position(|x| *x == r).unwrap_or(0) as i64);
        let flag = |on: bool, at: u32| i64::from(on) << at;
        Some(
            code(self.from)?
                | code(self.to)? << 4
                | round << 8
                | flag(self.integral, 12)
                | flag(self.saturate, 13)
                | flag(self.relu, 14)
                | flag(self.flush, 15)
                | flag(self.wide_source, 16)
                | flag(self.wide_target, 17),
        )
    }

    fn unpack(imm: i64) -> Conversion {
        let ty = |at: u32| TYPES[(imm >> at & 15).min(11) as usize];
        let flag = |at: u32| imm >> at & 1 != 0;
        Conversion {
            from: ty(0),
            to: ty(4),
            round: (imm >> 8 & 7 < 5).then(|| Round::of(imm >> 8 & 7)),
            integral: flag(12),
            saturate: flag(13),
            relu: flag(14),
            flush: flag(15),
            wide_source: flag(16),
            wide_target: flag(17),
        }
    }

    /// Converts one value; bits in, bits out (sign- or zero-extended to 64).
    pub fn convert(&self, bits: u64) -> u64 {
        if self.from.float() {
            let x = match self.from {
                Ty::F16 => f64::from(f16_to_f32(bits as u16)),
                Ty::Bf16 => f64::from(bf16_to_f32(bits as u16)),
                Ty::F32 if self.flush => f64::from(flush(f32::from_bits(bits as u32))),
                Ty::F32 => f64::from(f32::from_bits(bits as u32)),
                _ => f64::from_bits(bits),
            };
            let round = self.round.unwrap_or(Round::Near);
            if !self.to.float() {
                return self.to_int(whole(x, self.round.unwrap_or(Round::Zero)));
            }
            let x = if self.integral { whole(x, round) } else { x };
            return self.to_float(x, round);
        }
        let value: i128 = match self.from {
            Ty::U8 => i128::from(bits as u8),
            Ty::S8 => i128::from(bits as i8),
            Ty::U16 => i128::from(bits as u16),
            Ty::S16 => i128::from(bits as i16),
            Ty::U32 => i128::from(bits as u32),
            Ty::S32 => i128::from(bits as i32),
            Ty::U64 => i128::from(bits),
            _ => i128::from(bits as i64),
        };
        if self.to.float() {
            let near = self.round.unwrap_or(Round::Near) == Round::Near;
            return match self.to {
                Ty::F32 if near => u64::from((value as f32).to_bits()),
                _ => self.to_float(value as f64, self.round.unwrap_or(Round::Near)),
            };
        }
        let value = if self.saturate {
            let (low, high) = limits(self.to);
            value.clamp(low, high)
        } else {
            value
        };
        extend(value as u64, self.to)
    }

    fn to_float(self, x: f64, round: Round) -> u64 {
        let x = if self.saturate { x.saturate() } else { x };
        let x = if self.relu && x < 0.0 { 0.0 } else { x };
        match self.to {
            Ty::F16 => u64::from(f64_to_f16(x, round)),
            Ty::Bf16 => u64::from(f64_to_bf16(x, round)),
            Ty::F32 => {
                let y = f64_to_f32(x, round);
                u64::from(if self.flush { flush(y) } else { y }.to_bits())
            }
            _ => x.to_bits(),
        }
    }

    fn to_int(self, x: f64) -> u64 {
        let (low, high) = limits(self.to);
        // Float-to-integer conversions always saturate; NaN gives 0.
        extend((x as i128).clamp(low, high) as u64, self.to)
    }
}

fn whole(x: f64, round: Round) -> f64 {
    match round {
        Round::Near => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Away => x.round(),
    }
}

fn limits(ty: Ty) -> (i128, i128) {
    let bits = ty.bytes() * 8;
    if ty.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// Truncates to the type and extends to 64 bits by its sign.
fn extend(bits: u64, ty: Ty) -> u64 {
    match ty {
        Ty::U8 => u64::from(bits as u8),
        Ty::S8 => bits as i8 as u64,
        Ty::U16 => u64::from(bits as u16),
        Ty::S16 => bits as i16 as u64,
        Ty::U32 => u64::from(bits as u32),
        Ty::S32 => bits as i32 as u64,
        _ => bits,
    }
}

/// Any conversion, lane by lane.
unsafe fn any(m: &mut Machine, i: &Ins) -> Flow {
    let how = Conversion::unpack(i.imm);
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let mut out = [0_u64; 32];
        for (l, out) in out.iter_mut().enumerate() {
            let bits = if how.wide_source {
                (&*m.slot::<u64>(i.a))[l]
            } else {
                u64::from((&*m.slot::<u32>(i.a))[l])
            };
            *out = how.convert(bits);
        }
        if how.wide_target {
            store(m, i.d, &out);
        } else {
            // 16-bit registers hold their value zero-extended; wider readers of a signed value extend it
            // themselves.
            store(m, i.d, &out.map(|v| v as u32));
        }
    }
    Flow::Next
}

/// The driver of the general conversion.
pub(crate) fn any_conversion() -> Exec {
    any
}
