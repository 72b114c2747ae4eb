//! Loads, stores, atomics, address conversion.

use super::{Lower, Lowered, Op, Src, class_for};
use crate::exec::atomic::{Atomic, atomic, code};
use crate::exec::exchange::is_space;
use crate::exec::int::AddImm;
use crate::exec::lanes::lane1;
use crate::exec::memory_ops::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, load, load_param, store_to};
use crate::ir::{Class, Mem, MemSpace, Strength};
use crate::text::ast::{Base, Class as RegClass, Operand, Reg, Ty};

fn space(word: &str) -> Option<MemSpace> {
    Some(match word {
        "global" => MemSpace::Global,
        "const" => MemSpace::Const,
        "shared" | "shared::cta" | "shared::cluster" => MemSpace::Shared,
        "local" => MemSpace::Local,
        "param" | "param::entry" | "param::func" => MemSpace::Param,
        _ => return None,
    })
}

fn strength(word: &str) -> Option<Strength> {
    Some(match word {
        "weak" => Strength::Weak,
        "volatile" | "relaxed" | "mmio" => Strength::Relaxed,
        "acquire" => Strength::Acquire,
        "release" => Strength::Release,
        "acq_rel" => Strength::Both,
        _ => return None,
    })
}

/// Takes cache hints and scopes, which change nothing here.
pub(super) fn hints(op: &mut Op) {
    let hint = |m: &str| {
        let word = matches!(
            m,
            "ca" | "cg"
                | "cs"
                | "lu"
                | "cv"
                | "wb"
                | "wt"
                | "nc"
                | "cta"
                | "cluster"
                | "gpu"
                | "sys"
                | "gl"
                | "noftz"
        );
        (word || m.starts_with("L1::") || m.starts_with("L2::")).then_some(())
    };
    while op.pick(hint).is_some() {}
}

