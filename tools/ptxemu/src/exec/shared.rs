//! Shared memory of a block with its shadow: which bytes are written, by whom each word was last written and
//! read, and when.
//!
//! Time is a counter that every synchronisation advances. `known[w][v]` is the time up to which warp `w` has
//! synchronised with the doings of warp `v` (its vector clock); for `v = w` it is the last time its own lanes
//! met. An access conflicts with an earlier one of warp `v` at time `t` if `t >= known[w][v]`, unless it is
//! the same lane's. Each word remembers its last writer and, per warp, its last reader. Bytes of a word are
//! told apart by a mask, of which the last access's is kept; lanes of one warp that share a word but not its
//! bytes are not checked against each other.

use super::Trouble;
use super::access::{Access, Plan};
use crate::fault::FaultKind;
use crate::ir::Lanes;

/// Byte states.
pub(crate) const UNWRITTEN: u8 = 0;
pub(crate) const WRITTEN: u8 = 1;
/// An asynchronous copy owns the byte.
pub(crate) const PENDING: u8 = 2;

// A read record: time << 11 | bytes << 7 | SPLIT | MULTI | lane. A write record: time << 11 | SPLIT << 4 |
// warp << 5 | lane.
const TIME_SHIFT: u32 = 11;
const LAST_TIME: u32 = (1 << 21) - 2;
/// Several lanes of the warp used the same bytes of the word.
pub(crate) const MULTI: u32 = 1 << 5;
/// Lanes used different bytes of the word.
pub(crate) const SPLIT: u32 = 1 << 6;
/// Place of the byte mask.
pub(crate) const BYTES_SHIFT: u32 = 7;
const WRITE_SPLIT: u32 = 1 << 10;

/// A block's shared memory.
pub(crate) struct Shared {
    data: Vec<Lanes>,
    size: usize,
    words: usize,
    pub state: Vec<u8>,
    /// Per word: the last write.
    writes: Vec<u32>,
    /// Bytes of the word it wrote.
    write_masks: Vec<u8>,
    /// Per warp and word: the last read.
    reads: Vec<u32>,
    now: u32,
    known: Vec<[u32; 32]>,
    /// Least element of `known[w]`: everything before it is settled.
    safe: [u32; 32],
    warps: usize,
}

/// How an access is checked.
#[derive(Clone, Copy)]
pub(crate) struct Checks {
    pub uninit: bool,
    pub races: bool,
}

impl Shared {
    pub fn new(bytes: u32, warps: usize) -> Shared {
        let words = bytes.div_ceil(4) as usize;
        Shared {
            data: vec![Lanes([0; 32]); (bytes as usize).div_ceil(128)],
            size: bytes as usize,
            words,
            state: vec![UNWRITTEN; bytes as usize],
            writes: vec![0; words],
            write_masks: vec![0; words],
            reads: vec![0; words * warps],
            now: 1,
            known: vec![[1; 32]; warps],
            safe: [1; 32],
            warps,
        }
    }

    /// For the next block: nothing is written, and nothing from before is a conflict.
    pub fn reset(&mut self) {
        self.state.fill(UNWRITTEN);
        self.advance();
        let now = self.now;
        self.known.fill([now; 32]);
        self.safe = [now; 32];
    }

    pub fn data(&self) -> *mut u8 {
        self.data.as_ptr().cast_mut().cast()
    }

    fn advance(&mut self) {
        self.now += 1;
        if self.now >= LAST_TIME {
            // Forget everything rather than wrap: a race across this instant is missed.
            self.writes.fill(0);
            self.reads.fill(0);
            self.now = 2;
            self.known.fill([1; 32]);
            self.safe = [1; 32];
        }
    }

    /// Warp `w` arrives at a barrier: what it knows goes into `joined`.
    pub fn arrive(&mut self, w: usize, joined: &mut Vec<u32>) {
        self.advance();
        joined.resize(self.warps, 0);
        for (v, joined) in joined.iter_mut().enumerate() {
            let known = if v == w { self.now } else { self.known[w][v] };
            *joined = (*joined).max(known);
        }
    }

    /// The barrier completes: the warps in `waiting` know what all who arrived knew.
    pub fn release(&mut self, waiting: u32, joined: &[u32]) {
        self.advance();
        for w in (0..self.warps).filter(|w| waiting >> w & 1 != 0) {
            for v in 0..self.warps {
                // Warps that waited have done nothing since they arrived.
                let until = if waiting >> v & 1 != 0 { self.now } else { joined[v] };
                self.known[w][v] = self.known[w][v].max(until);
            }
            self.settle(w);
        }
    }

    /// The lanes of warp `w` meet.
    pub fn sync_warp(&mut self, w: usize) {
        self.advance();
        self.known[w][w] = self.now;
        self.settle(w);
    }

    fn settle(&mut self, w: usize) {
        self.safe[w] = self.known[w][..self.warps].iter().copied().min().unwrap_or(0);
    }

