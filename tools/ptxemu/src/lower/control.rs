//! Branches, calls, barriers, votes and shuffles; instructions without effect.

use super::layout::{builtin, callee};
use super::{Control, Lower, Lowered, Op, Predicates};
use crate::exec::{barrier, control as run, exchange};
use crate::ir::Class;
use crate::text::ast::{Operand, Stmt, Symbol, Ty};

impl<'t> Lower<'t> {
    /// Control flow, synchronisation and exchange; `false` if the instruction is none of these.
    pub fn control(&mut self, op: &mut Op<'t>, stmt: &'t Stmt) -> Lowered<bool> {
        match op.name {
            "bra" => {
                op.take("uni");
                let name = self.symbol_name(op, 0)?;
                let target = self.func.label(stmt.scope, name).ok_or_else(|| format!("no label `{name}`"))?;
                let mut pre = self.blank(run::branch, Class::Control);
                pre.control = Control::Branch(target);
                self.pre.push(pre);
            }
            "brx" => {
                if !op.take("idx") {
                    return Err("only brx.idx is supported".to_owned());
                }
                op.take("uni");
                let name = self.symbol_name(op, 1)?;
                let table =
                    self.func.table(stmt.scope, name).ok_or_else(|| format!("no jump table `{name}`"))?;
                let table: Option<Vec<usize>> = table.into_iter().collect();
                let mut pre = self.blank(run::branch_table, Class::Control);
                pre.control = Control::Table(table.ok_or("the jump table names a missing label")?);
                pre.s[0] = Some(self.source(self.arg(op, 0)?, Ty::U32)?);
                self.pre.push(pre);
            }
            "exit" | "ret" => {
                op.take("uni");
                let leave = op.name == "exit" || self.func.entry;
                let mut pre = self.blank(if leave { run::exit } else { run::ret }, Class::Control);
                pre.control = Control::End;
                self.pre.push(pre);
            }
            "trap" | "brkpt" => {
                let mut pre = self.blank(run::trap, Class::Control);
                pre.control = Control::End;
                self.pre.push(pre);
            }
            "call" => self.call(op)?,
            "bar" | "barrier" => self.barrier(op)?,
            "membar" | "fence" => {
                for word in [
                    "gl", "cta", "sys", "gpu", "cluster", "sc", "acq_rel", "acquire", "release", "proxy",
                    "async",
                ] {
                    op.take(word);
                }
                op.pick(|m| (m.starts_with("sync_restrict") || m.contains("::")).then_some(()));
                let pre = self.blank(barrier::fence, Class::Barrier);
                self.pre.push(pre);
            }
            "vote" => self.vote(op)?,
            "shfl" => self.shuffle(op)?,
            "activemask" => {
                let d = self.dest(self.arg(op, 0)?, Ty::B32)?;
                self.emit(exchange::active_mask, Class::Exchange, d, &[], 0);
            }
            "match" => self.match_sync(op)?,
            "redux" => self.redux(op)?,
            "elect" => {
                op.take("sync");
                self.arity(op, 2)?;
                let (d, p) = self.pair(op)?;
                let mask = self.source(&op.args[1], Ty::B32)?;
                let d = self.dest(d, Ty::B32)?;
                self.emit(exchange::elect, Class::Exchange, d, &[mask], 0);
                self.last().p[0] = p;
                self.last().predicates = Predicates::Result(0);
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" | "nanosleep" | "griddepcontrol"
            | "setmaxnreg" | "pmevent" => {
                op.mods.clear();
                let pre = self.blank(run::nothing, Class::Control);
                self.pre.push(pre);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The instruction emitted last.
    pub fn last(&mut self) -> &mut super::Pre {
        self.pre.last_mut().expect("an instruction was just emitted")
    }

    fn symbol_name<'o>(&self, op: &Op<'o>, at: usize) -> Lowered<&'o str> {
        match self.arg(op, at)? {
            Operand::Symbol(Symbol::Name(name), 0) => Ok(name),
            _ => Err("expected a label".to_owned()),
        }
    }

    /// `d|p` of the first operand; predicate 0 if there is none.
    pub fn pair<'o>(&mut self, op: &Op<'o>) -> Lowered<(&'o Operand, u16)> {
        match self.arg(op, 0)? {
            Operand::Pair(d, p) => Ok((d, self.predicate_dest(p)?)),
            d => Ok((d, 0)),
        }
    }

    fn call(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        op.take("uni");
        let name = callee(op.args).ok_or("indirect calls are not supported")?;
        if builtin(name) {
            let failed = name.contains("assert");
            let mut pre = self.blank(if failed { run::trap } else { run::nothing }, Class::Control);
            pre.imm = 1;
            self.pre.push(pre);
            return Ok(());
        }
        let number = self.layout.number(self.tree, name).ok_or_else(|| format!("no function `{name}`"))?;
        let (params, returns) = self.layout.formals(self.tree, number);
        let mut lists =
            op.args.iter().filter_map(|a| if let Operand::List(items) = a { Some(items) } else { None });
        let first_is_list = matches!(op.args.first(), Some(Operand::List(_)));
        let empty = Vec::new();
        let results = if first_is_list { lists.next().unwrap_or(&empty) } else { &empty };
        let arguments = lists.next().unwrap_or(&empty);
        if results.len() != returns.len() || arguments.len() != params.len() {
            return Err(format!(
                "`{name}` takes {} and returns {} parameters, the call has {} and {}",
                params.len(),
                returns.len(),
                arguments.len(),
                results.len()
            ));
        }
        let end = self.layout.local_bytes;
        let place = |operand: &Operand, size: u32| -> Lowered<u32> {
            match operand {
                Operand::Symbol(symbol, _) => match self.layout.place(self.tree, self.number, symbol)? {
                    super::layout::Place::Local(at)
                        if at.checked_add(size).is_some_and(|last| last <= end) =>
                    {
                        Ok(at)
                    }
                    _ => Err("call arguments must be .param variables of the parameters' size".to_owned()),
                },
                _ => Err("call arguments must be .param variables of the parameters' size".to_owned()),
            }
        };
        let mut copies = (Vec::new(), Vec::new());
        for (argument, (to, size)) in arguments.iter().zip(params) {
            copies.0.push((place(argument, size)?, to, size));
        }
        for (result, (from, size)) in results.iter().zip(returns) {
            copies.1.push((from, place(result, size)?, size));
        }
        let mut pre = self.blank(run::call, Class::Control);
        pre.control = Control::Call { callee: number, arguments: copies.0, results: copies.1 };
        self.pre.push(pre);
        Ok(())
    }

    fn barrier(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        op.take("cta");
        op.take("aligned");
        if op.take("warp") {
            op.take("sync");
            let mask = self.source(self.arg(op, 0)?, Ty::B32)?;
            let mut pre = self.blank(barrier::warp_sync, Class::Barrier);
            pre.s[0] = Some(mask);
            self.pre.push(pre);
            return Ok(());
        }
        let kind = op.pick(|m| ["sync", "arrive", "red"].iter().position(|k| *k == m));
        let kind = kind.ok_or("expected .sync, .arrive or .red")?;
        let mut pre = self.blank(barrier::bar, Class::Barrier);
        pre.imm = i64::from(kind == 1);
        let mut first = 0;
        let mut last = op.args.len();
        if kind == 2 {
            let red = op.pick(|m| ["popc", "and", "or"].iter().position(|k| *k == m));
            let red = red.ok_or("expected .popc, .and or .or")? as i64 + 1;
            pre.imm |= red << 4;
            if red == i64::from(barrier::RED_POPC) {
                pre.d = Some(self.dest(self.arg(op, 0)?, Ty::U32)?);
            } else {
                pre.p[1] = self.predicate_dest(self.arg(op, 0)?)?;
                pre.predicates = Predicates::Result(1);
            }
            op.types.clear();
            first = 1;
            last = last.checked_sub(1).ok_or("expected a predicate")?;
            let (p, negated) = self.predicate_source(self.arg(op, last)?)?;
            pre.p[0] = p;
            pre.imm |= i64::from(negated) << 6;
        }
        pre.s[0] = Some(self.source(self.arg(op, first)?, Ty::U32)?);
        pre.s[1] = Some(if last > first + 1 {
            self.source(self.arg(op, first + 1)?, Ty::U32)?
        } else {
            pre.imm |= 2;
            self.word(0)
        });
        self.pre.push(pre);
        Ok(())
    }

    fn vote(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        if !op.take("sync") {
            return Err("only vote.sync is supported".to_owned());
        }
        self.arity(op, 3)?;
        let kind = op.pick(|m| ["all", "any", "uni", "ballot"].iter().position(|k| *k == m));
        let kind = kind.ok_or("expected .all, .any, .uni or .ballot")?;
        let (p, negated) = self.predicate_source(&op.args[1])?;
        let mask = self.source(&op.args[2], Ty::B32)?;
        let mut pre = self.blank(exchange::vote, Class::Exchange);
        if kind == 3 {
            pre.d = Some(self.dest(&op.args[0], Ty::B32)?);
        } else {
            pre.p[0] = self.predicate_dest(&op.args[0])?;
            pre.predicates = Predicates::Result(0);
        }
        pre.p[1] = p;
        pre.imm = kind as i64 | i64::from(negated) << 4;
        pre.s[0] = Some(mask);
        self.pre.push(pre);
        Ok(())
    }

    fn shuffle(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        if !op.take("sync") {
            return Err("only shfl.sync is supported".to_owned());
        }
        self.arity(op, 5)?;
        let kind = op.pick(|m| ["up", "down", "bfly", "idx"].iter().position(|k| *k == m));
        let kind = kind.ok_or("expected .up, .down, .bfly or .idx")?;
        let (d, p) = self.pair(op)?;
        let mut pre = self.blank(exchange::shuffle(), Class::Exchange);
        pre.d = Some(self.dest(d, Ty::B32)?);
        pre.p[0] = p;
        pre.predicates = Predicates::Result(0);
        for at in 0..3 {
            pre.s[at] = Some(self.source(&op.args[at + 1], Ty::B32)?);
        }
        let mask = self.source(&op.args[4], Ty::B32)?;
        pre.list_s = vec![mask];
        pre.imm = kind as i64;
        self.pre.push(pre);
        Ok(())
    }

    fn match_sync(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        op.take("sync");
        self.arity(op, 3)?;
        let all = op.take("all");
        if !all && !op.take("any") {
            return Err("expected .any or .all".to_owned());
        }
        let ty = *op.types.first().ok_or("expected a type")?;
        let (d, p) = self.pair(op)?;
        let (value, mask) = (self.source(&op.args[1], ty)?, self.source(&op.args[2], Ty::B32)?);
        let d = self.dest(d, Ty::B32)?;
        let imm = i64::from(all) | i64::from(ty.bytes() == 8) << 1;
        self.emit(exchange::match_sync, Class::Exchange, d, &[value, mask], imm);
        self.last().p[0] = p;
        self.last().predicates = Predicates::Result(0);
        Ok(())
    }

    fn redux(&mut self, op: &mut Op<'t>) -> Lowered<()> {
        op.take("sync");
        self.arity(op, 3)?;
        let kind = op.pick(|m| ["add", "min", "max", "and", "or", "xor"].iter().position(|k| *k == m));
        let kind = kind.ok_or("expected an operation")?;
        let ty = *op.types.first().ok_or("expected a type")?;
        if ty.float() {
            return Err("redux.sync on floats is not supported".to_owned());
        }
        let (value, mask) = (self.source(&op.args[1], ty)?, self.source(&op.args[2], Ty::B32)?);
        let d = self.dest(&op.args[0], ty)?;
        let imm = kind as i64 | i64::from(ty.signed()) << 4;
        self.emit(exchange::redux, Class::Exchange, d, &[value, mask], imm);
        Ok(())
    }
}
