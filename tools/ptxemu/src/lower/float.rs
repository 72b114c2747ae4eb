//! Floating-point instructions.

use super::{Lower, Lowered, Op};
use crate::exec::float::*;
use crate::exec::lanes::{lane1, lane2, lane3};
use crate::exec::number::{Bf16, F16, Round};
use crate::ir::{Class, Exec};
use crate::text::ast::Ty;

/// Instantiates an operation for a float type; `$flush` picks the flushing `f32`.
macro_rules! by_float {
    ($lane:ident, $op:ident, $ty:expr, $flush:expr) => {
        match $ty {
            Ty::F32 if $flush => $lane::<$op<Flushed>>(),
            Ty::F32 => $lane::<$op<f32>>(),
            Ty::F64 => $lane::<$op<f64>>(),
            Ty::F16 => $lane::<$op<F16>>(),
            Ty::Bf16 => $lane::<$op<Bf16>>(),
            Ty::F16x2 => $lane::<Two<$op<F16>>>(),
            Ty::Bf16x2 => $lane::<Two<$op<Bf16>>>(),
            other => return Err(format!("type {other:?} is not supported here")),
        }
    };
}

/// Rounding modifier.
pub(super) fn rounding(word: &str) -> Option<Round> {
    Some(match word {
        "rn" => Round::Near,
        "rz" => Round::Zero,
        "rm" => Round::Down,
        "rp" => Round::Up,
        "rna" => Round::Away,
        _ => return None,
    })
}

fn class(ty: Ty) -> Class {
    match ty {
        Ty::F64 => Class::Float64,
        Ty::F32 => Class::Float32,
        _ => Class::Float16,
    }
}

impl<'t> Lower<'t> {
    /// Floating-point instructions; `false` if the instruction is none.
    pub fn float(&mut self, op: &mut Op<'t>) -> Lowered<bool> {
        let Some(&ty) = op.types.first() else { return Ok(false) };
        if !ty.float() {
            return Ok(false);
        }
        let known = [
            "add", "sub", "mul", "fma", "mad", "div", "min", "max", "neg", "abs", "sqrt", "rsqrt", "rcp",
            "ex2", "lg2", "sin", "cos", "tanh", "copysign", "testp",
        ];
        if !known.contains(&op.name) {
            return Ok(false);
        }
        let flush = op.take("ftz");
        let (saturate, relu) = (op.take("sat"), op.take("relu"));
        let approx = op.take("approx");
        let full = op.take("full");
        op.take("noftz");
        let round = op.pick(rounding).unwrap_or(Round::Near);
        let code = Round::ALL.iter().position(|r| *r == round).unwrap_or(0) as i64;
        let imm = code | i64::from(saturate) << 4 | i64::from(flush) << 5;
        let odd = round != Round::Near && ty == Ty::F32;
        if round != Round::Near && ty != Ty::F32 {
            return Err("directed rounding is supported for f32 only".to_owned());
        }
        // Flushing a sum, product or quotient that also saturates goes through the general forms.
        let general = odd || saturate && flush && ty == Ty::F32;
        let exec = match op.name {
            "add" if general => lane2::<AddRound>(),
            "add" if saturate => by_float!(lane2, AddSat, ty, flush),
            "add" => by_float!(lane2, Add, ty, flush),
            "sub" if general => return Err("this form of sub is not supported".to_owned()),
            "sub" if saturate => by_float!(lane2, SubSat, ty, flush),
            "sub" => by_float!(lane2, Sub, ty, flush),
            "mul" if general => lane2::<MulRound>(),
            "mul" if saturate => by_float!(lane2, MulSat, ty, flush),
            "mul" => by_float!(lane2, Mul, ty, flush),
            "fma" | "mad" if general => lane3::<FmaRound>(),
            "fma" | "mad" if saturate => by_float!(lane3, FmaSat, ty, flush),
            "fma" | "mad" if relu => by_float!(lane3, FmaRelu, ty, flush),
            "fma" | "mad" => by_float!(lane3, Fma, ty, flush),
            "div" if odd => lane2::<DivRound>(),
            "div" => by_float!(lane2, Div, ty, flush),
            "min" | "max" => {
                op.take("xorsign");
                match (op.name, op.take("NaN")) {
                    ("min", false) => by_float!(lane2, Min, ty, flush),
                    ("max", false) => by_float!(lane2, Max, ty, flush),
                    ("min", true) => by_float!(lane2, MinNan, ty, flush),
                    _ => by_float!(lane2, MaxNan, ty, flush),
                }
            }
            "copysign" => by_float!(lane2, CopySign, ty, false),
            "neg" => by_float!(lane1, Neg, ty, flush),
            "abs" => by_float!(lane1, Abs, ty, flush),
            "sqrt" if odd => lane1::<SqrtRound>(),
            "sqrt" => by_float!(lane1, Sqrt, ty, flush),
            "rcp" if ty == Ty::F64 => lane1::<Rcp64>(),
            "rcp" if odd => lane1::<RcpRound>(),
            _ => return self.function(op, ty, imm),
        };
        let _ = (approx, full);
        let wanted = match op.name {
            "fma" | "mad" => 4,
            "neg" | "abs" | "sqrt" | "rcp" => 2,
            _ => 3,
        };
        self.arity(op, wanted)?;
        let class = if matches!(op.name, "div" | "sqrt" | "rcp") { Class::Special } else { class(ty) };
        self.simple(op, exec, class, ty, imm)?;
        if matches!(op.name, "fma" | "mad") {
            self.last().macs = if matches!(ty, Ty::F16x2 | Ty::Bf16x2) { 2 } else { 1 };
        }
        Ok(true)
    }

