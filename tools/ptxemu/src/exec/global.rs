//! Global memory seen from kernels: bounds, initialisation, and races between blocks.
//!
//! Another block's conflicting access in the same launch ([`crate::records`]) is a race unless an atomic
//! orders the two: a block that fences and then performs an atomic releases what it did; one that performs an
//! atomic on the same word afterwards acquires it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use super::access::{Access, Plan};
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::memory::{ALLOCATED, BASE, FREED, INITIALISED, Memory, WRITABLE};
use crate::records::{Conflict, MANY, Party, tag};

/// Releases of a launch: per atomic's address, the blocks (with all they had acquired) that released there.
#[derive(Default)]
pub(crate) struct Order {
    /// Whether anything was released.
    any: AtomicBool,
    releases: Mutex<HashMap<u64, Vec<u64>>>,
}

impl Machine<'_> {
    /// Checks a global read and notes it. Returns the offset of the access's base.
    #[inline(always)]
    pub fn global_read(&mut self, access: &Access, plan: &Plan, record: bool) -> Result<(), Trouble> {
        let need = if self.env.config.check_uninit { ALLOCATED | INITIALISED } else { ALLOCATED };
        let (memory, base) = (self.env.memory, access.base().wrapping_sub(BASE));
        for run in &plan.runs {
            let at = base.wrapping_add_signed(run.at);
            let len = u64::from(run.len);
            if at > memory.size() || len > memory.size() - at || !memory.all_states(at, len, need) {
                return Err(self.bad_global(access, at, len, need, "read"));
            }
            if record && self.env.config.check_races {
                let me = Party::new(self.env.epoch, self.block_id);
                if let Err(conflict) = memory.records.read(at, len, me) {
                    self.global_race(access, "read", &conflict)?;
                }
            }
        }
        Ok(())
    }

    /// Checks a global write and notes it; the bytes become initialised.
    #[inline(always)]
    pub fn global_write(&mut self, access: &Access, plan: &Plan) -> Result<(), Trouble> {
        let (memory, base) = (self.env.memory, access.base().wrapping_sub(BASE));
        self.fenced = false;
        for run in &plan.runs {
            let at = base.wrapping_add_signed(run.at);
            let len = u64::from(run.len);
            let need = ALLOCATED | WRITABLE;
            if at > memory.size() || len > memory.size() - at || !memory.all_states(at, len, need) {
                return Err(self.bad_global(access, at, len, need, "write"));
            }
            memory.mark_written(at, len);
            if self.env.config.check_races {
                let me = Party::new(self.env.epoch, self.block_id);
                if let Err(conflict) = memory.records.write(at, len, me) {
                    self.global_race(access, "write", &conflict)?;
                    memory.records.force_write(at, len, me);
                }
            }
        }
        Ok(())
    }

    /// Checks an atomic write: bounds alone; the bytes become initialised.
    pub fn global_touch(&mut self, access: &Access, plan: &Plan) -> Result<(), Trouble> {
        let (memory, base) = (self.env.memory, access.base().wrapping_sub(BASE));
        let need = ALLOCATED | WRITABLE;
        for run in &plan.runs {
            let at = base.wrapping_add_signed(run.at);
            let len = u64::from(run.len);
            if at > memory.size() || len > memory.size() - at || !memory.all_states(at, len, need) {
                return Err(self.bad_global(access, at, len, need, "write"));
            }
            memory.mark_written(at, len);
        }
        Ok(())
    }

    #[cold]
    fn bad_global(&self, access: &Access, at: u64, len: u64, need: u8, what: &str) -> Trouble {
        let memory = self.env.memory;
        let bad = (0..len)
            .map(|i| at.wrapping_add(i))
            .find(|b| memory.state_at(*b).is_none_or(|s| s & need != need));
        let bad = bad.unwrap_or(at);
        let state = memory.state_at(bad).unwrap_or(0);
        let kind = if state & FREED != 0 {
            FaultKind::UseAfterFree
        } else if state & ALLOCATED == 0 {
            FaultKind::OutOfBounds
        } else if what == "write" {
            FaultKind::ReadOnly
        } else {
            FaultKind::UninitialisedRead
        };
        let address = BASE.wrapping_add(bad);
        let lane = access.owner(address);
        let from = lane.map_or(address, |l| access.address[l as usize]);
        let note = if kind == FaultKind::UninitialisedRead { ", which nobody has written" } else { "" };
        let message =
            format!("{what} of {} bytes at {from:#x}: {}{note}", access.width, memory.describe(address));
        Trouble::new(kind, lane, message)
    }

    /// A conflict with another block, unless an atomic has ordered the two.
    #[cold]
    fn global_race(&self, access: &Access, what: &str, conflict: &Conflict) -> Result<(), Trouble> {
        let block = conflict.block;
        if self.acquired.iter().any(|b| block == MANY || tag(*b) == block) {
            return Ok(());
        }
        let [x, y, _] = self.env.grid.map(u64::from);
        let who = match block {
            MANY => "several blocks".to_owned(),
            _ => {
                let id = u64::from(block);
                format!("block ({},{},{})", id % x, id / x % y, id / (x * y))
            }
        };
        let address = BASE + conflict.at;
        let other = if conflict.read { "read" } else { "written" };
        let message = format!(
            "{what} of {}, {other} by {who} in the same launch with no atomic in between",
            self.env.memory.describe(address)
        );
        Err(Trouble::new(FaultKind::GlobalRace, access.owner(address), message))
    }

    /// An atomic at `address`: orders this block after those that released there, and releases what it has
    /// fenced.
    pub fn synchronise(&mut self, address: u64, acquire: bool, release: bool) {
        if !release && !self.env.order.any.load(Relaxed) {
            return;
        }
        self.env.order.any.store(true, Relaxed);
        let mut releases = self.env.order.releases.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if acquire && let Some(blocks) = releases.get(&address) {
            self.acquired.extend(blocks.iter().filter(|b| **b != self.block_id));
            self.acquired.sort_unstable();
            self.acquired.dedup();
        }
        if release {
            let blocks = releases.entry(address).or_default();
            blocks.push(self.block_id);
            blocks.extend(&self.acquired);
            blocks.sort_unstable();
            blocks.dedup();
        }
    }
}

