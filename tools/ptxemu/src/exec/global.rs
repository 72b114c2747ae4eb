//! Global memory seen from kernels: bounds, initialisation, and races between blocks.
//!
//! Per 4-byte word of device memory two records tell which block last wrote and last read it in the running launch
//! (epoch << 24 | bytes << 20 | block). Another block's conflicting access is a race unless an atomic orders the two: a block that
//! fences and then performs an atomic releases what it did; one that performs an atomic on the same word afterwards acquires it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::access::{Access, Plan};
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::memory::{ALLOCATED, BASE, FREED, INITIALISED, Memory, WRITABLE};

/// Block number that stands for several readers.
const MANY: u32 = (1 << 20) - 1;
const BYTES_SHIFT: u32 = 20;
const EPOCH_SHIFT: u32 = 24;
/// Launches between clearings of the records.
pub(crate) const EPOCHS: u32 = 255;

/// Releases of a launch: per atomic's address, the blocks (with all they had acquired) that released there.
#[derive(Default)]
pub(crate) struct Order {
    releases: Mutex<HashMap<u64, Vec<u64>>>,
}

/// The number a block is recorded by: wraps for launches of more than a million blocks, whose races may then be missed.
fn tag(block: u64) -> u32 {
    (block % u64::from(MANY)) as u32
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
                let me = self.env.epoch << EPOCH_SHIFT | tag(self.block_id);
                if let Err(word) = memory.note_read(at, len, me) {
                    self.global_race(access, word, "read", "written", memory.writer(word))?;
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
                let me = self.env.epoch << EPOCH_SHIFT | tag(self.block_id);
                if let Err((word, read)) = memory.note_write(at, len, me) {
                    let (other, who) =
                        if read { ("read", memory.reader(word)) } else { ("written", memory.writer(word)) };
                    self.global_race(access, word, "write", other, who)?;
                    memory.force_write(at, len, me);
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
    fn global_race(
        &self,
        access: &Access,
        word: u64,
        what: &str,
        other: &str,
        record: u32,
    ) -> Result<(), Trouble> {
        let block = record & MANY;
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
        let address = BASE + word * 4;
        let message = format!(
            "{what} of {}, {other} by {who} in the same launch with no atomic in between",
            self.env.memory.describe(address)
        );
        Err(Trouble::new(FaultKind::GlobalRace, access.owner(address), message))
    }

    /// An atomic at `address`: orders this block after those that released there, and releases what it has fenced.
    pub fn synchronise(&mut self, address: u64, acquire: bool, release: bool) {
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

/// Words of the range, with the bytes of each that it covers.
#[inline(always)]
fn words(at: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let (first, last) = (at / 4, (at + len - 1) / 4);
    let head = 15 << (at & 3) & 15;
    let tail = 15 >> (3 - (at + len - 1 & 3));
    (first..=last).map(move |w| {
        (w, (if w == first { head } else { 15 } & if w == last { tail } else { 15 }) << BYTES_SHIFT)
    })
}

const ALL_BYTES: u32 = 15 << BYTES_SHIFT;

impl Memory {
    /// Whether every byte of an in-bounds range has all of `bits`.
    #[inline(always)]
    pub(crate) fn all_states(&self, at: u64, len: u64, bits: u8) -> bool {
        let mut all = u64::MAX;
        let (mut p, end) = (at, at + len);
        // SAFETY: the caller has checked that the range lies inside the mapping; 8-byte cells are read at multiples of 8.
        unsafe {
            let state = self.state_ptr();
            while p < end && !p.is_multiple_of(8) {
                all &= u64::from((*state.add(p as usize).cast::<AtomicU8>()).load(Relaxed)) | !0xff;
                p += 1;
            }
            while end - p >= 8 {
                all &= (*state.add(p as usize).cast::<AtomicU64>()).load(Relaxed);
                p += 8;
            }
            while p < end {
                all &= u64::from((*state.add(p as usize).cast::<AtomicU8>()).load(Relaxed)) | !0xff;
                p += 1;
            }
        }
        let want = u64::from(bits) * 0x0101_0101_0101_0101;
        all & want == want
    }

    /// Sets the initialised bit of an in-bounds range.
    #[inline(always)]
    pub(crate) fn mark_written(&self, at: u64, len: u64) {
        const WRITTEN: u8 = ALLOCATED | INITIALISED | WRITABLE;
        let (mut p, end) = (at, at + len);
        // SAFETY: as in `all_states`.
        unsafe {
            let state = self.state_ptr();
            while p < end {
                if p.is_multiple_of(8) && end - p >= 8 {
                    (*state.add(p as usize).cast::<AtomicU64>())
                        .store(u64::from(WRITTEN) * 0x0101_0101_0101_0101, Relaxed);
                    p += 8;
                } else {
                    (*state.add(p as usize).cast::<AtomicU8>()).store(WRITTEN, Relaxed);
                    p += 1;
                }
            }
        }
    }

    fn reader(&self, word: u64) -> u32 {
        // SAFETY: words reported by `note_write` lie inside the mapping.
        unsafe { (*self.readers_ptr().add(word as usize)).load(Relaxed) }
    }

    fn writer(&self, word: u64) -> u32 {
        // SAFETY: words reported by `note_read` and `note_write` lie inside the mapping.
        unsafe { (*self.writers_ptr().add(word as usize)).load(Relaxed) }
    }

    /// Notes a read by `me` (epoch and block) of an in-bounds range; the word of a conflicting write, if any.
    #[inline(always)]
    fn note_read(&self, at: u64, len: u64, me: u32) -> Result<(), u64> {
        let (readers, writers) = (self.readers_ptr(), self.writers_ptr());
        let many = me | MANY;
        for (word, bytes) in words(at, len) {
            // SAFETY: the caller has checked the range.
            let (reader, writer) = unsafe { (&*readers.add(word as usize), &*writers.add(word as usize)) };
            let wrote = writer.load(Relaxed);
            if (wrote ^ me) >> EPOCH_SHIFT == 0 && (wrote ^ me) & MANY != 0 && wrote & bytes != 0 {
                return Err(word);
            }
            let old = reader.load(Relaxed);
            if (old ^ me) >> EPOCH_SHIFT != 0 {
                reader.store(me | bytes, Relaxed);
            } else if old & MANY != MANY && (old ^ me) & MANY != 0 {
                reader.store(many | old & ALL_BYTES | bytes, Relaxed);
            } else if old & bytes != bytes {
                reader.store(old | bytes, Relaxed);
            }
        }
        Ok(())
    }

    /// Notes a write; a conflicting word, and whether it was read (or else written) by another block.
    #[inline(always)]
    fn note_write(&self, at: u64, len: u64, me: u32) -> Result<(), (u64, bool)> {
        let (readers, writers) = (self.readers_ptr(), self.writers_ptr());
        for (word, bytes) in words(at, len) {
            // SAFETY: the caller has checked the range.
            let (reader, writer) = unsafe { (&*readers.add(word as usize), &*writers.add(word as usize)) };
            let (wrote, read) = (writer.load(Relaxed), reader.load(Relaxed));
            let conflict = |r: u32| (r ^ me) >> EPOCH_SHIFT == 0 && (r ^ me) & MANY != 0 && r & bytes != 0;
            if conflict(wrote) {
                return Err((word, false));
            }
            if conflict(read) {
                return Err((word, true));
            }
            let same = (wrote ^ me) & !ALL_BYTES == 0;
            writer.store(if same { wrote | bytes } else { me | bytes }, Relaxed);
        }
        Ok(())
    }

    /// Notes a write that an atomic has ordered after others' accesses.
    #[cold]
    fn force_write(&self, at: u64, len: u64, me: u32) {
        for (word, bytes) in words(at, len) {
            // SAFETY: the caller has checked the range.
            unsafe {
                (*self.writers_ptr().add(word as usize)).store(me | bytes, Relaxed);
                (*self.readers_ptr().add(word as usize)).store(0, Relaxed);
            }
        }
    }

    fn readers_ptr(&self) -> *const AtomicU32 {
        self.readers_base().cast()
    }

    fn writers_ptr(&self) -> *const AtomicU32 {
        self.writers_base().cast()
    }
}
