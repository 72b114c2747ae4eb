//! Matrix instructions and asynchronous copies.

use super::memory::hints;
use super::{Lower, Lowered, Op, Src};
use crate::exec::{async_copy, matrix, mma};
use crate::ir::{Class, Mem, MemSpace, Strength};
use crate::text::ast::{Operand, Ty};

impl<'t> Lower<'t> {
    /// Matrix and asynchronous-copy instructions; `false` if the instruction is none.
    pub fn tensor(&mut self, op: &mut Op<'t>) -> Lowered<bool> {
        match op.name {
            "mma" => self.mma(op)?,
            "ldmatrix" | "stmatrix" => self.matrix(op)?,
            "movmatrix" => {
                for word in ["sync", "aligned", "m8n8", "trans"] {
                    op.take(word);
                }
                self.arity(op, 2)?;
                let a = self.source(&op.args[1], Ty::B32)?;
                let d = self.dest(&op.args[0], Ty::B32)?;
                self.emit(matrix::move_matrix, Class::Exchange, d, &[a], 0);
            }
            "cp" => self.async_copy(op)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn vector(&mut self, operand: &Operand, count: usize) -> Lowered<Vec<Operand>> {
        let items = match operand {
            Operand::Vector(items) => items.clone(),
            other => vec![other.clone()],
        };
        if items.len() == count {
            Ok(items)
        } else {
            Err(format!("expected {count} fragment registers, found {}", items.len()))
        }
    }

    fn mma(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        op.take("sync");
        op.take("aligned");
        if !op.take("row") || !op.take("col") {
            return Err("mma must be .row.col".to_owned());
        }
        self.arity(op, 4)?;
        let k = op.pick(|m| m.strip_prefix("m16n8k")?.parse::<u32>().ok());
        let k = k.ok_or("only m16n8 shapes of mma are supported")?;
        let [d, a, b, c] = op.types[..] else { return Err("expected four types".to_owned()) };
        let saturate = op.take("satfinite");
        // Element, whether K is the larger of its two shapes, registers of D.
        let (element, wide, accumulators, imm) = match (d, a, b, c, k) {
            (Ty::F32, Ty::F16, Ty::F16, Ty::F32, 16) => (mma::Element::F16, true, 4, 0),
            (Ty::F32, Ty::F16, Ty::F16, Ty::F32, 8) => (mma::Element::F16, false, 4, 0),
            (Ty::F16, Ty::F16, Ty::F16, Ty::F16, 16) => (mma::Element::F16, true, 2, 2),
            (Ty::F16, Ty::F16, Ty::F16, Ty::F16, 8) => (mma::Element::F16, false, 2, 2),
            (Ty::F32, Ty::Bf16, Ty::Bf16, Ty::F32, 16) => (mma::Element::Bf16, true, 4, 0),
            (Ty::F32, Ty::Bf16, Ty::Bf16, Ty::F32, 8) => (mma::Element::Bf16, false, 4, 0),
            (Ty::F32, Ty::Tf32, Ty::Tf32, Ty::F32, 8) => (mma::Element::Tf32, true, 4, 0),
            (Ty::F32, Ty::Tf32, Ty::Tf32, Ty::F32, 4) => (mma::Element::Tf32, false, 4, 0),
            (Ty::S32, Ty::S8 | Ty::U8, Ty::S8 | Ty::U8, Ty::S32, 16 | 32) => {
                let flags =
                    i64::from(a == Ty::S8) << 1 | i64::from(b == Ty::S8) << 2 | i64::from(saturate) << 3;
                (mma::Element::Int, k == 32, 4, flags)
            }
            _ => return Err(format!("mma.m16n8k{k} of these types is not supported")),
        };
        let blocks = 1 + usize::from(wide);
        let mut pre = self.blank(mma::product(element), Class::Mma);
        pre.early = true;
        pre.imm = imm | i64::from(wide);
        pre.macs = 16 * 8 * k;
        for item in self.vector(&op.args[0], accumulators)? {
            pre.list_d.push(self.dest(&item, Ty::B32)?);
        }
        let mut sources: Vec<Src> = Vec::new();
        for (at, count) in [(1, 2 * blocks), (2, blocks), (3, accumulators)] {
            for item in self.vector(&op.args[at], count)? {
                sources.push(self.source(&item, Ty::B32)?);
            }
        }
        pre.list_s = sources;
        self.pre.push(pre);
        Ok(())
    }

    fn matrix(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        op.take("sync");
        op.take("aligned");
        for word in ["shared", "shared::cta"] {
            op.take(word);
        }
        if !op.take("m8n8") || op.types != [Ty::B16] {
            return Err("only .m8n8 with .b16 is supported".to_owned());
        }
        self.arity(op, 2)?;
        let trans = op.take("trans");
        let count = op.pick(|m| match m {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let count = count.ok_or("expected .x1, .x2 or .x4")?;
        let load = op.name == "ldmatrix";
        let (registers, address) = if load { (&op.args[0], &op.args[1]) } else { (&op.args[1], &op.args[0]) };
        let (base, offset, long_address) = self.address(address)?;
        let plan = self.new_plan();
        let y = self.new_mem(Mem {
            space: MemSpace::Shared,
            element: 16,
            count,
            strength: Strength::Weak,
            signed: false,
            long_address,
            long_regs: 0,
            plan,
        });
        let (exec, class) = if load {
            (matrix::load_matrix(), Class::MatrixLoad)
        } else {
            (matrix::store_matrix(), Class::SharedStore)
        };
        let mut pre = self.blank(exec, class);
        pre.s[0] = Some(base);
        (pre.imm, pre.y, pre.p[0]) = (offset, y, u16::from(trans));
        for item in self.vector(registers, count as usize)? {
            if load {
                pre.list_d.push(self.dest(&item, Ty::B32)?);
            } else {
                pre.list_s.push(self.source(&item, Ty::B32)?);
            }
        }
        self.pre.push(pre);
        Ok(())
    }

    fn async_copy(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        if !op.take("async") {
            return Err("only cp.async is supported".to_owned());
        }
        if op.take("commit_group") {
            let pre = self.blank(async_copy::commit, Class::AsyncCopy);
            self.pre.push(pre);
            return Ok(());
        }
        if op.take("wait_all") {
            let mut pre = self.blank(async_copy::wait, Class::AsyncCopy);
            pre.imm = -1;
            self.pre.push(pre);
            return Ok(());
        }
        if op.take("wait_group") {
            let Operand::Int(groups) = self.arg(op, 0)? else {
                return Err("expected a number of groups".to_owned());
            };
            let mut pre = self.blank(async_copy::wait, Class::AsyncCopy);
            pre.imm = i64::try_from(*groups).map_err(|_| "too many groups")?;
            self.pre.push(pre);
            return Ok(());
        }
        let bypass = op.take("cg");
        hints(op);
        if !(op.take("shared") || op.take("shared::cta") || op.take("shared::cluster")) || !op.take("global")
        {
            return Err("only cp.async.{ca,cg}.shared.global is supported".to_owned());
        }
        let Operand::Int(size) = *self.arg(op, 2)? else {
            return Err("the copy's size must be a number".to_owned());
        };
        if !matches!(size, 4 | 8 | 16) || bypass && size != 16 {
            return Err(format!("cp.async copies 4, 8 or 16 bytes (.cg: 16), not {size}"));
        }
        let (to, to_offset, to_long) = self.address(&op.args[0])?;
        let (from, from_offset, from_long) = self.address(&op.args[1])?;
        let mem = |space, long_address, plan| Mem {
            space,
            element: size as u32,
            count: 1,
            strength: Strength::Weak,
            signed: false,
            long_address,
            long_regs: 0,
            plan,
        };
        let plans = [self.new_plan(), self.new_plan()];
        let y = self.new_mem(mem(MemSpace::Shared, to_long, plans[0]));
        self.new_mem(mem(MemSpace::Global, from_long, plans[1]));
        let mut pre = self.blank(async_copy::copy(), Class::AsyncCopy);
        // A fourth operand is a source size, a predicate to ignore the source, or a cache policy (64 bits).
        let mut bytes = self.word(size as u32);
        match op.args.get(3) {
            Some(Operand::Reg(reg)) if self.regs[*reg as usize] == crate::text::ast::Class::Word => {
                bytes = Src::Reg(*reg);
            }
            Some(Operand::Int(value)) => bytes = self.word(*value as u32),
            Some(predicate @ (Operand::Reg(_) | Operand::Not(_))) => {
                if let Ok((p, false)) = self.predicate_source(predicate) {
                    pre.p = [p, 1, 0];
                } else if matches!(predicate, Operand::Not(_)) {
                    return Err("a negated ignore-source predicate is not supported".to_owned());
                }
            }
            _ => {}
        }
        pre.s = [Some(to), Some(from), Some(bytes)];
        (pre.imm, pre.y) = (to_offset, y);
        pre.raw = vec![from_offset as u32, (from_offset >> 32) as u32, size as u32];
        self.pre.push(pre);
        Ok(())
    }
}
