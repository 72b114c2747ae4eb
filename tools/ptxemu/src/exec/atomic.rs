//! `atom` and `red`: read-modify-write, lane after lane.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::access::Access;
use super::lanes::store;
use super::memory_ops::Pointers;
use super::number::{F16, Float, bf16_to_f32, f32_to_bf16};
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins, Mem, MemSpace, Strength};
use crate::memory::{BASE, INITIALISED};
use crate::text::ast::Ty;

/// The operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

impl Atomic {
    const ALL: [Atomic; 10] = [
        Atomic::Add,
        Atomic::Min,
        Atomic::Max,
        Atomic::And,
        Atomic::Or,
        Atomic::Xor,
        Atomic::Exch,
        Atomic::Cas,
        Atomic::Inc,
        Atomic::Dec,
    ];

    pub fn parse(word: &str) -> Option<Atomic> {
        let at = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]
            .iter()
            .position(|w| *w == word)?;
        Some(Atomic::ALL[at])
    }
}

const TYPES: [Ty; 13] = [
    Ty::B32,
    Ty::B64,
    Ty::U32,
    Ty::S32,
    Ty::U64,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::F16,
    Ty::F16x2,
    Ty::Bf16,
    Ty::Bf16x2,
    Ty::B16,
];

/// Packs operation and type for the instruction's list; `None` for types atomics do not have.
pub(crate) fn code(op: Atomic, ty: Ty) -> Option<u32> {
    let ty = TYPES.iter().position(|t| *t == ty)?;
    Some(op as u32 | (ty as u32) << 8)
}

