//! Reads of registers that the path taken has not written.
//!
//! Compilers compute with undefined values where the result is thrown away (`inside ? f(x) : 0`), so reading
//! one is no mistake by itself. As memcheck does, definedness is carried along: each register and predicate
//! that may depend on an unwritten one gets a lane mask, lane-wise instructions intersect the masks of their
//! sources, a selection takes the mask of the side it takes, and only an instruction with an effect (address,
//! stored value, branch, barrier) checks it. Shuffles, votes and matrix products forget it. A kernel in which
//! no path leaves a register unwritten gets none of this.

use std::collections::BTreeMap;

use super::cfg::Graph;
use super::registers::{dests, sources, undefined};
use super::{Control, Lower, Lowered, Pre, Predicates};
use crate::exec::special::{check_defined, defined, derive_defined, select_defined};
use crate::ir::{Class, Exec};
use crate::text::ast::{Class as RegClass, Reg};

/// Registers and predicates that may depend on unwritten ones, with the predicate that holds their mask.
#[derive(Default)]
struct Tainted {
    regs: BTreeMap<Reg, u16>,
    predicates: BTreeMap<u16, u16>,
}

/// Lane-wise and without effect.
fn pure(ins: &Pre) -> bool {
    let class = matches!(
        ins.class,
        Class::Integer
            | Class::Float32
            | Class::Float16
            | Class::Float64
            | Class::Special
            | Class::Convert
            | Class::Move
            | Class::Predicate
            | Class::Internal
    );
    class && ins.control == Control::Next
}

/// What an instruction does to predicates: those it reads as values, and those it writes.
fn predicate_roles(ins: &Pre) -> (Vec<u16>, Vec<u16>) {
    let p = ins.p;
    let (reads, writes) = match ins.predicates {
        Predicates::None => (vec![], vec![]),
        Predicates::Compare => (vec![p[2]], vec![p[0], p[1]]),
        Predicates::Logic => (vec![p[1], p[2]], vec![p[0]]),
        Predicates::Select => (vec![p[0]], vec![]),
        Predicates::Result(at) => (vec![], vec![p[at]]),
    };
    let real = |list: Vec<u16>| list.into_iter().filter(|p| *p != 0).collect();
    (real(reads), real(writes))
}

impl Tainted {
    /// Masks of an instruction's tainted sources.
    fn masks(&self, ins: &Pre) -> Vec<u16> {
        let regs = sources(ins).filter_map(|r| self.regs.get(&r));
        let (reads, _) = predicate_roles(ins);
        regs.copied().chain(reads.iter().filter_map(|p| self.predicates.get(p)).copied()).collect()
    }

    /// Spreads from the registers that are live at the entry; masks are numbered later.
    fn spread(&mut self, pre: &[Pre]) {
        let mut changed = true;
        while changed {
            changed = false;
            for ins in pre.iter().filter(|i| pure(i)) {
                if self.masks(ins).is_empty() {
                    continue;
                }
                for r in dests(ins) {
                    changed |= self.regs.insert(r, 0).is_none();
                }
                for p in predicate_roles(ins).1 {
                    changed |= self.predicates.insert(p, 0).is_none();
                }
            }
        }
    }

    fn guard(&self, ins: &Pre) -> Option<u16> {
        self.predicates.get(&((ins.guard >> 1) as u16)).copied()
    }

    /// Whether an instruction with an effect could use an undefined value.
    fn matters(&self, ins: &Pre) -> bool {
        self.guard(ins).is_some() || effect(ins) && !self.masks(ins).is_empty()
    }
}

fn effect(ins: &Pre) -> bool {
    !pure(ins) && !matches!(ins.class, Class::Exchange | Class::Mma)
}

