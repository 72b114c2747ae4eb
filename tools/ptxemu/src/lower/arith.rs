//! Integer, bit, predicate, comparison, selection and move instructions.

use super::{Lower, Lowered, Op, Src, class_for};
use crate::exec::float as flt;
use crate::exec::int::*;
use crate::exec::lanes::{lane_compare, lane1, lane2, lane3};
use crate::exec::number::{Bf16, F16};
use crate::exec::special::{Sreg, extended, extended_mad, predicate_logic, select32, select64};
use crate::ir::{Class, Exec};
use crate::text::ast::{Class as RegClass, Operand, Ty};

/// Instantiates an operation for an integer type (bit types count as unsigned).
macro_rules! by_int {
    ($lane:ident, $op:ident, $ty:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => $lane::<$op<u16>>(),
            Ty::S16 => $lane::<$op<i16>>(),
            Ty::U32 | Ty::B32 => $lane::<$op<u32>>(),
            Ty::S32 => $lane::<$op<i32>>(),
            Ty::U64 | Ty::B64 => $lane::<$op<u64>>(),
            Ty::S64 => $lane::<$op<i64>>(),
            other => return Err(format!("type {other:?} is not supported here")),
        }
    };
}

impl<'t> Lower<'t> {
    /// Emits `d = exec(args...)`, all of type `ty`.
    pub fn simple(&mut self, op: &Op<'t>, exec: Exec, class: Class, ty: Ty, imm: i64) -> Lowered<()> {
        let sources: Lowered<Vec<Src>> = op.args[1..].iter().map(|a| self.source(a, ty)).collect();
        let d = self.dest(&op.args[0], ty)?;
        self.emit(exec, class, d, &sources?, imm);
        Ok(())
    }

    /// Emits `d = exec(args...)` with a type for the destination and each source.
    pub fn typed(
        &mut self,
        op: &Op<'t>,
        exec: Exec,
        class: Class,
        types: (Ty, &[Ty]),
        imm: i64,
    ) -> Lowered<()> {
        self.arity(op, types.1.len() + 1)?;
        let mut sources = Vec::new();
        for (arg, ty) in op.args[1..].iter().zip(types.1) {
            sources.push(self.source(arg, *ty)?);
        }
        let d = self.dest(&op.args[0], types.0)?;
        self.emit(exec, class, d, &sources, imm);
        Ok(())
    }

