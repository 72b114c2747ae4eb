//! `cvt`.

use super::float::rounding;
use super::{Lower, Lowered, Op, Src};
use crate::exec::cvt::*;
use crate::exec::float::{ToTf32Away, ToTf32Even};
use crate::exec::int::{Copy32, Copy64, Low, SignExtend, SignLow, ZeroExtend, ZeroLow};
use crate::exec::lanes::{lane1, lane2};
use crate::exec::number::Round;
use crate::ir::{Class, Exec};
use crate::text::ast::{Class as RegClass, Operand, Ty};

impl<'t> Lower<'t> {
    /// `cvt`; `false` for anything else.
    pub fn convert(&mut self, op: &mut Op<'t>) -> Lowered<bool> {
        if op.name != "cvt" {
            return Ok(false);
        }
        if op.take("pack") {
            return Err("cvt.pack is not supported".to_owned());
        }
        let integral = op.pick(|m| {
            Some(match m {
                "rni" => Round::Near,
                "rzi" => Round::Zero,
                "rmi" => Round::Down,
                "rpi" => Round::Up,
                _ => return None,
            })
        });
        let round = integral.or_else(|| op.pick(rounding));
        let (saturate, relu, flush) = (op.take("sat"), op.take("relu"), op.take("ftz"));
        let [to, from] = op.types[..] else {
            if op.types == [Ty::Tf32] || op.types.is_empty() {
                return Err("expected two types".to_owned());
            }
            return Err("this conversion's types are not supported".to_owned());
        };
        match to {
            Ty::F16x2 | Ty::Bf16x2 => {
                let exec = match (to, round) {
                    (_, Some(Round::Near)) if from != Ty::F32 => {
                        return Err("expected f32 sources".to_owned());
                    }
                    (Ty::F16x2, Some(Round::Near)) => lane2::<PackF16>(),
                    (Ty::F16x2, Some(Round::Zero)) => lane2::<PackF16Zero>(),
                    (_, Some(Round::Near)) => lane2::<PackBf16>(),
                    (_, Some(Round::Zero)) => lane2::<PackBf16Zero>(),
                    _ => return Err("expected .rn or .rz".to_owned()),
                };
                self.typed(op, exec, Class::Convert, (Ty::B32, &[Ty::F32, Ty::F32]), i64::from(relu))?;
                return Ok(true);
            }
            Ty::Tf32 => {
                let exec = match round {
                    Some(Round::Away) => lane1::<ToTf32Away>(),
                    Some(Round::Near) => lane1::<ToTf32Even>(),
                    _ => return Err("expected .rna or .rn".to_owned()),
                };
                self.typed(op, exec, Class::Convert, (Ty::B32, &[Ty::F32]), 0)?;
                return Ok(true);
            }
            _ => {}
        }
        self.arity(op, 2)?;
        let source = match &op.args[1] {
            Operand::Reg(reg) => Src::Reg(*reg),
            other => self.source(other, from)?,
        };
        let wide = |lower: &Self, reg: u32| lower.regs[reg as usize] == RegClass::Long;
        let wide_source = match source {
            Src::Reg(reg) => wide(self, reg),
            Src::Const(_) => from.bytes() == 8,
        };
        let d = match &op.args[0] {
            Operand::Reg(reg) if self.regs[*reg as usize] != RegClass::Pred => *reg,
            Operand::Sink => self.dest(&op.args[0], to)?,
            _ => return Err("the destination must be a register".to_owned()),
        };
        let wide_target = wide(self, d);
        if from.bytes() == 8 && !wide_source || to.bytes() == 8 && !wide_target {
            return Err("a register is too narrow for its type".to_owned());
        }
        let natural = wide_source == (from.bytes() == 8) && wide_target == (to.bytes() == 8);
        let plain = natural && !saturate && !relu && !flush;
        let fast = if plain { fast(to, from, round) } else { None };
        let fast = match (to, from) {
            (Ty::F32, Ty::F32) if natural && saturate && round.is_none() && !flush => {
                Some((lane1::<F32Sat>(), 0))
            }
            _ => fast,
        };
        let class = if to == from { Class::Move } else { Class::Convert };
        if let Some((exec, imm)) = fast {
            self.emit(exec, class, d, &[source], imm);
            return Ok(true);
        }
        let how = Conversion {
            from: unsigned_bits(from),
            to: unsigned_bits(to),
            round,
            integral: integral.is_some(),
            saturate,
            relu,
            flush,
            wide_source,
            wide_target,
        };
        let imm = how.pack().ok_or_else(|| format!("conversion from {from:?} to {to:?} is not supported"))?;
        self.emit(any_conversion(), Class::Convert, d, &[source], imm);
        Ok(true)
    }
}