    /// Special functions.
    fn function(&mut self, op: &mut Op<'t>, ty: Ty, imm: i64) -> Lowered<bool> {
        let exec: Exec = match (op.name, ty) {
            ("rcp", Ty::F32) => lane1::<Rcp>(),
            ("rsqrt", Ty::F32) => lane1::<Rsqrt>(),
            ("rsqrt", Ty::F64) => lane1::<Rsqrt64>(),
            ("ex2", Ty::F32) => lane1::<Ex2>(),
            ("lg2", Ty::F32) => lane1::<Lg2>(),
            ("sin", Ty::F32) => lane1::<Sin>(),
            ("cos", Ty::F32) => lane1::<Cos>(),
            ("tanh", Ty::F32) => lane1::<Tanh>(),
            ("ex2", Ty::F16) => lane1::<HalfEx2<F16>>(),
            ("ex2", Ty::Bf16) => lane1::<HalfEx2<Bf16>>(),
            ("ex2", Ty::F16x2) => lane1::<Two<HalfEx2<F16>>>(),
            ("ex2", Ty::Bf16x2) => lane1::<Two<HalfEx2<Bf16>>>(),
            ("tanh", Ty::F16) => lane1::<HalfTanh<F16>>(),
            ("tanh", Ty::Bf16) => lane1::<HalfTanh<Bf16>>(),
            ("tanh", Ty::F16x2) => lane1::<Two<HalfTanh<F16>>>(),
            ("tanh", Ty::Bf16x2) => lane1::<Two<HalfTanh<Bf16>>>(),
            ("testp", _) => return self.test_property(op, ty),
            _ => return Err(format!("no {} of type {ty:?}", op.name)),
        };
        self.arity(op, 2)?;
        self.simple(op, exec, Class::Special, ty, imm)?;
        Ok(true)
    }

    fn test_property(&mut self, op: &mut Op<'t>, ty: Ty) -> Lowered<bool> {
        self.arity(op, 2)?;
        // |x| against infinity decides all of these; NaN fails every ordered comparison.
        let a = self.source(&op.args[1], ty)?;
        let magnitude = self.temporary(super::class_for(ty));
        self.emit(by_float!(lane1, Abs, ty, false), Class::Internal, magnitude, &[a], 0);
        let infinity = match ty {
            Ty::F32 => self.word(0x7f80_0000),
            Ty::F64 => self.constant(crate::ir::Const::Long(f64::INFINITY.to_bits())),
            _ => return Err(format!("no testp of type {ty:?}")),
        };
        let word = op.pick(|m| {
            Some(match m {
                "finite" => "lt",
                "infinite" => "eq",
                "number" => "num",
                "notanumber" => "nan",
                _ => return None,
            })
        });
        let word = word.ok_or("this property is not supported")?;
        let (exec, _, negate) = super::compare::comparison(word, ty, false)?;
        let p = self.predicate_dest(&op.args[0])?;
        let mut pre = self.blank(exec, Class::Predicate);
        (pre.s[0], pre.s[1]) = (Some(super::Src::Reg(magnitude)), Some(infinity));
        (pre.p[0], pre.imm) = (p, i64::from(negate));
        pre.predicates = super::Predicates::Compare;
        self.pre.push(pre);
        Ok(true)
    }
}