/// The new value.
fn apply(op: Atomic, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let halves = |f: &dyn Fn(u16, u16) -> u16| {
        let low = f(old as u16, b as u16);
        let high = f((old >> 16) as u16, (b >> 16) as u16);
        u64::from(low) | u64::from(high) << 16
    };
    let f16 = |x: u16, y: u16| match op {
        Atomic::Add => F16(x).add(F16(y)).0,
        Atomic::Min => {
            if F16(y).lt(F16(x)) {
                y
            } else {
                x
            }
        }
        _ => {
            if F16(x).lt(F16(y)) {
                y
            } else {
                x
            }
        }
    };
    let bf16 = |x: u16, y: u16| {
        let (u, v) = (bf16_to_f32(x), bf16_to_f32(y));
        match op {
            Atomic::Add => f32_to_bf16(u + v),
            Atomic::Min => {
                if v < u {
                    y
                } else {
                    x
                }
            }
            _ => {
                if u < v {
                    y
                } else {
                    x
                }
            }
        }
    };
    match (op, ty) {
        (Atomic::Exch, _) => b,
        (Atomic::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Atomic::And, _) => old & b,
        (Atomic::Or, _) => old | b,
        (Atomic::Xor, _) => old ^ b,
        (Atomic::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Atomic::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (_, Ty::F32) => {
            let (x, y) = (f32::from_bits(old as u32), f32::from_bits(b as u32));
            u64::from(
                match op {
                    Atomic::Add => x + y,
                    Atomic::Min => x.min(y),
                    _ => x.max(y),
                }
                .to_bits(),
            )
        }
        (_, Ty::F64) => {
            let (x, y) = (f64::from_bits(old), f64::from_bits(b));
            match op {
                Atomic::Add => x + y,
                Atomic::Min => x.min(y),
                _ => x.max(y),
            }
            .to_bits()
        }
        (_, Ty::F16) => u64::from(f16(old as u16, b as u16)),
        (_, Ty::F16x2) => halves(&f16),
        (_, Ty::Bf16) => u64::from(bf16(old as u16, b as u16)),
        (_, Ty::Bf16x2) => halves(&bf16),
        (Atomic::Add, _) => old.wrapping_add(b),
        (Atomic::Min, Ty::S32) => (old as i32).min(b as i32) as u32 as u64,
        (Atomic::Max, Ty::S32) => (old as i32).max(b as i32) as u32 as u64,
        (Atomic::Min, Ty::S64) => (old as i64).min(b as i64) as u64,
        (Atomic::Max, Ty::S64) => (old as i64).max(b as i64) as u64,
        (Atomic::Min, _) => old.min(b),
        (Atomic::Max, _) => old.max(b),
    }
}

/// `atom` and `red`. List: code, whether there is a destination, b's slot, c's slot.
pub(crate) unsafe fn atomic(m: &mut Machine, i: &Ins) -> Flow {
    let mem = m.env.program.mems[i.y as usize];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let mut access = unsafe { m.addresses(i, &mem) };
    let pointers = match prepare(m, &mut access, &mem) {
        Ok(pointers) => pointers,
        Err(trouble) => return m.stop(trouble),
    };
    let list = &m.env.program.lists[i.x as usize..][..4];
    let op = Atomic::ALL[(list[0] & 255) as usize];
    let ty = TYPES[(list[0] >> 8) as usize];
    let wide = mem.element == 8;
    // SAFETY: as above; the pointers were checked for the element's size and alignment.
    unsafe {
        let value = |slot: u32, l: usize| {
            if wide { (*m.slot::<u64>(slot))[l] } else { u64::from((*m.slot::<u32>(slot))[l]) }
        };
        let mut out = [0; 32];
        for l in (0..32).filter(|l| m.mask >> l & 1 != 0) {
            let (b, c) = (value(list[2], l), value(list[3], l));
            out[l] = match mem.element {
                8 => (*pointers[l].cast::<AtomicU64>())
                    .update(Relaxed, Relaxed, |old| apply(op, ty, old, b, c)),
                4 => {
                    let new =
                        |old: u32| apply(op, ty, u64::from(old), b & 0xffff_ffff, c & 0xffff_ffff) as u32;
                    u64::from((*pointers[l].cast::<AtomicU32>()).update(Relaxed, Relaxed, new))
                }
                _ => {
                    let new = |old: u16| apply(op, ty, u64::from(old), b & 0xffff, c & 0xffff) as u16;
                    u64::from((*pointers[l].cast::<AtomicU16>()).update(Relaxed, Relaxed, new))
                }
            };
        }
        if list[1] != 0 {
            if wide { store(m, i.d, &out) } else { store(m, i.d, &out.map(|v| v as u32)) }
        }
    }
    Flow::Next
}

fn prepare(m: &mut Machine, access: &mut Access, mem: &Mem) -> Result<Pointers, Trouble> {
    let space = m.resolve(access, mem.space)?;
    access.aligned(mem.element, "atomic")?;
    let base = access.base();
    let (start, subtract) = match space {
        MemSpace::Shared => {
            let on = m.checks();
            let plan = m.plans[mem.plan as usize].find(access)?;
            m.shared.update(m.warp, access, plan, base, on)?;
            (m.shared.data(), 0)
        }
        MemSpace::Global | MemSpace::Generic => {
            let mut set = std::mem::take(&mut m.plans[mem.plan as usize]);
            let result = set.find(access).and_then(|plan| {
                if m.env.config.check_uninit {
                    check_initialised(m, access)?;
                }
                m.global_touch(access, plan)
            });
            m.plans[mem.plan as usize] = set;
            result?;
            let release = m.fenced || matches!(mem.strength, Strength::Release | Strength::Both);
            for l in access.lanes() {
                m.synchronise(access.address[l as usize], true, release);
            }
            (m.env.memory.data_ptr(0), BASE)
        }
        _ => {
            let message = "atomic on memory that is neither global nor shared";
            return Err(Trouble::new(FaultKind::Unsupported, Some(access.mask.trailing_zeros()), message));
        }
    };
    let place = |l: usize| start.wrapping_add(access.address[l].wrapping_sub(subtract) as usize);
    Ok(std::array::from_fn(place))
}

fn check_initialised(m: &Machine, access: &Access) -> Result<(), Trouble> {
    for l in access.lanes() {
        let at = access.address[l as usize].wrapping_sub(BASE);
        for byte in at..at.saturating_add(u64::from(access.width)) {
            // Bytes outside any allocation are the next check's.
            if m.env.memory.state_at(byte).is_some_and(|s| s & 1 != 0 && s & INITIALISED == 0) {
                let message =
                    format!("atomic on {}, which nobody has written", m.env.memory.describe(BASE + byte));
                return Err(Trouble::new(FaultKind::UninitialisedRead, Some(l), message));
            }
        }
    }
    Ok(())
}