/// Adds the masks' bookkeeping to an entry's instructions; returns where each statement starts then.
pub(super) fn instrument(
    lower: &mut Lower,
    starts: Vec<usize>,
    graph: &Graph,
    names: &mut Vec<String>,
) -> Lowered<Vec<usize>> {
    let mut tainted = Tainted::default();
    for reg in undefined(&lower.pre, graph, lower.regs.len()) {
        tainted.regs.insert(reg, 0);
    }
    if tainted.regs.is_empty() {
        return Ok(starts);
    }
    tainted.spread(&lower.pre);
    if !lower.pre.iter().any(|ins| tainted.matters(ins)) {
        return Ok(starts);
    }
    for mask in tainted.regs.values_mut().chain(tainted.predicates.values_mut()) {
        *mask = lower.new_predicate()?;
    }
    // Where to find each mask's name.
    let mut named = BTreeMap::new();
    for (reg, mask) in &tainted.regs {
        named.insert(*mask, names.len() as i64);
        names.push(
            lower.func.reg_names.get(*reg as usize).cloned().unwrap_or_else(|| "a temporary".to_owned()),
        );
    }
    for (number, mask) in &tainted.predicates {
        named.insert(*mask, names.len() as i64);
        let reg = (0..lower.regs.len())
            .find(|r| lower.regs[*r] == RegClass::Pred && lower.predicates[*r] == *number);
        names.push(
            reg.and_then(|r| lower.func.reg_names.get(r))
                .cloned()
                .unwrap_or_else(|| "a temporary".to_owned()),
        );
    }
    let old = std::mem::take(&mut lower.pre);
    let mut places = Vec::with_capacity(old.len() + 1);
    for ins in old {
        places.push(lower.pre.len());
        track(lower, &tainted, &named, &ins);
        lower.pre.push(ins);
    }
    places.push(lower.pre.len());
    Ok(starts.into_iter().map(|at| places[at]).collect())
}

/// Emits what goes before `ins`: checks of what it uses, then the masks of what it writes.
fn track(lower: &mut Lower, tainted: &Tainted, named: &BTreeMap<u16, i64>, ins: &Pre) {
    // Entries' predicates are not renumbered (their frame is the first), so masks may stand in operand lists.
    let mut extra = |exec: Exec, p: [u16; 3], imm: i64, raw: Vec<u32>, guarded: bool| {
        let mut pre = lower.blank(exec, Class::Internal);
        (pre.stmt, pre.imm, pre.p, pre.raw) = (ins.stmt, imm, p, raw);
        pre.guard = if guarded { ins.guard } else { 0 };
        lower.pre.push(pre);
    };
    if let Some(mask) = tainted.guard(ins) {
        extra(check_defined, [mask, 0, 0], named[&mask], Vec::new(), false);
    }
    let masks = tainted.masks(ins);
    if effect(ins) {
        for mask in &masks {
            extra(check_defined, [*mask, 0, 0], named[mask], Vec::new(), true);
        }
    }
    let regs = dests(ins).filter_map(|r| tainted.regs.get(&r).copied());
    let predicates = predicate_roles(ins).1.into_iter().filter_map(|p| tainted.predicates.get(&p).copied());
    let targets: Vec<u16> = regs.chain(predicates).collect();
    for target in targets {
        if masks.is_empty() || !pure(ins) {
            extra(defined, [target, 0, 0], 0, Vec::new(), true);
        } else if ins.predicates == Predicates::Select {
            let side = |at: usize| match ins.s[at] {
                Some(super::Src::Reg(r)) => tainted.regs.get(&r).copied().unwrap_or(0),
                _ => 0,
            };
            let chooser = tainted.predicates.get(&ins.p[0]).copied().unwrap_or(0);
            let raw = [ins.p[0], chooser, side(0), side(1)].map(u32::from).to_vec();
            extra(select_defined, [target, 0, 0], ins.imm & 1, raw, true);
        } else {
            let mut raw = vec![masks.len() as u32];
            raw.extend(masks.iter().map(|m| u32::from(*m)));
            extra(derive_defined, [target, 0, 0], 0, raw, true);
        }
    }
}
