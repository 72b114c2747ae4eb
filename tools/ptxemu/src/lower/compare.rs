//! `setp` and `set`: comparisons into predicates and registers.

use super::arith::by_int;
use super::{Lower, Lowered, Op, Predicates, Src};
use crate::exec::float as flt;
use crate::exec::int::{Eq, Half, Le, Lt};
use crate::exec::lanes::{lane_compare, lane1, lane2};
use crate::exec::number::{Bf16, F16};
use crate::ir::{Class, Exec};
use crate::text::ast::{Class as RegClass, Operand, Ty};

impl<'t> Lower<'t> {
    /// `setp` and `set`.
    pub fn compare(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        let to_value = op.name == "set";
        let ty = *op.types.last().ok_or("expected a type")?;
        let flush = op.take("ftz");
        let combine =
            op.pick(|m| ["and", "or", "xor"].iter().position(|k| *k == m)).map_or(0, |p| p as i64 + 1);
        let word =
            op.pick(|m| COMPARISONS.contains(&m).then(|| m.to_owned())).ok_or("expected a comparison")?;
        self.arity(op, if combine != 0 { 4 } else { 3 })?;
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            return self.compare_halves(op, ty, &word, combine != 0);
        }
        let (exec, swap, negate) = comparison(&word, ty, flush)?;
        let (a, b) = (self.source(&op.args[1], ty)?, self.source(&op.args[2], ty)?);
        let (a, b) = if swap { (b, a) } else { (a, b) };
        let third = if combine != 0 { self.predicate_source(&op.args[3])? } else { (0, false) };
        let (yes, no) = match &op.args[0] {
            _ if to_value => (self.new_predicate()?, 0),
            Operand::Pair(yes, no) => (self.predicate_dest(yes)?, self.predicate_dest(no)?),
            yes => (self.predicate_dest(yes)?, 0),
        };
        let mut pre = self.blank(exec, Class::Predicate);
        (pre.s[0], pre.s[1]) = (Some(a), Some(b));
        pre.p = [yes, no, third.0];
        pre.predicates = Predicates::Compare;
        pre.imm = i64::from(negate) | combine << 1 | i64::from(third.1) << 3;
        self.pre.push(pre);
        if to_value {
            let to = op.types[0];
            let one = match to {
                Ty::F32 => 0x3f80_0000,
                Ty::F16 => 0x3c00,
                Ty::Bf16 => 0x3f80,
                _ => u32::MAX,
            };
            let (one, zero) = (self.word(one), self.word(0));
            let d = self.dest(&op.args[0], to)?;
            self.select(d, to, (one, zero), (yes, false));
        }
        Ok(())
    }

    /// `set` and `setp` of two packed halves.
    fn compare_halves(&mut self, op: &Op<'t>, ty: Ty, word: &str, combined: bool) -> Lowered<()> {
        if combined {
            return Err("packed comparisons combined with a predicate are not supported".to_owned());
        }
        let half = if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
        let (_, swap, negate) = comparison(word, half, false)?;
        let (a, b) = (self.source(&op.args[1], ty)?, self.source(&op.args[2], ty)?);
        let (a, b) = if swap { (b, a) } else { (a, b) };
        if op.name == "set" {
            let yes = match op.types[0] {
                Ty::F16x2 => 0x3c00,
                Ty::Bf16x2 => 0x3f80,
                _ => 0xffff,
            };
            let base = base_comparison(word, true).map_or("num", |found| found.0);
            macro_rules! halves {
                ($t:ty) => {
                    match base {
                        "eq" => lane2::<flt::SetTwo<flt::Eq<$t>>>(),
                        "lt" => lane2::<flt::SetTwo<flt::Lt<$t>>>(),
                        "le" => lane2::<flt::SetTwo<flt::Le<$t>>>(),
                        "lg" => lane2::<flt::SetTwo<flt::Unequal<$t>>>(),
                        _ => lane2::<flt::SetTwo<flt::Num<$t>>>(),
                    }
                };
            }
            let exec = if half == Ty::F16 { halves!(F16) } else { halves!(Bf16) };
            let d = self.dest(&op.args[0], Ty::B32)?;
            self.emit(exec, Class::Float16, d, &[a, b], yes | i64::from(negate) << 16);
            return Ok(());
        }
        let Operand::Pair(low, high) = &op.args[0] else {
            return Err("expected two predicates".to_owned());
        };
        for (target, bit) in [(low, 0), (high, 16)] {
            let (x, y) = (self.temporary(RegClass::Word), self.temporary(RegClass::Word));
            self.emit(lane1::<Half>(), Class::Internal, x, &[a], bit);
            self.emit(lane1::<Half>(), Class::Internal, y, &[b], bit);
            let mut pre = self.blank(comparison(word, half, false)?.0, Class::Predicate);
            (pre.s[0], pre.s[1]) = (Some(Src::Reg(x)), Some(Src::Reg(y)));
            pre.p[0] = self.predicate_dest(target)?;
            pre.predicates = Predicates::Compare;
            pre.imm = i64::from(negate);
            self.pre.push(pre);
        }
        Ok(())
    }
}

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

/// Driver of a comparison, whether its operands are swapped, whether its result is negated.
pub(super) fn comparison(word: &str, ty: Ty, flush: bool) -> Lowered<(Exec, bool, bool)> {
    let (base, swap, negate) = base_comparison(word, ty.float())
        .ok_or_else(|| format!("comparison .{word} does not go with type {ty:?}"))?;
    macro_rules! float {
        ($t:ty) => {
            match base {
                "eq" => lane_compare::<flt::Eq<$t>>(),
                "lt" => lane_compare::<flt::Lt<$t>>(),
                "le" => lane_compare::<flt::Le<$t>>(),
                "lg" => lane_compare::<flt::Unequal<$t>>(),
                _ => lane_compare::<flt::Num<$t>>(),
            }
        };
    }
    let exec = match ty {
        Ty::F32 if flush => float!(flt::Flushed),
        Ty::F32 => float!(f32),
        Ty::F64 => float!(f64),
        Ty::F16 => float!(F16),
        Ty::Bf16 => float!(Bf16),
        _ => match base {
            "eq" => by_int!(lane_compare, Eq, ty),
            "lt" => by_int!(lane_compare, Lt, ty),
            _ => by_int!(lane_compare, Le, ty),
        },
    };
    Ok((exec, swap, negate))
}

/// The comparison that `word` comes down to, whether its operands are swapped and its result negated. Float
/// comparisons ending in u are true for NaN: the negation of the opposite ordered one.
fn base_comparison(word: &str, float: bool) -> Option<(&'static str, bool, bool)> {
    Some(match (word, float) {
        ("eq", _) => ("eq", false, false),
        ("ne", false) => ("eq", false, true),
        // Ordered and different.
        ("ne", true) => ("lg", false, false),
        ("lt" | "lo", _) => ("lt", false, false),
        ("le" | "ls", _) => ("le", false, false),
        ("gt" | "hi", _) => ("lt", true, false),
        ("ge" | "hs", _) => ("le", true, false),
        ("equ", true) => ("lg", false, true),
        ("neu", true) => ("eq", false, true),
        ("ltu", true) => ("le", true, true),
        ("leu", true) => ("lt", true, true),
        ("gtu", true) => ("le", false, true),
        ("geu", true) => ("lt", false, true),
        ("num", true) => ("num", false, false),
        ("nan", true) => ("num", false, true),
        _ => return None,
    })
}
