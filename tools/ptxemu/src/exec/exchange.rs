//! Between lanes: shuffle, vote, match, reduce, elect.

use super::barrier::check_members;
use super::lanes::{multiversion, set_predicates, store};
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins};

/// The member mask, which all executing lanes must give alike, checked.
unsafe fn members(m: &Machine, slot: u32, what: &str) -> Result<u32, Trouble> {
    // SAFETY: the caller passes a slot of the program.
    let masks = unsafe { &*m.slot::<u32>(slot) };
    let first = m.mask.trailing_zeros() & 31;
    let wanted = masks[first as usize];
    // Lanes may sit in different groups; each then names its own, and the groups are served one by one.
    if let Some(l) = (0..32).find(|l| m.mask >> l & 1 != 0 && masks[*l as usize] != wanted) {
        for l in (0..32_u32).filter(|l| m.mask >> l & 1 != 0) {
            let own = masks[l as usize];
            if own >> l & 1 == 0 || own & !m.mask & !m.exited != 0 {
                let message =
                    format!("{what} with mask {own:#010x}, while the lanes {:#010x} execute", m.mask);
                return Err(Trouble::new(FaultKind::InvalidMask, Some(l), message));
            }
        }
        let _ = l;
        return Ok(m.mask);
    }
    check_members(m, wanted, what)?;
    Ok(wanted)
}

/// `shfl.sync`: `a` value, `b` lane or delta, `c` clamp and segment; list: member mask; `imm` 0 up, 1 down, 2
/// bfly, 3 idx; `p[0]` the in-range predicate.
#[inline(always)]
unsafe fn shuffle_body(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        if let Err(trouble) = members(m, m.env.program.lists[i.x as usize], "shfl.sync") {
            return m.stop(trouble);
        }
        let (a, b, c) = (&*m.slot::<u32>(i.a), &*m.slot::<u32>(i.b), &*m.slot::<u32>(i.c));
        let (mut out, mut sources, mut inside) = ([0; 32], [0_u32; 32], 0);
        for l in 0..32_u32 {
            let (by, clamp, segment) = (b[l as usize] & 31, c[l as usize] & 31, c[l as usize] >> 8 & 31);
            let last = l & segment | clamp & !segment;
            let (source, ok) = match i.imm {
                0 => (l.wrapping_sub(by), l as i32 - by as i32 >= last as i32),
                1 => (l + by, l + by <= last),
                2 => (l ^ by, l ^ by <= last),
                _ => {
                    let source = l & segment | by & !segment;
                    (source, source <= last)
                }
            };
            let source = if ok { source & 31 } else { l };
            sources[l as usize] = source;
            inside |= u32::from(ok) << l;
            out[l as usize] = a[source as usize];
        }
        if m.mask != u32::MAX {
            for l in (0..32).filter(|l| m.mask >> l & 1 != 0) {
                let source = sources[l];
                if m.mask >> source & 1 == 0 {
                    let message = format!("shfl.sync reads from lane {source}, which does not execute it");
                    return m.fail(FaultKind::InvalidMask, Some(l as u32), message);
                }
            }
        }
        store(m, i.d, &out);
        m.set_predicate(i.p[0], inside);
    }
    Flow::Next
}
multiversion!(/// The driver of `shfl.sync`.
    shuffle, shuffle_body);

/// `vote.sync`: `p[1]` source predicate, negated by bit 4 of `imm`; `a` mask; `imm` low bits 0 all, 1 any, 2
/// uni, 3 ballot.
pub(crate) unsafe fn vote(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let wanted = match members(m, i.a, "vote.sync") {
            Ok(wanted) => wanted,
            Err(trouble) => return m.stop(trouble),
        };
        let p = m.predicate(i.p[1]) ^ if i.imm & 16 != 0 { u32::MAX } else { 0 };
        let (voters, yes) = (wanted & m.mask, p & wanted & m.mask);
        let result = match i.imm & 3 {
            0 => yes == voters,
            1 => yes != 0,
            2 => yes == 0 || yes == voters,
            _ => {
                store(m, i.d, &[yes; 32]);
                return Flow::Next;
            }
        };
        m.set_predicate(i.p[0], if result { u32::MAX } else { 0 });
    }
    Flow::Next
}