fn unsigned_bits(ty: Ty) -> Ty {
    match ty {
        Ty::B8 => Ty::U8,
        Ty::B16 => Ty::U16,
        Ty::B32 => Ty::U32,
        Ty::B64 => Ty::U64,
        ty => ty,
    }
}

/// Vector code for the common pairs: driver and immediate.
fn fast(to: Ty, from: Ty, round: Option<Round>) -> Option<(Exec, i64)> {
    let near = matches!(round, None | Some(Round::Near));
    Some(match (to, from, round) {
        (Ty::F32, Ty::F16, None) => (lane1::<F16ToF32>(), 0),
        (Ty::F32, Ty::Bf16, None) => (lane1::<Bf16ToF32>(), 0),
        (Ty::F16, Ty::F32, Some(Round::Near)) => (lane1::<F32ToF16>(), 0),
        (Ty::Bf16, Ty::F32, Some(Round::Near)) => (lane1::<F32ToBf16>(), 0),
        (Ty::F32, Ty::S32, _) if near => (lane1::<S32ToF32>(), 0),
        (Ty::F32, Ty::U32, _) if near => (lane1::<U32ToF32>(), 0),
        (Ty::F32, Ty::U16, _) if near => (lane1::<U16ToF32>(), 0),
        (Ty::F32, Ty::U8, _) if near => (lane1::<U8ToF32>(), 0),
        (Ty::S32, Ty::F32, Some(Round::Zero)) => (lane1::<F32ToS32Zero>(), 0),
        (Ty::U32, Ty::F32, Some(Round::Zero)) => (lane1::<F32ToU32Zero>(), 0),
        (Ty::S32, Ty::F32, Some(Round::Near)) => (lane1::<F32ToS32Near>(), 0),
        (Ty::U32, Ty::F32, Some(Round::Near)) => (lane1::<F32ToU32Near>(), 0),
        (Ty::S32, Ty::F32, Some(Round::Down)) => (lane1::<F32ToS32Down>(), 0),
        (Ty::F32, Ty::F32, Some(Round::Near)) => (lane1::<F32Near>(), 0),
        (Ty::F32, Ty::F32, Some(Round::Zero)) => (lane1::<F32Zero>(), 0),
        (Ty::F32, Ty::F32, Some(Round::Down)) => (lane1::<F32Down>(), 0),
        (Ty::F32, Ty::F32, Some(Round::Up)) => (lane1::<F32Up>(), 0),
        (Ty::F64, Ty::F32, None) => (lane1::<F32ToF64>(), 0),
        (Ty::F32, Ty::F64, Some(Round::Near)) => (lane1::<F64ToF32>(), 0),
        (Ty::F64, Ty::S32, _) if near => (lane1::<S32ToF64>(), 0),
        (Ty::U64 | Ty::S64, Ty::U32, None) => (lane1::<ZeroExtend>(), 0),
        (Ty::U64 | Ty::S64, Ty::S32, None) => (lane1::<SignExtend>(), 0),
        (Ty::U32 | Ty::S32 | Ty::U16 | Ty::S16, Ty::U64 | Ty::S64, None) => (lane1::<Low>(), 0),
        (Ty::U32 | Ty::S32, Ty::U16, None) => (lane1::<ZeroLow>(), 16),
        (Ty::U32 | Ty::S32, Ty::S16, None) => (lane1::<SignLow>(), 16),
        (Ty::U32 | Ty::S32 | Ty::U16 | Ty::S16, Ty::U8, None) => (lane1::<ZeroLow>(), 8),
        (Ty::U32 | Ty::S32 | Ty::U16 | Ty::S16, Ty::S8, None) => (lane1::<SignLow>(), 8),
        (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32 | Ty::U16 | Ty::S16, None) => (lane1::<Copy32>(), 0),
        (Ty::U32 | Ty::S32, Ty::U32 | Ty::S32, None) => (lane1::<Copy32>(), 0),
        (Ty::U64 | Ty::S64, Ty::U64 | Ty::S64, None) => (lane1::<Copy64>(), 0),
        _ => return None,
    })
}