impl<'t> Lower<'t> {
    /// Memory instructions; `false` if the instruction is none.
    pub fn memory(&mut self, op: &mut Op<'t>) -> Lowered<bool> {
        match op.name {
            "ld" | "ldu" => self.load(op)?,
            "st" => self.store(op)?,
            "atom" | "red" => self.atomic(op)?,
            "cvta" => self.convert_address(op)?,
            "isspacep" => {
                let window = match op.pick(space) {
                    Some(MemSpace::Shared) => 0,
                    Some(MemSpace::Local) => 1,
                    Some(MemSpace::Param) => 2,
                    Some(MemSpace::Global) => -1,
                    _ => return Err("expected a state space".to_owned()),
                };
                self.arity(op, 2)?;
                let address = self.source(&op.args[1], Ty::U64)?;
                let p = self.predicate_dest(&op.args[0])?;
                let mut pre = self.blank(is_space, Class::Predicate);
                pre.s[0] = Some(address);
                (pre.imm, pre.p[0]) = (window, p);
                pre.predicates = super::Predicates::Compare;
                self.pre.push(pre);
            }
            "createpolicy" => {
                op.mods.clear();
                let d = self.dest(self.arg(op, 0)?, Ty::B64)?;
                let zero = self.constant(crate::ir::Const::Long(0));
                self.emit(lane1::<crate::exec::int::Copy64>(), Class::Move, d, &[zero], 0);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Number for a new access-pattern cache.
    pub fn new_plan(&mut self) -> u32 {
        *self.plans += 1;
        *self.plans - 1
    }

    /// Adds a memory shape.
    pub fn new_mem(&mut self, mem: Mem) -> u32 {
        self.mems.push(mem);
        (self.mems.len() - 1) as u32
    }

    /// The shape of an access to one element of type `ty`, unsigned and in a 32-bit register, with a cache of
    /// its own.
    fn shape(&mut self, (space, strength): (MemSpace, Strength), ty: Ty, long_address: bool) -> Mem {
        let plan = self.new_plan();
        Mem {
            space,
            element: ty.bytes(),
            count: 1,
            strength,
            signed: false,
            long_address,
            long_regs: 0,
            plan,
        }
    }

    /// Vector count modifier.
    fn vector_count(op: &mut Op) -> u32 {
        op.pick(|m| match m {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        })
        .unwrap_or(1)
    }

    /// Space and strength; parameters of functions lie in local memory.
    fn target(&mut self, op: &mut Op, address: &Operand) -> Lowered<(MemSpace, Strength)> {
        let strength = op.pick(strength).unwrap_or(Strength::Weak);
        let mut place = op.pick(space).unwrap_or(MemSpace::Generic);
        if place == MemSpace::Param {
            let local = match address {
                Operand::Address(Base::Symbol(symbol), _) => matches!(
                    self.layout.place(self.tree, self.number, symbol)?,
                    super::layout::Place::Local(_)
                ),
                _ => !self.func.entry,
            };
            if local {
                place = MemSpace::Local;
            }
        }
        Ok((place, strength))
    }

    /// The registers of a load: of the type's class, or wider.
    fn load_register(&mut self, operand: &Operand, ty: Ty) -> Lowered<Reg> {
        match operand {
            Operand::Reg(reg) => match self.regs[*reg as usize] {
                RegClass::Pred => Err("a predicate cannot be loaded".to_owned()),
                RegClass::Word if ty.bytes() == 8 => Err("a 64-bit load into a 32-bit register".to_owned()),
                _ => Ok(*reg),
            },
            Operand::Sink => Ok(self.temporary(class_for(ty))),
            _ => Err("expected a register".to_owned()),
        }
    }

    fn class_of(&self, space: MemSpace, load: bool) -> Class {
        match (space, load) {
            (MemSpace::Shared, true) => Class::SharedLoad,
            (MemSpace::Shared, false) => Class::SharedStore,
            (MemSpace::Local, _) => Class::LocalMemory,
            (MemSpace::Param | MemSpace::Const, _) => Class::Constant,
            (_, true) => Class::GlobalLoad,
            (_, false) => Class::GlobalStore,
        }
    }

    fn items(operand: &Operand, count: u32) -> Lowered<Vec<Operand>> {
        let items = match operand {
            Operand::Vector(items) => items.clone(),
            other => vec![other.clone()],
        };
        if items.len() == count as usize { Ok(items) } else { Err(format!("expected {count} registers")) }
    }

    fn load(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        hints(op);
        let address = self.arg(op, 1)?.clone();
        let (space, strength) = self.target(op, &address)?;
        let count = Self::vector_count(op);
        let ty = *op.types.first().ok_or("expected a type")?;
        if ty.bytes() == 0 || ty.bytes() > 8 {
            return Err(format!("loads of type {ty:?} are not supported"));
        }
        let mut list = Vec::new();
        let mut long_regs = 0;
        for (at, item) in Self::items(self.arg(op, 0)?, count)?.iter().enumerate() {
            let reg = self.load_register(item, ty)?;
            long_regs |= u32::from(self.regs[reg as usize] == RegClass::Long) << at;
            list.push(reg);
        }
        if space == MemSpace::Param
            && let Operand::Address(Base::Symbol(symbol), offset) = &address
            && let super::layout::Place::Param(at) = self.layout.place(self.tree, self.number, symbol)?
        {
            let params = self.layout.formals(self.tree, self.number).0;
            let end = params.iter().map(|(at, size)| i64::from(at + size)).max().unwrap_or(0);
            for (e, reg) in list.into_iter().enumerate() {
                let from = i64::from(at) + offset + e as i64 * i64::from(ty.bytes());
                if from < 0 || from + i64::from(ty.bytes()) > end {
                    return Err(format!(
                        "parameter offset {from} lies outside the {end} bytes of parameters"
                    ));
                }
                let mut pre = self.blank(load_param, Class::Constant);
                pre.d = Some(reg);
                pre.imm = from;
                let flags = u32::from(ty.signed()) | (long_regs >> e & 1) << 1;
                // Size and flags travel in the list.
                pre.raw = vec![ty.bytes(), flags];
                self.pre.push(pre);
            }
            return Ok(());
        }
        let (base, offset, long_address) = self.address(&address)?;
        let shape = self.shape((space, strength), ty, long_address);
        let y = self.new_mem(Mem { count, signed: ty.signed(), long_regs, ..shape });
        let mut pre = self.blank(load(), self.class_of(space, true));
        pre.s[0] = Some(base);
        (pre.imm, pre.y, pre.list_d) = (offset, y, list);
        self.pre.push(pre);
        Ok(())
    }

    fn store(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        hints(op);
        let address = self.arg(op, 0)?.clone();
        let (space, strength) = self.target(op, &address)?;
        let count = Self::vector_count(op);
        let ty = *op.types.first().ok_or("expected a type")?;
        if ty.bytes() == 0 || ty.bytes() > 8 {
            return Err(format!("stores of type {ty:?} are not supported"));
        }
        let mut list = Vec::new();
        let mut long_regs = 0;
        for (at, item) in Self::items(self.arg(op, 1)?, count)?.iter().enumerate() {
            let (source, long) = match item {
                Operand::Reg(reg) if self.regs[*reg as usize] == RegClass::Long => (Src::Reg(*reg), true),
                item => (self.source(item, ty)?, ty.bytes() == 8),
            };
            long_regs |= u32::from(long) << at;
            list.push(source);
        }
        let (base, offset, long_address) = self.address(&address)?;
        let shape = self.shape((space, strength), ty, long_address);
        let y = self.new_mem(Mem { count, long_regs, ..shape });
        let mut pre = self.blank(store_to(), self.class_of(space, false));
        pre.s[0] = Some(base);
        (pre.imm, pre.y, pre.list_s) = (offset, y, list);
        self.pre.push(pre);
        Ok(())
    }

    fn atomic(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        hints(op);
        let returns = op.name == "atom";
        let strength = op.pick(strength).unwrap_or(Strength::Relaxed);
        let space = op.pick(space).unwrap_or(MemSpace::Generic);
        let kind = op.pick(Atomic::parse).ok_or("expected an atomic operation")?;
        let ty = *op.types.first().ok_or("expected a type")?;
        let packed = code(kind, ty).ok_or_else(|| format!("atomics of type {ty:?} are not supported"))?;
        let at = usize::from(returns);
        let (base, offset, long_address) = self.address(self.arg(op, at)?)?;
        let b = self.source(self.arg(op, at + 1)?, ty)?;
        let c = if kind == Atomic::Cas { self.source(self.arg(op, at + 2)?, ty)? } else { b };
        let d = if returns { Some(self.dest(self.arg(op, 0)?, ty)?) } else { None };
        let shape = self.shape((space, strength), ty, long_address);
        let y = self.new_mem(shape);
        let mut pre = self.blank(atomic, Class::Atomic);
        (pre.d, pre.imm, pre.y) = (d, offset, y);
        pre.s[0] = Some(base);
        pre.raw = vec![packed, u32::from(returns)];
        pre.list_s = vec![b, c];
        self.pre.push(pre);
        Ok(())
    }

    fn convert_address(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        let back = op.take("to");
        let place = op.pick(space).ok_or("expected a state space")?;
        let window = match place {
            MemSpace::Shared => SHARED_WINDOW,
            MemSpace::Local => LOCAL_WINDOW,
            // Parameters of functions lie in local memory.
            MemSpace::Param if self.func.entry => PARAM_WINDOW,
            MemSpace::Param => LOCAL_WINDOW,
            _ => 0,
        };
        self.arity(op, 2)?;
        let a = self.source(&op.args[1], Ty::U64)?;
        let d = self.dest(&op.args[0], Ty::U64)?;
        let imm = if back { -(window as i64) } else { window as i64 };
        self.emit(lane1::<AddImm>(), Class::Integer, d, &[a], imm);
        Ok(())
    }
}