/// `activemask`.
pub(crate) unsafe fn active_mask(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe { store(m, i.d, &[m.active; 32]) };
    Flow::Next
}

/// `match.sync`: `a` value (64 bits with bit 1 of `imm`), `b` mask; bit 0 of `imm`: `all`, whose predicate is
/// `p[0]`.
pub(crate) unsafe fn match_sync(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let wanted = match members(m, i.b, "match.sync") {
            Ok(wanted) => wanted & m.mask,
            Err(trouble) => return m.stop(trouble),
        };
        let value = |l: usize| {
            if i.imm & 2 != 0 { (*m.slot::<u64>(i.a))[l] } else { u64::from((*m.slot::<u32>(i.a))[l]) }
        };
        let mut out = [0; 32];
        for l in 0..32 {
            for k in (0..32).filter(|k| wanted >> k & 1 != 0) {
                out[l] |= u32::from(value(k) == value(l)) << k;
            }
        }
        if i.imm & 1 != 0 {
            let first = wanted.trailing_zeros() as usize & 31;
            let all = out[first] == wanted;
            store(m, i.d, &[if all { wanted } else { 0 }; 32]);
            m.set_predicate(i.p[0], if all { u32::MAX } else { 0 });
        } else {
            store(m, i.d, &out);
        }
    }
    Flow::Next
}

/// `redux.sync`: `a` value, `b` mask; `imm` 0 add, 1 min, 2 max, 3 and, 4 or, 5 xor; bit 4 signed.
pub(crate) unsafe fn redux(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let wanted = match members(m, i.b, "redux.sync") {
            Ok(wanted) => wanted & m.mask,
            Err(trouble) => return m.stop(trouble),
        };
        let values = &*m.slot::<u32>(i.a);
        let signed = i.imm & 16 != 0;
        let combine = |a: u32, b: u32| match i.imm & 15 {
            0 => a.wrapping_add(b),
            1 if signed => (a as i32).min(b as i32) as u32,
            1 => a.min(b),
            2 if signed => (a as i32).max(b as i32) as u32,
            2 => a.max(b),
            3 => a & b,
            4 => a | b,
            _ => a ^ b,
        };
        let lanes = (0..32).filter(|l| wanted >> l & 1 != 0).map(|l| values[l]);
        let result = lanes.reduce(combine).unwrap_or(0);
        store(m, i.d, &[result; 32]);
    }
    Flow::Next
}

/// `elect.sync`: `a` mask; `d` the leader's lane, `p[0]` true in it.
pub(crate) unsafe fn elect(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let wanted = match members(m, i.a, "elect.sync") {
            Ok(wanted) => wanted & m.mask,
            Err(trouble) => return m.stop(trouble),
        };
        let leader = wanted.trailing_zeros() & 31;
        store(m, i.d, &[leader; 32]);
        m.set_predicate(i.p[0], 1 << leader);
    }
    Flow::Next
}

/// `isspacep`: `a` a 64-bit generic address; `imm` the window's number, or -1 for global.
pub(crate) unsafe fn is_space(m: &mut Machine, i: &Ins) -> Flow {
    use super::memory_ops::{SHARED_WINDOW, WINDOW};
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let a = &*m.slot::<u64>(i.a);
        let mut bits = 0;
        for l in 0..32 {
            let window = a[l].checked_sub(SHARED_WINDOW).map_or(-1, |o| (o / WINDOW).min(3) as i64);
            bits |= u32::from(window == i.imm) << l;
        }
        let plain = Ins { imm: 0, ..*i };
        set_predicates(m, &plain, bits);
    }
    Flow::Next
}