    /// Checks bounds of every run of `plan` at `base`.
    #[inline(always)]
    fn bounds(&self, access: &Access, plan: &Plan, base: u64) -> Result<(), Trouble> {
        let (low, high) = (base.wrapping_add_signed(plan.low), base.wrapping_add_signed(plan.high));
        if high > self.size as u64 || low > high {
            return Err(self.out_of_bounds(access));
        }
        Ok(())
    }

    #[cold]
    fn out_of_bounds(&self, access: &Access) -> Trouble {
        let bad = |l: &u32| {
            let a = access.address[*l as usize];
            a.checked_add(u64::from(access.width)).is_none_or(|end| end > self.size as u64)
        };
        let lane = access.lanes().find(bad);
        let at = access.address[lane.unwrap_or(0) as usize] as i64;
        let message =
            format!("{} bytes at shared offset {at:#x}; the block has {} bytes", access.width, self.size);
        Trouble::new(FaultKind::OutOfBounds, lane, message)
    }

    /// First word and number of words that `len` bytes from `start` touch.
    #[inline(always)]
    fn words_of(start: usize, len: usize) -> (usize, usize) {
        (start / 4, (start + len).div_ceil(4) - start / 4)
    }

    /// Checks that `len` bytes from `start` have been written and that no asynchronous copy owns them.
    #[inline(always)]
    fn check_states(&self, access: &Access, (start, len): (usize, usize), on: Checks) -> Result<(), Trouble> {
        let (mut all, mut any) = (0xff, 0);
        for state in &self.state[start..start + len] {
            all &= state;
            any |= state;
        }
        if any & PENDING != 0 || on.uninit && all & WRITTEN == 0 {
            return Err(self.bad_state(access, start, len, on, "read"));
        }
        Ok(())
    }

    /// Checks words (position in the plan, first, count) that warp `w` accesses against the writes of others.
    #[inline(always)]
    fn check_writes(
        &self,
        w: usize,
        access: &Access,
        plan: &Plan,
        words: (usize, usize, usize),
        writing: bool,
    ) -> Result<(), Trouble> {
        let safe = self.safe[w] << TIME_SHIFT;
        let mut late = false;
        for write in &self.writes[words.1..words.1 + words.2] {
            late |= *write >= safe;
        }
        if late { self.race_with_writes(w, access, plan, words, writing) } else { Ok(()) }
    }

    /// Checks a read by warp `w` and notes it.
    #[inline(always)]
    pub fn read(
        &mut self,
        w: usize,
        access: &Access,
        plan: &Plan,
        base: u64,
        on: Checks,
    ) -> Result<(), Trouble> {
        self.bounds(access, plan, base)?;
        let mut word = 0;
        for run in &plan.runs {
            let start = base.wrapping_add_signed(run.at) as usize;
            self.check_states(access, (start, run.len as usize), on)?;
            if on.races {
                let (first, count) = Self::words_of(start, run.len as usize);
                self.check_writes(w, access, plan, (word, first, count), false)?;
                let stamp = self.now << TIME_SHIFT;
                let reads = &mut self.reads[w * self.words + first..][..count];
                for (read, code) in reads.iter_mut().zip(&plan.codes[word..word + count]) {
                    let mine = stamp | u32::from(*code);
                    let old = *read;
                    let differs = if (old ^ mine) & 31 != 0 { MULTI } else { 0 };
                    *read = if (old ^ mine) >> TIME_SHIFT == 0 { old | mine | differs } else { mine };
                }
                word += count;
            }
        }
        Ok(())
    }

    /// Checks a write by warp `w` and notes it; the bytes become `state`.
    #[inline(always)]
    pub fn write(
        &mut self,
        w: usize,
        access: &Access,
        plan: &Plan,
        base: u64,
        (on, state): (Checks, u8),
    ) -> Result<(), Trouble> {
        self.bounds(access, plan, base)?;
        let mut word = 0;
        for run in &plan.runs {
            let start = base.wrapping_add_signed(run.at) as usize;
            let states = &mut self.state[start..start + run.len as usize];
            let mut any = 0;
            for byte in states.iter_mut() {
                any |= *byte;
                *byte = state;
            }
            if any & PENDING != 0 {
                return Err(self.bad_state(access, start, run.len as usize, on, "write"));
            }
            if on.races {
                let (first, count) = Self::words_of(start, run.len as usize);
                self.check_writes(w, access, plan, (word, first, count), true)?;
                let safe = self.safe[w] << TIME_SHIFT;
                for v in 0..self.warps {
                    let mut late = false;
                    for read in &self.reads[v * self.words + first..][..count] {
                        late |= *read >= safe;
                    }
                    if late {
                        self.race_with_reads(w, v, access, plan, (word, first, count))?;
                    }
                }
                let stamp = self.now << TIME_SHIFT | (w as u32) << 5;
                let writes = &mut self.writes[first..first + count];
                let masks = &mut self.write_masks[first..first + count];
                for ((write, mask), code) in writes.iter_mut().zip(masks).zip(&plan.codes[word..word + count])
                {
                    let code = u32::from(*code);
                    let split = if code & SPLIT != 0 { WRITE_SPLIT } else { 0 };
                    *write = stamp | split | code & 31;
                    *mask = (code >> BYTES_SHIFT) as u8;
                }
                word += count;
            }
        }
        Ok(())
    }

