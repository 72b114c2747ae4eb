//! Special registers, predicate logic, selection, extended-precision arithmetic.

use super::Machine;
use super::lanes::{BITS, multiversion, store};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins};

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Sreg {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    Clock,
    MaskEq,
    MaskLe,
    MaskLt,
    MaskGe,
    MaskGt,
    DynamicShared,
    TotalShared,
    Zero,
    One,
}

const SREGS: [(&str, Sreg); 42] = [
    ("tid.x", Sreg::TidX),
    ("tid.y", Sreg::TidY),
    ("tid.z", Sreg::TidZ),
    ("ntid.x", Sreg::NtidX),
    ("ntid.y", Sreg::NtidY),
    ("ntid.z", Sreg::NtidZ),
    ("ctaid.x", Sreg::CtaidX),
    ("ctaid.y", Sreg::CtaidY),
    ("ctaid.z", Sreg::CtaidZ),
    ("nctaid.x", Sreg::NctaidX),
    ("nctaid.y", Sreg::NctaidY),
    ("nctaid.z", Sreg::NctaidZ),
    ("laneid", Sreg::LaneId),
    ("warpid", Sreg::WarpId),
    ("nwarpid", Sreg::NWarpId),
    ("smid", Sreg::SmId),
    ("nsmid", Sreg::NSmId),
    ("gridid", Sreg::GridId),
    ("clock", Sreg::Clock),
    ("clock_hi", Sreg::Zero),
    ("clock64", Sreg::Clock),
    ("globaltimer", Sreg::Clock),
    ("globaltimer_lo", Sreg::Clock),
    ("globaltimer_hi", Sreg::Zero),
    ("lanemask_eq", Sreg::MaskEq),
    ("lanemask_le", Sreg::MaskLe),
    ("lanemask_lt", Sreg::MaskLt),
    ("lanemask_ge", Sreg::MaskGe),
    ("lanemask_gt", Sreg::MaskGt),
    ("dynamic_smem_size", Sreg::DynamicShared),
    ("total_smem_size", Sreg::TotalShared),
    ("cluster_ctarank", Sreg::Zero),
    ("cluster_nctarank", Sreg::One),
    ("cluster_ctaid.x", Sreg::Zero),
    ("cluster_ctaid.y", Sreg::Zero),
    ("cluster_ctaid.z", Sreg::Zero),
    ("cluster_nctaid.x", Sreg::One),
    ("cluster_nctaid.y", Sreg::One),
    ("cluster_nctaid.z", Sreg::One),
    ("clusterid.x", Sreg::CtaidX),
    ("nclusterid.x", Sreg::NctaidX),
    ("is_explicit_cluster", Sreg::Zero),
];

impl Sreg {
    /// Finds a special register by its name without the `%`.
    pub fn parse(name: &str) -> Option<Sreg> {
        SREGS.iter().find(|s| s.0 == name).map(|s| s.1)
    }
}

/// Reads the special register `imm`; `y` 1: the destination has 64 bits.
pub(crate) unsafe fn read_special(m: &mut Machine, i: &Ins) -> Flow {
    let env = m.env;
    let warp = m.warp as u32;
    let value = |l: u32| -> u64 {
        let bit = 1_u32 << l;
        u64::from(match i.imm {
            0..=2 => m.thread(warp, l)[i.imm as usize],
            3..=5 => env.block[i.imm as usize - 3],
            6..=8 => m.block[i.imm as usize - 6],
            9..=11 => env.grid[i.imm as usize - 9],
            12 => l,
            13 => warp,
            14 => env.warps,
            15 => 0,
            16 => 1,
            17 => 1,
            18 => m.counts.total() as u32,
            19 => bit,
            20 => bit | (bit - 1),
            21 => bit - 1,
            22 => !(bit - 1),
            23 => !(bit | (bit - 1)),
            24 => env.dynamic_shared,
            25 => env.shared_bytes,
            26 => 0,
            _ => 1,
        })
    };
    let mut out = [0; 32];
    for l in 0..32 {
        out[l as usize] = value(l);
    }
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe { if i.y == 1 { store(m, i.d, &out) } else { store(m, i.d, &out.map(|v| v as u32)) } }
    Flow::Next
}

/// Predicate logic: `p[0]` = `p[1]` op `p[2]`; `imm` 0 and, 1 or, 2 xor; bits 4, 5 negate the sources, bit 6
/// the result.
pub(crate) unsafe fn predicate_logic(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let flip = |at: u32| if i.imm >> at & 1 != 0 { u32::MAX } else { 0 };
        let (a, b) = (m.predicate(i.p[1]) ^ flip(4), m.predicate(i.p[2]) ^ flip(5));
        let result = match i.imm & 3 {
            0 => a & b,
            1 => a | b,
            _ => a ^ b,
        };
        m.set_predicate(i.p[0], result ^ flip(6));
    }
    Flow::Next
}

/// Definedness mask `p[0]`: everything is.
pub(crate) unsafe fn defined(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe { m.set_predicate(i.p[0], u32::MAX) };
    Flow::Next
}

