//! Integer, bit, predicate, selection and move instructions.

use super::{Lower, Lowered, Op, Predicates, Src, class_for};
use crate::exec::int::*;
use crate::exec::lanes::{lane1, lane2, lane3};
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
pub(super) use by_int;

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
    pub fn select(&mut self, d: u32, ty: Ty, (a, b): (Src, Src), (p, negated): (u16, bool)) {
        let exec = if class_for(ty) == RegClass::Long { select64() } else { select32() };
        self.emit(exec, Class::Predicate, d, &[a, b], i64::from(negated));
        self.last().p[0] = p;
        self.last().predicates = Predicates::Select;
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
        pre.predicates = Predicates::Logic;
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
}
