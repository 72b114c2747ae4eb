//! `cp.async`: copies from global to shared memory that complete as late as they may.
//!
//! A copy reads its source when it is issued and owns its destination bytes until its thread waits for the
//! copy's group; only then the data lands. With `Config::late_async` off it lands at once.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::access::Access;
use super::lanes::{BITS, multiversion};
use super::shared::{PENDING, WRITTEN};
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins, MemSpace, Strength};
use crate::memory::BASE;

/// One warp-wide copy that has not landed.
struct Copy {
    mask: u32,
    to: [u32; 32],
    /// The group it belongs to, by lane.
    group: [u32; 32],
    data: [[u8; 16]; 32],
    size: u32,
}

/// A warp's copies in flight.
#[allow(clippy::vec_box)] // copies of 900 bytes move between the two lists
#[derive(Default)]
pub(crate) struct Queue {
    copies: Vec<Box<Copy>>,
    spare: Vec<Box<Copy>>,
    /// Groups each lane has committed.
    committed: [u32; 32],
}

impl Queue {
    pub fn clear(&mut self) {
        self.spare.append(&mut self.copies);
        self.committed = [0; 32];
    }
}

/// `cp.async`: `a` destination address, `b` source address, `c` source size (a slot), `imm` destination
/// offset, list: source offset (low, high), size; `p[0]` predicate that zero-fills (with `p[1]` = 1 when
/// there is one).
#[inline(always)]
unsafe fn copy_body(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    match unsafe { issue(m, i) } {
        Ok(()) => Flow::Next,
        Err(trouble) => m.stop(trouble),
    }
}
multiversion!(/// The driver of `cp.async`.
    copy, copy_body);

#[inline(always)]
unsafe fn issue(m: &mut Machine, i: &Ins) -> Result<(), Trouble> {
    let program = m.env.program;
    let list = &program.lists[i.x as usize..];
    let (offset, size) = ((u64::from(list[0]) | u64::from(list[1]) << 32) as i64, list[2]);
    let mut to_mem = program.mems[i.y as usize];
    let mut from_mem = program.mems[i.y as usize + 1];
    (to_mem.element, from_mem.element) = (size, size);
    let source = Ins { a: i.b, imm: offset, ..*i };
    // SAFETY: by the caller's promise.
    let (mut to, from, sizes, ignore) = unsafe {
        let ignore = if i.p[1] != 0 { m.predicate(i.p[0]) } else { 0 };
        (m.addresses(i, &to_mem), m.addresses(&source, &from_mem), &*m.slot::<u32>(i.c), ignore)
    };
    if m.resolve(&mut to, to_mem.space)? != MemSpace::Shared {
        return Err(Trouble::new(FaultKind::OutOfBounds, None, "cp.async into memory that is not shared"));
    }
    to.aligned(size, "cp.async to")?;
    let mut queue = std::mem::take(&mut m.warps[m.warp].copies);
    let mut entry = queue.spare.pop().unwrap_or_else(|| {
        Box::new(Copy { mask: 0, to: [0; 32], group: [0; 32], data: [[0; 16]; 32], size: 0 })
    });
    let (mut full, mut partial) = (0, 0);
    for l in 0..32 {
        let on = m.mask >> l & 1 != 0 && ignore >> l & 1 == 0;
        full |= u32::from(on && sizes[l] >= size) << l;
        partial |= u32::from(on && sizes[l] > 0 && sizes[l] < size) << l;
        entry.data[l] = [0; 16];
        entry.to[l] = to.address[l] as u32;
    }
    let mut result = match to.lanes().find(|l| sizes[*l as usize] > size) {
        Some(l) => {
            let message = format!("cp.async of {size} bytes with a source size of {}", sizes[l as usize]);
            Err(Trouble::new(FaultKind::OutOfBounds, Some(l), message))
        }
        None => Ok(()),
    };
    if result.is_ok() && full != 0 {
        result = read_source(m, &from, full, size, from_mem.plan, &mut entry.data);
    }
    for l in (0..32).filter(|l| partial >> l & 1 != 0) {
        if result.is_ok() {
            result = read_source(m, &from, 1 << l, sizes[l as usize], from_mem.plan, &mut entry.data);
        }
    }
    if result.is_ok() {
        result = check_target(m, &to, to_mem.plan);
    }
    (entry.mask, entry.size) = (to.mask, size);
    entry.group = queue.committed;
    if result.is_ok() && m.env.config.late_async {
        queue.copies.push(entry);
    } else {
        if result.is_ok() {
            put(m, &entry, entry.mask, false);
        }
        queue.spare.push(entry);
    }
    m.warps[m.warp].copies = queue;
    result
}