/// Definedness mask `p[0]` of a lane-wise result: where all sources' masks (list: count, numbers) are set.
pub(crate) unsafe fn derive_defined(m: &mut Machine, i: &Ins) -> Flow {
    let list = &m.env.program.lists[i.x as usize..];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`), and so do the predicates
    // in its list.
    unsafe {
        let mut all = u32::MAX;
        for mask in &list[1..=list[0] as usize] {
            all &= m.predicate(*mask as u16);
        }
        m.set_predicate(i.p[0], all);
    }
    Flow::Next
}

/// Definedness mask `p[0]` of a selection. List: the predicate, its mask, the masks of both sides; `imm` 1
/// negates the predicate.
pub(crate) unsafe fn select_defined(m: &mut Machine, i: &Ins) -> Flow {
    let list = &m.env.program.lists[i.x as usize..][..4];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`), and so do the predicates
    // in its list.
    unsafe {
        let [p, chooser, a, b] = std::array::from_fn(|at| m.predicate(list[at] as u16));
        let p = if i.imm & 1 != 0 { !p } else { p };
        m.set_predicate(i.p[0], chooser & (p & a | !p & b));
    }
    Flow::Next
}

/// Faults where the definedness mask `p[0]` is clear; `imm` names the register.
pub(crate) unsafe fn check_defined(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let missing = m.mask & !unsafe { m.predicate(i.p[0]) };
    if missing == 0 || !m.env.config.check_registers {
        return Flow::Next;
    }
    let name = &m.env.program.names[i.imm as usize];
    let message =
        format!("the value of {name} depends on a register that no instruction on this path has written");
    m.fail(FaultKind::UninitialisedRegister, Some(missing.trailing_zeros()), message)
}

#[inline(always)]
unsafe fn select_body<T: Copy + Default>(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let p = m.predicate(i.p[0]) ^ if i.imm & 1 != 0 { u32::MAX } else { 0 };
        let (a, b) = (&*m.slot::<T>(i.a), &*m.slot::<T>(i.b));
        let mut out = [T::default(); 32];
        for l in 0..32 {
            out[l] = if p & BITS[l] != 0 { a[l] } else { b[l] };
        }
        store(m, i.d, &out);
    }
    Flow::Next
}

#[inline(always)]
unsafe fn select32_body(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the caller keeps the contract of `Exec`.
    unsafe { select_body::<u32>(m, i) }
}
#[inline(always)]
unsafe fn select64_body(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the caller keeps the contract of `Exec`.
    unsafe { select_body::<u64>(m, i) }
}
multiversion!(/// `selp` of 32 bits: `a` where `p[0]` (negated by bit 0 of `imm`), else `b`.
    select32, select32_body);
multiversion!(/// `selp` of 64 bits.
    select64, select64_body);

/// `add.cc` and kin: `imm` bit 0 subtract, bit 1 carry in, bit 2 carry out, bit 3 64 bits.
pub(crate) unsafe fn extended(m: &mut Machine, i: &Ins) -> Flow {
    let carry = m.warps[m.warp].carry;
    let mut carries = 0;
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let wide = i.imm & 8 != 0;
        let value = |slot: u32, l: usize| {
            if wide { (*m.slot::<u64>(slot))[l] } else { u64::from((*m.slot::<u32>(slot))[l]) }
        };
        let mut out = [0_u64; 32];
        for l in 0..32 {
            let (a, b) = (u128::from(value(i.a, l)), u128::from(value(i.b, l)));
            let c = if i.imm & 2 != 0 { u128::from(carry >> l & 1) } else { 0 };
            let sum = if i.imm & 1 != 0 { a.wrapping_sub(b).wrapping_sub(c) } else { a + b + c };
            out[l] = sum as u64;
            carries |= u32::from(sum >> if wide { 64 } else { 32 } & 1 != 0) << l;
        }
        if wide { store(m, i.d, &out) } else { store(m, i.d, &out.map(|v| v as u32)) }
    }
    if i.imm & 4 != 0 {
        let mask = m.mask;
        let warp = m.current();
        warp.carry = warp.carry & !mask | carries & mask;
    }
    Flow::Next
}

/// Extended multiply-add of 32 bits, `a * b + c`: `imm` bit 0 high half, bit 1 carry in, bit 2 carry out, bit
/// 3 signed.
pub(crate) unsafe fn extended_mad(m: &mut Machine, i: &Ins) -> Flow {
    let carry = m.warps[m.warp].carry;
    let mut carries = 0;
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let (a, b, c) = (&*m.slot::<u32>(i.a), &*m.slot::<u32>(i.b), &*m.slot::<u32>(i.c));
        let mut out = [0_u32; 32];
        for l in 0..32 {
            let product = if i.imm & 8 != 0 {
                (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64
            } else {
                u64::from(a[l]) * u64::from(b[l])
            };
            let half = if i.imm & 1 != 0 { product >> 32 } else { product & 0xffff_ffff };
            let sum = half + u64::from(c[l]) + if i.imm & 2 != 0 { u64::from(carry >> l & 1) } else { 0 };
            out[l] = sum as u32;
            carries |= u32::from(sum >> 32 != 0) << l;
        }
        store(m, i.d, &out);
    }
    if i.imm & 4 != 0 {
        let mask = m.mask;
        let warp = m.current();
        warp.carry = warp.carry & !mask | carries & mask;
    }
    Flow::Next
}