impl Memory {
    /// Whether every byte of an in-bounds range has all of `bits`.
    #[inline(always)]
    pub(crate) fn all_states(&self, at: u64, len: u64, bits: u8) -> bool {
        let mut all = u64::MAX;
        let (mut left, mut p) = (len, self.state_ptr().wrapping_add(at as usize).cast_mut());
        // SAFETY: the caller has checked that the range lies inside the mapping, which is page-aligned;
        // 8-byte cells are read at multiples of 8.
        unsafe {
            while left > 0 && p.addr() & 7 != 0 {
                all &= u64::from(AtomicU8::from_ptr(p).load(Relaxed)) | !0xff;
                (p, left) = (p.wrapping_add(1), left - 1);
            }
            while left >= 8 {
                all &= AtomicU64::from_ptr(p.cast()).load(Relaxed);
                (p, left) = (p.wrapping_add(8), left - 8);
            }
            while left > 0 {
                all &= u64::from(AtomicU8::from_ptr(p).load(Relaxed)) | !0xff;
                (p, left) = (p.wrapping_add(1), left - 1);
            }
        }
        let want = u64::from(bits) * 0x0101_0101_0101_0101;
        all & want == want
    }

    /// Sets the initialised bit of an in-bounds range.
    #[inline(always)]
    pub(crate) fn mark_written(&self, at: u64, len: u64) {
        const WRITTEN: u8 = ALLOCATED | INITIALISED | WRITABLE;
        let (mut left, mut p) = (len, self.state_ptr().wrapping_add(at as usize).cast_mut());
        // SAFETY: as in `all_states`.
        unsafe {
            while left > 0 {
                if p.addr() & 7 == 0 && left >= 8 {
                    AtomicU64::from_ptr(p.cast()).store(u64::from(WRITTEN) * 0x0101_0101_0101_0101, Relaxed);
                    (p, left) = (p.wrapping_add(8), left - 8);
                } else {
                    AtomicU8::from_ptr(p).store(WRITTEN, Relaxed);
                    (p, left) = (p.wrapping_add(1), left - 1);
                }
            }
        }
    }
}