/// Checks and claims the destination.
#[inline(always)]
fn check_target(m: &mut Machine, to: &Access, plan: u32) -> Result<(), Trouble> {
    let (on, state) = (m.checks(), if m.env.config.late_async { PENDING } else { WRITTEN });
    let plan = m.plans[plan as usize].find(to)?;
    m.counts.async_store.add(plan);
    m.counts.async_bytes += u64::from(to.width * to.mask.count_ones());
    m.shared.write(m.warp, to, plan, to.base(), (on, state))
}

/// Reads `size` bytes per lane of `lanes` from global memory.
#[inline(always)]
fn read_source(
    m: &mut Machine,
    all: &Access,
    lanes: u32,
    size: u32,
    plan: u32,
    data: &mut [[u8; 16]; 32],
) -> Result<(), Trouble> {
    let mut from = Access { address: all.address, mask: lanes, width: size };
    for l in 0..32 {
        from.address[l] = if lanes & BITS[l] != 0 { from.address[l] } else { 0 };
    }
    if size.is_power_of_two() {
        from.aligned(size, "cp.async from")?;
    }
    let mut set = std::mem::take(&mut m.plans[plan as usize]);
    let result = m.load_global(&from, &mut set, true, Strength::Weak);
    m.plans[plan as usize] = set;
    result?;
    let base = m.env.memory.data_ptr(0);
    for l in (0..32).filter(|l| lanes >> l & 1 != 0) {
        let p = base.wrapping_add(from.address[l].wrapping_sub(BASE) as usize);
        // SAFETY: `global_read` has checked `size` bytes there, and whole words are read where they are
        // aligned.
        unsafe {
            if size.is_multiple_of(4) && p.addr() & 3 == 0 {
                for (w, word) in data[l][..size as usize].chunks_exact_mut(4).enumerate() {
                    let value = AtomicU32::from_ptr(p.wrapping_add(4 * w).cast()).load(Relaxed);
                    word.copy_from_slice(&value.to_le_bytes());
                }
            } else {
                for (b, byte) in data[l][..size as usize].iter_mut().enumerate() {
                    *byte = AtomicU8::from_ptr(p.wrapping_add(b)).load(Relaxed);
                }
            }
        }
    }
    Ok(())
}

/// Stores the data of `lanes` to shared memory.
fn put(m: &mut Machine, copy: &Copy, lanes: u32, note: bool) {
    let (base, size) = (m.shared.data(), copy.size as usize);
    for l in (0..32).filter(|l| lanes >> l & 1 != 0) {
        // SAFETY: the range was checked when the copy was issued, and shared memory has not changed size
        // since.
        unsafe { base.add(copy.to[l] as usize).copy_from_nonoverlapping(copy.data[l].as_ptr(), size) };
        if note {
            m.shared.landed(m.warp, l as u32, copy.to[l] as usize, size);
        }
    }
}

/// `cp.async.commit_group`.
pub(crate) unsafe fn commit(m: &mut Machine, _: &Ins) -> Flow {
    let mask = m.mask;
    let queue = &mut m.current().copies;
    for l in 0..32 {
        queue.committed[l] += mask >> l & 1;
    }
    Flow::Next
}

/// `cp.async.wait_group` (`imm` groups may stay pending) and `wait_all` (`imm` negative).
pub(crate) unsafe fn wait(m: &mut Machine, i: &Ins) -> Flow {
    let mut queue = std::mem::take(&mut m.current().copies);
    let mask = m.mask;
    let mut at = 0;
    while at < queue.copies.len() {
        let copy = &mut queue.copies[at];
        let mut lanes = 0;
        for l in 0..32 {
            let done = i.imm < 0 || i64::from(copy.group[l]) + i.imm < i64::from(queue.committed[l]);
            lanes |= u32::from(done) << l;
        }
        lanes &= mask & copy.mask;
        if lanes != 0 {
            put(m, copy, lanes, true);
            copy.mask &= !lanes;
        }
        if copy.mask == 0 {
            let done = queue.copies.remove(at);
            queue.spare.push(done);
        } else {
            at += 1;
        }
    }
    m.current().copies = queue;
    Flow::Next
}