    /// Checks an atomic: in bounds, written, and not racing with plain writes. Atomics do not race with each
    /// other.
    pub fn update(
        &mut self,
        w: usize,
        access: &Access,
        plan: &Plan,
        base: u64,
        on: Checks,
    ) -> Result<(), Trouble> {
        self.bounds(access, plan, base)?;
        let mut word = 0;
        for run in &plan.runs {
            let start = base.wrapping_add_signed(run.at) as usize;
            self.check_states(access, (start, run.len as usize), on)?;
            let (first, count) = Self::words_of(start, run.len as usize);
            if on.races {
                self.check_writes(w, access, plan, (word, first, count), false)?;
            }
            word += count;
            self.state[start..start + run.len as usize].fill(WRITTEN);
        }
        Ok(())
    }

    /// Notes that warp `w`'s asynchronous copy has landed: visible to the copying lanes now, to others after
    /// a barrier.
    pub fn landed(&mut self, w: usize, lane: u32, start: usize, len: usize) {
        self.state[start..start + len].fill(WRITTEN);
        let record = self.now << TIME_SHIFT | (w as u32) << 5 | lane;
        let (first, last) = (start / 4, (start + len).div_ceil(4));
        self.writes[first..last].fill(record);
        self.write_masks[first..last].fill(15);
    }

    /// Why the states of a range forbid an access.
    #[cold]
    fn bad_state(&self, access: &Access, start: usize, len: usize, on: Checks, what: &str) -> Trouble {
        let range = start..start + len;
        if what == "write" {
            let message = format!(
                "write to shared bytes {start:#x}..{:#x}, which an asynchronous copy still owns: no wait before",
                start + len
            );
            return Trouble::new(FaultKind::PendingAsyncCopy, access.owner(start as u64), message);
        }
        let pending = range.clone().find(|at| self.state[*at] & PENDING != 0);
        if let Some(at) = pending {
            let message = format!(
                "read of shared byte {at:#x} while its asynchronous copy is pending: no wait has completed it"
            );
            return Trouble::new(FaultKind::PendingAsyncCopy, access.owner(at as u64), message);
        }
        let at = range.clone().find(|at| on.uninit && self.state[*at] == UNWRITTEN).unwrap_or(start);
        let message = format!("read of shared byte {at:#x}, which the block has not written");
        Trouble::new(FaultKind::UninitialisedRead, access.owner(at as u64), message)
    }

    /// Looks word by word at writes that are not settled for warp `w`.
    #[cold]
    fn race_with_writes(
        &self,
        w: usize,
        access: &Access,
        plan: &Plan,
        (word, first, count): (usize, usize, usize),
        writing: bool,
    ) -> Result<(), Trouble> {
        for at in 0..count {
            let record = self.writes[first + at];
            let (time, warp, lane) = (record >> TIME_SHIFT, (record >> 5 & 31) as usize, record & 31);
            let code = u32::from(plan.codes[word + at]);
            let split = record & WRITE_SPLIT != 0 || code & SPLIT != 0;
            let mine = warp == w && (split || code & MULTI == 0 && code & 31 == lane);
            let overlap = u32::from(self.write_masks[first + at]) & code >> BYTES_SHIFT & 15;
            if time < self.known[w][warp] || mine || overlap == 0 {
                continue;
            }
            let what = if writing { "write" } else { "read" };
            return Err(self.race(w, access, first + at, (what, "written", warp, Some(lane))));
        }
        Ok(())
    }

    #[cold]
    fn race_with_reads(
        &self,
        w: usize,
        v: usize,
        access: &Access,
        plan: &Plan,
        (word, first, count): (usize, usize, usize),
    ) -> Result<(), Trouble> {
        for at in 0..count {
            let record = self.reads[v * self.words + first + at];
            let time = record >> TIME_SHIFT;
            let code = u32::from(plan.codes[word + at]);
            let several = (record | code) & MULTI != 0;
            let split = (record | code) & SPLIT != 0;
            let mine = v == w && (split || !several && record & 31 == code & 31);
            if time < self.known[w][v] || mine || (record & code) >> BYTES_SHIFT & 15 == 0 {
                continue;
            }
            let lane = (record & MULTI == 0).then_some(record & 31);
            return Err(self.race(w, access, first + at, ("write", "read", v, lane)));
        }
        Ok(())
    }

    fn race(
        &self,
        w: usize,
        access: &Access,
        word: usize,
        (what, other, warp, lane): (&str, &str, usize, Option<u32>),
    ) -> Trouble {
        let who = match lane {
            Some(lane) => format!("warp {warp} lane {lane}"),
            None => format!("several lanes of warp {warp}"),
        };
        let (kind, missing) = if warp == w {
            (FaultKind::WarpRace, "__syncwarp or barrier")
        } else {
            (FaultKind::SharedRace, "barrier")
        };
        let message =
            format!("{what} of shared word {:#x}, {other} by {who} with no {missing} in between", word * 4);
        Trouble::new(kind, access.owner(word as u64 * 4), message)
    }
}