    /// Integer and bit instructions; `false` if the instruction is none.
    pub fn arith(&mut self, op: &mut Op<'t>) -> Lowered<bool> {
        let ty = op.types.first().copied().unwrap_or(Ty::B32);
        if ty == Ty::Pred && !matches!(op.name, "setp" | "set" | "selp") {
            return self.logic(op);
        }
        match op.name {
            "mov" => self.mov(op, ty)?,
            "add" | "sub" | "addc" | "subc" => self.add(op, ty)?,
            "mul" | "mad" | "madc" => self.mul(op, ty)?,
            "div" | "rem" | "min" | "max" | "and" | "or" | "xor" => {
                self.arity(op, 3)?;
                let exec = match op.name {
                    "div" => by_int!(lane2, Div, ty),
                    "rem" => by_int!(lane2, Rem, ty),
                    "min" => by_int!(lane2, Min, ty),
                    "max" => by_int!(lane2, Max, ty),
                    "and" => by_int!(lane2, And, ty),
                    "or" => by_int!(lane2, Or, ty),
                    _ => by_int!(lane2, Xor, ty),
                };
                self.simple(op, exec, Class::Integer, ty, 0)?;
            }
            "neg" | "abs" | "not" | "cnot" | "brev" => {
                self.arity(op, 2)?;
                let exec = match op.name {
                    "neg" => by_int!(lane1, Neg, ty),
                    "abs" => by_int!(lane1, Abs, ty),
                    "not" => by_int!(lane1, Not, ty),
                    "cnot" => by_int!(lane1, CNot, ty),
                    _ => by_int!(lane1, Brev, ty),
                };
                self.simple(op, exec, Class::Integer, ty, 0)?;
            }
            "popc" | "clz" | "bfind" => {
                let amount = i64::from(op.take("shiftamt"));
                let exec = match op.name {
                    "popc" => by_int!(lane1, Popc, ty),
                    "clz" => by_int!(lane1, Clz, ty),
                    _ => by_int!(lane1, Bfind, ty),
                };
                self.typed(op, exec, Class::Integer, (Ty::U32, &[ty]), amount)?;
            }
            "shl" => self.typed(op, by_int!(lane2, Shl, ty), Class::Integer, (ty, &[ty, Ty::U32]), 0)?,
            "shr" => self.typed(op, by_int!(lane2, Shr, ty), Class::Integer, (ty, &[ty, Ty::U32]), 0)?,
            "bfe" => {
                self.typed(op, by_int!(lane3, Bfe, ty), Class::Integer, (ty, &[ty, Ty::U32, Ty::U32]), 0)?
            }
            "sad" => {
                self.arity(op, 4)?;
                self.simple(op, by_int!(lane3, Sad, ty), Class::Integer, ty, 0)?;
            }
            "bfi" => self.bfi(op, ty)?,
            "lop3" => {
                self.arity(op, 5)?;
                let Operand::Int(table) = op.args[4] else {
                    return Err("the table must be a number".to_owned());
                };
                let short = Op { args: &op.args[..4], name: op.name, mods: Vec::new(), types: Vec::new() };
                self.simple(&short, lane3::<Lop3<u32>>(), Class::Integer, ty, table as i64 & 255)?;
            }
            "prmt" => {
                let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
                let mode = op.pick(|m| modes.iter().position(|x| *x == m)).map_or(0, |p| p as i64 + 1);
                self.arity(op, 4)?;
                self.simple(op, lane3::<Prmt>(), Class::Integer, Ty::B32, mode)?;
            }
            "shf" => {
                let left = op.take("l");
                if !left && !op.take("r") {
                    return Err("expected .l or .r".to_owned());
                }
                let clamp = op.take("clamp");
                if !clamp && !op.take("wrap") {
                    return Err("expected .clamp or .wrap".to_owned());
                }
                self.arity(op, 4)?;
                let exec = if left { lane3::<ShfL>() } else { lane3::<ShfR>() };
                self.simple(op, exec, Class::Integer, Ty::B32, i64::from(clamp))?;
            }
            "bmsk" => {
                let wrap = op.take("wrap");
                op.take("clamp");
                self.arity(op, 3)?;
                self.simple(op, lane2::<Bmsk>(), Class::Integer, Ty::B32, i64::from(wrap))?;
            }
            "mul24" | "mad24" => {
                if !op.take("lo") {
                    return Err("only .lo is supported".to_owned());
                }
                let exec = match (op.name, ty.signed()) {
                    ("mul24", false) => lane2::<Mul24>(),
                    ("mul24", true) => lane2::<Mul24S>(),
                    (_, false) => lane3::<Mad24>(),
                    (_, true) => lane3::<Mad24S>(),
                };
                self.arity(op, if op.name == "mul24" { 3 } else { 4 })?;
                self.simple(op, exec, Class::Integer, ty, 0)?;
            }
            "dp4a" | "dp2a" => {
                let [a, b] = op.types[..] else { return Err("expected two types".to_owned()) };
                let mut imm = i64::from(a.signed()) | i64::from(b.signed()) << 1;
                let exec = if op.name == "dp4a" {
                    lane3::<Dp4a>()
                } else {
                    imm |= i64::from(op.take("hi")) << 2;
                    op.take("lo");
                    lane3::<Dp2a>()
                };
                self.arity(op, 4)?;
                self.simple(op, exec, Class::Integer, Ty::B32, imm)?;
            }
            "selp" => {
                self.arity(op, 4)?;
                let (p, negated) = self.predicate_source(&op.args[3])?;
                let (a, b) = (self.source(&op.args[1], ty)?, self.source(&op.args[2], ty)?);
                let d = self.dest(&op.args[0], ty)?;
                self.select(d, ty, (a, b), (p, negated));
            }
            "slct" => {
                let selector = *op.types.get(1).ok_or("expected two types")?;
                op.take("ftz");
                let exec = match (ty.bytes(), selector) {
                    (8, Ty::S32) => lane3::<Slct64>(),
                    (_, Ty::S32) => lane3::<Slct32>(),
                    (4, Ty::F32) => lane3::<SlctF32>(),
                    _ => return Err("this form of slct is not supported".to_owned()),
                };
                self.typed(op, exec, Class::Integer, (ty, &[ty, ty, selector]), 0)?;
            }
            "setp" | "set" => self.compare(op)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Emits a selection.
    fn select(&mut self, d: u32, ty: Ty, (a, b): (Src, Src), (p, negated): (u16, bool)) {
        let exec = if class_for(ty) == RegClass::Long { select64() } else { select32() };
        self.emit(exec, Class::Predicate, d, &[a, b], i64::from(negated));
        self.last().p[0] = p;
    }

    fn logic(&mut self, op: &mut Op<'t>) -> Lowered<bool> {
        let (kind, arity, invert) = match op.name {
            "mov" => (0, 2, false),
            "not" => (0, 2, true),
            "and" => (0, 3, false),
            "or" => (1, 3, false),
            "xor" => (2, 3, false),
            _ => return Ok(false),
        };
        self.arity(op, arity)?;
        let (a, not_a) = self.predicate_source(&op.args[1])?;
        // One source: combined with "true".
        let (b, not_b) = if arity == 3 { self.predicate_source(&op.args[2])? } else { (0, false) };
        let d = self.predicate_dest(&op.args[0])?;
        let mut pre = self.blank(predicate_logic, Class::Predicate);
        pre.p = [d, a, b];
        pre.imm = kind | i64::from(not_a) << 4 | i64::from(not_b) << 5 | i64::from(invert) << 6;
        self.pre.push(pre);
        Ok(true)
    }

    fn mov(&mut self, op: &mut Op<'t>, ty: Ty) -> Lowered<()> {
        self.arity(op, 2)?;
        match (&op.args[0], &op.args[1]) {
            (Operand::Vector(parts), source) => self.unpack(parts, source, ty),
            (dest, Operand::Vector(parts)) => self.pack(dest, parts, ty),
            (dest, Operand::Special(name)) => {
                let sreg =
                    Sreg::parse(name).ok_or_else(|| format!("special register %{name} is not supported"))?;
                let d = self.dest(dest, ty)?;
                self.special(sreg, d, ty.bytes() == 8);
                Ok(())
            }
            _ => {
                let exec = if ty.bytes() == 8 { lane1::<Copy64>() } else { lane1::<Copy32>() };
                self.simple(op, exec, Class::Move, ty, 0)
            }
        }
    }

    fn pack(&mut self, dest: &Operand, parts: &[Operand], ty: Ty) -> Lowered<()> {
        let d = self.dest(dest, ty)?;
        let sources = |lower: &mut Self, ty| -> Lowered<Vec<Src>> {
            parts.iter().map(|p| lower.source(p, ty)).collect()
        };
        match (parts.len(), ty.bytes()) {
            (2, 4) => {
                let s = sources(self, Ty::B16)?;
                self.emit(lane2::<Pack16>(), Class::Move, d, &s, 0);
            }
            (2, 8) => {
                let s = sources(self, Ty::B32)?;
                self.emit(lane2::<Pack32>(), Class::Move, d, &s, 0);
            }
            (4, 8) => {
                let s = sources(self, Ty::B16)?;
                let halves = [self.temporary(RegClass::Word), self.temporary(RegClass::Word)];
                self.emit(lane2::<Pack16>(), Class::Move, halves[0], &s[..2], 0);
                self.emit(lane2::<Pack16>(), Class::Move, halves[1], &s[2..], 0);
                self.emit(lane2::<Pack32>(), Class::Move, d, &halves.map(Src::Reg), 0);
            }
            (n, bytes) => return Err(format!("packing {n} values into {bytes} bytes is not supported")),
        }
        Ok(())
    }

    fn unpack(&mut self, parts: &[Operand], source: &Operand, ty: Ty) -> Lowered<()> {
        let s = self.source(source, ty)?;
        let n = parts.len() as u32;
        if !matches!((n, ty.bytes()), (2, 4) | (2 | 4, 8)) {
            return Err(format!("unpacking {} bytes into {n} values is not supported", ty.bytes()));
        }
        let width = ty.bytes() / n;
        for (at, part) in parts.iter().enumerate() {
            if *part == Operand::Sink {
                continue;
            }
            let bit = i64::from(width * 8) * at as i64;
            let d = self.dest(part, if width == 2 { Ty::B16 } else { Ty::B32 })?;
            let exec = if ty.bytes() == 4 { lane1::<Half>() } else { lane1::<Part>() };
            self.emit(exec, Class::Move, d, &[s], bit);
        }
        Ok(())
    }

    fn add(&mut self, op: &mut Op<'t>, ty: Ty) -> Lowered<()> {
        self.arity(op, 3)?;
        let subtract = op.name.starts_with("sub");
        let carry_out = op.take("cc");
        if carry_out || op.name.ends_with('c') {
            let imm = i64::from(subtract)
                | i64::from(op.name.ends_with('c')) << 1
                | i64::from(carry_out) << 2
                | i64::from(ty.bytes() == 8) << 3;
            return self.simple(op, extended, Class::Integer, ty, imm);
        }
        let exec = match (op.take("sat"), subtract) {
            _ if matches!(ty, Ty::U16x2 | Ty::S16x2) && !subtract => lane2::<Add16x2>(),
            (false, false) => by_int!(lane2, Add, ty),
            (false, true) => by_int!(lane2, Sub, ty),
            (true, false) => by_int!(lane2, AddSat, ty),
            (true, true) => by_int!(lane2, SubSat, ty),
        };
        self.simple(op, exec, Class::Integer, ty, 0)
    }

    fn mul(&mut self, op: &mut Op<'t>, ty: Ty) -> Lowered<()> {
        let add = op.name != "mul";
        self.arity(op, if add { 4 } else { 3 })?;
        let (wide, hi) = (op.take("wide"), op.take("hi"));
        let lo = op.take("lo");
        let carry_out = op.take("cc");
        if carry_out || op.name == "madc" {
            if ty.bytes() != 4 || wide {
                return Err("only the 32-bit form is supported".to_owned());
            }
            let imm = i64::from(hi)
                | i64::from(op.name == "madc") << 1
                | i64::from(carry_out) << 2
                | i64::from(ty.signed()) << 3;
            return self.simple(op, extended_mad, Class::Integer, ty, imm);
        }
        if wide {
            let (double, exec) = match (ty, add) {
                (Ty::U16, false) => (Ty::U32, lane2::<WideU16>()),
                (Ty::S16, false) => (Ty::S32, lane2::<WideS16>()),
                (Ty::U32, false) => (Ty::U64, lane2::<WideU32>()),
                (Ty::S32, false) => (Ty::S64, lane2::<WideS32>()),
                (Ty::U16, true) => (Ty::U32, lane3::<WideU16>()),
                (Ty::S16, true) => (Ty::S32, lane3::<WideS16>()),
                (Ty::U32, true) => (Ty::U64, lane3::<WideU32>()),
                (Ty::S32, true) => (Ty::S64, lane3::<WideS32>()),
                _ => return Err(format!("no widening product of {ty:?}")),
            };
            let types = if add { vec![ty, ty, double] } else { vec![ty, ty] };
            return self.typed(op, exec, Class::Integer, (double, &types), 0);
        }
        if !hi && !lo {
            return Err("expected .lo, .hi or .wide".to_owned());
        }
        let exec = match (add, hi) {
            (false, false) => by_int!(lane2, Mul, ty),
            (false, true) => by_int!(lane2, MulHi, ty),
            (true, false) => by_int!(lane3, Mad, ty),
            (true, true) => by_int!(lane3, MadHi, ty),
        };
        self.simple(op, exec, Class::Integer, ty, 0)
    }

    fn bfi(&mut self, op: &mut Op<'t>, ty: Ty) -> Lowered<()> {
        self.arity(op, 5)?;
        let (a, b) = (self.source(&op.args[1], ty)?, self.source(&op.args[2], ty)?);
        let (at, len) = (self.source(&op.args[3], Ty::U32)?, self.source(&op.args[4], Ty::U32)?);
        let field = match (&op.args[3], &op.args[4]) {
            (Operand::Int(at), Operand::Int(len)) => self.word((at & 255 | (len & 255) << 8) as u32),
            _ => {
                // Position and length into one word: the low byte of each, then masked to two bytes.
                let byte = self.word(0x40);
                let field = self.temporary(RegClass::Word);
                self.emit(lane3::<Prmt>(), Class::Internal, field, &[at, len, byte], 0);
                let low = self.word(0xffff);
                self.emit(lane2::<And<u32>>(), Class::Internal, field, &[Src::Reg(field), low], 0);
                Src::Reg(field)
            }
        };
        let exec = if ty.bytes() == 8 { lane3::<Bfi64>() } else { lane3::<Bfi32>() };
        let d = self.dest(&op.args[0], ty)?;
        self.emit(exec, Class::Integer, d, &[a, b, field], 0);
        Ok(())
    }

    /// `setp` and `set`.
    fn compare(&mut self, op: &mut Op<'t>) -> Lowered<()> {
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

/// The comparison that `word` comes down to, whether its operands are swapped and its result negated. Float comparisons ending in u
/// are true for NaN: the negation of the opposite ordered one.
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
