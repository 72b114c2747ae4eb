//! Global memory seen from kernels: bounds, initialisation, and races between blocks.
//!
//! Per 4-byte word of device memory two records tell which block last wrote and last read it in the running launch
//! (epoch << 24 | bytes << 20 | block). Another block's conflicting access is a race unless an atomic orders the two: a block that
//! fences and then performs an atomic releases what it did; one that performs an atomic on the same word afterwards acquires it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

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
    /// Whether anything was released.
    any: AtomicBool,
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

/// Words of the range, with the bytes of each that it covers.
#[inline(always)]
fn words(at: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let (first, last) = (at / 4, (at + len - 1) / 4);
    let head = 15 << (at & 3) & 15;
    let tail = 15 >> (3 - ((at + len - 1) & 3));
    let bytes = move |w| if w == first { head } else { 15 } & if w == last { tail } else { 15 };
    (first..=last).map(move |w| (w, bytes(w) << BYTES_SHIFT))
}

const ALL_BYTES: u32 = 15 << BYTES_SHIFT;

/// Both words of a pair.
#[inline(always)]
fn twice(word: u32) -> u64 {
    u64::from(word) << 32 | u64::from(word)
}

/// Whether neither record of the pair is of the epoch in `mine`.
#[inline(always)]
fn stale(pair: u64, mine: u64) -> bool {
    let differs = (pair ^ mine) & twice(0xff << EPOCH_SHIFT);
    differs as u32 != 0 && differs >> 32 != 0
}

impl Memory {
    /// Whether every byte of an in-bounds range has all of `bits`.
    #[inline(always)]
    pub(crate) fn all_states(&self, at: u64, len: u64, bits: u8) -> bool {
        let mut all = u64::MAX;
        let (mut left, mut p) = (len, self.state_ptr().wrapping_add(at as usize).cast_mut());
        // SAFETY: the caller has checked that the range lies inside the mapping, which is page-aligned; 8-byte cells are read at
        // multiples of 8.
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

    /// The records of a word, or of it and the next one (for even words).
    #[inline(always)]
    fn pairs(&self, word: u64) -> (&AtomicU64, &AtomicU64) {
        let at = |base: *const u8| base.wrapping_add(word as usize * 4).cast_mut().cast();
        // SAFETY: callers pass even words inside the mappings, which are page-aligned.
        unsafe {
            (AtomicU64::from_ptr(at(self.readers_base())), AtomicU64::from_ptr(at(self.writers_base())))
        }
    }

    #[inline(always)]
    fn records(&self, word: u64) -> (&AtomicU32, &AtomicU32) {
        let at = |base: *const u8| base.wrapping_add(word as usize * 4).cast_mut().cast();
        // SAFETY: callers pass words inside the mappings.
        unsafe {
            (AtomicU32::from_ptr(at(self.readers_base())), AtomicU32::from_ptr(at(self.writers_base())))
        }
    }

    fn reader(&self, word: u64) -> u32 {
        self.records(word).0.load(Relaxed)
    }

    fn writer(&self, word: u64) -> u32 {
        self.records(word).1.load(Relaxed)
    }

    /// Notes a read by `me` (epoch and block) of an in-bounds range; the word of a conflicting write, if any.
    #[inline(always)]
    fn note_read(&self, at: u64, len: u64, me: u32) -> Result<(), u64> {
        if (at | len) & 7 != 0 {
            return words(at, len).try_for_each(|(word, bytes)| self.note_word_read(word, bytes, me));
        }
        let mine = twice(me | ALL_BYTES);
        let many = twice(me | MANY | ALL_BYTES);
        let (mut word, end) = (at / 4, (at + len) / 4);
        while word < end {
            let (readers, writers) = self.pairs(word);
            let old = readers.load(Relaxed);
            let unwritten = stale(writers.load(Relaxed), mine);
            if unwritten && stale(old, mine) {
                readers.store(mine, Relaxed);
            } else if !unwritten || old != mine && old != many {
                self.note_word_read(word, ALL_BYTES, me)?;
                self.note_word_read(word + 1, ALL_BYTES, me)?;
            }
            word += 2;
        }
        Ok(())
    }

    #[inline(never)]
    fn note_word_read(&self, word: u64, bytes: u32, me: u32) -> Result<(), u64> {
        let (reader, writer) = self.records(word);
        let wrote = writer.load(Relaxed);
        if (wrote ^ me) >> EPOCH_SHIFT == 0 && (wrote ^ me) & MANY != 0 && wrote & bytes != 0 {
            return Err(word);
        }
        let old = reader.load(Relaxed);
        if (old ^ me) >> EPOCH_SHIFT != 0 {
            reader.store(me | bytes, Relaxed);
        } else if old & MANY != MANY && (old ^ me) & MANY != 0 {
            reader.store(me | MANY | old & ALL_BYTES | bytes, Relaxed);
        } else if old & bytes != bytes {
            reader.store(old | bytes, Relaxed);
        }
        Ok(())
    }

    /// Notes a write; a conflicting word, and whether it was read (or else written) by another block.
    #[inline(always)]
    fn note_write(&self, at: u64, len: u64, me: u32) -> Result<(), (u64, bool)> {
        if (at | len) & 7 != 0 {
            return words(at, len).try_for_each(|(word, bytes)| self.note_word_write(word, bytes, me));
        }
        let mine = twice(me | ALL_BYTES);
        let (mut word, end) = (at / 4, (at + len) / 4);
        while word < end {
            let (readers, writers) = self.pairs(word);
            if stale(readers.load(Relaxed), mine) && stale(writers.load(Relaxed), mine) {
                writers.store(mine, Relaxed);
            } else {
                self.note_word_write(word, ALL_BYTES, me)?;
                self.note_word_write(word + 1, ALL_BYTES, me)?;
            }
            word += 2;
        }
        Ok(())
    }

    #[inline(never)]
    fn note_word_write(&self, word: u64, bytes: u32, me: u32) -> Result<(), (u64, bool)> {
        let (reader, writer) = self.records(word);
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
        Ok(())
    }

    /// Notes a write that an atomic has ordered after others' accesses.
    #[cold]
    fn force_write(&self, at: u64, len: u64, me: u32) {
        for (word, bytes) in words(at, len) {
            let (reader, writer) = self.records(word);
            writer.store(me | bytes, Relaxed);
            reader.store(0, Relaxed);
        }
    }
}
