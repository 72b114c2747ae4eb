//! `ldmatrix`, `stmatrix`, `movmatrix`: 8x8 matrices of 16-bit elements between shared memory and fragments.
//!
//! Fragment layout: lane `l` holds row `l / 4`, columns `2 (l % 4)` and the next, low half first. A register
//! of 32 lanes is thus the matrix itself in row-major order.

use super::access::Access;
use super::lanes::{multiversion, store};
use super::memory_ops::SHARED_WINDOW;
use super::shared::WRITTEN;
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins, Mem, MemSpace};

/// Fault unless all 32 lanes execute.
pub(crate) fn whole_warp(m: &Machine, what: &str) -> Result<(), Trouble> {
    if m.mask == u32::MAX {
        return Ok(());
    }
    let lane = (!m.mask).trailing_zeros();
    let message = format!("{what} needs all 32 lanes; only {:#010x} execute it", m.mask);
    Err(Trouble::new(FaultKind::InactiveLanes, Some(lane), message))
}

/// Row addresses: lane `8 j + r` gives row `r` of matrix `j`; the rest are not used.
#[inline(always)]
unsafe fn rows(m: &mut Machine, i: &Ins, mem: &Mem, what: &str) -> Result<Access, Trouble> {
    whole_warp(m, what)?;
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let mut access = unsafe { m.addresses(i, mem) };
    access.width = 16;
    if mem.count < 4 {
        access.mask = (1 << (8 * mem.count)) - 1;
        access.address[8 * mem.count as usize..].fill(0);
    }
    // A generic address of shared memory is accepted as well; others cannot be.
    if access.base() >= SHARED_WINDOW {
        m.resolve(&mut access, MemSpace::Generic)?;
    }
    access.aligned(16, what)?;
    Ok(access)
}

#[inline(always)]
unsafe fn load_body(m: &mut Machine, i: &Ins) -> Flow {
    let mem = m.env.program.mems[i.y as usize];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let access = match unsafe { rows(m, i, &mem, "ldmatrix") } {
        Ok(access) => access,
        Err(trouble) => return m.stop(trouble),
    };
    if let Err(trouble) = check_read(m, &access, &mem) {
        return m.stop(trouble);
    }
    let data = m.shared.data();
    for j in 0..mem.count as usize {
        let mut out = [0_u32; 32];
        for r in 0..8 {
            // SAFETY: the row was checked for 16 bytes, aligned.
            let row = unsafe { *data.add(access.address[8 * j + r] as usize).cast::<[u32; 4]>() };
            out[4 * r..4 * r + 4].copy_from_slice(&row);
        }
        if i.imm_flag() {
            out = transpose(&out);
        }
        // SAFETY: the list holds `count` slots of the program.
        unsafe { store(m, m.env.program.lists[i.x as usize + j], &out) };
    }
    Flow::Next
}

/// Transposes a fragment.
#[inline(always)]
pub(crate) fn transpose(from: &[u32; 32]) -> [u32; 32] {
    let half = |row: usize, column: usize| from[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    let mut out = [0; 32];
    for l in 0..32 {
        let (row, column) = (l / 4, 2 * (l % 4));
        out[l] = half(column, row) | half(column + 1, row) << 16;
    }
    out
}

#[inline(always)]
fn check_read(m: &mut Machine, access: &Access, mem: &Mem) -> Result<(), Trouble> {
    let on = m.checks();
    let plan = m.plans[mem.plan as usize].find(access)?;
    m.shared.read(m.warp, access, plan, access.base(), on)?;
    m.counts.matrix_load.add(plan);
    Ok(())
}

#[inline(always)]
fn check_write(m: &mut Machine, access: &Access, mem: &Mem) -> Result<(), Trouble> {
    let on = m.checks();
    let plan = m.plans[mem.plan as usize].find(access)?;
    m.shared.write(m.warp, access, plan, access.base(), (on, WRITTEN))?;
    m.counts.shared_store.add(plan);
    Ok(())
}

#[inline(always)]
unsafe fn store_body(m: &mut Machine, i: &Ins) -> Flow {
    let mem = m.env.program.mems[i.y as usize];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let access = match unsafe { rows(m, i, &mem, "stmatrix") } {
        Ok(access) => access,
        Err(trouble) => return m.stop(trouble),
    };
    if let Err(trouble) = check_write(m, &access, &mem) {
        return m.stop(trouble);
    }
    let data = m.shared.data();
    for j in 0..mem.count as usize {
        // SAFETY: the list holds `count` slots of the program; each row was checked for 16 bytes, aligned.
        unsafe {
            let mut from = *m.slot::<u32>(m.env.program.lists[i.x as usize + j]);
            if i.imm_flag() {
                from = transpose(&from);
            }
            for r in 0..8 {
                let row = data.add(access.address[8 * j + r] as usize).cast::<[u32; 4]>();
                row.copy_from_nonoverlapping((&raw const from[4 * r]).cast(), 1);
            }
        }
    }
    Flow::Next
}

multiversion!(/// `ldmatrix`: `y` the [`Mem`], `x` the destinations.
    load_matrix, load_body);
multiversion!(/// `stmatrix`: `y` the [`Mem`], `x` the sources.
    store_matrix, store_body);

/// `movmatrix.trans`.
pub(crate) unsafe fn move_matrix(m: &mut Machine, i: &Ins) -> Flow {
    if let Err(trouble) = whole_warp(m, "movmatrix") {
        return m.stop(trouble);
    }
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        let out = transpose(&*m.slot::<u32>(i.a));
        store(m, i.d, &out);
    }
    Flow::Next
}

impl Ins {
    /// `.trans`: kept in the predicate field, as `imm` is the address offset.
    fn imm_flag(&self) -> bool {
        self.p[0] != 0
    }
}
