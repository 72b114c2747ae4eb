//! Access patterns: what a warp-wide memory instruction touches, worked out once and reused.
//!
//! The lanes' addresses relative to the first active lane form a pattern, which most instructions repeat at
//! every execution. For a pattern the [`Plan`] holds the byte runs it covers (so that checks go over runs,
//! not lanes), the bank-conflict waves, and the 32-byte sectors.

use crate::fault::FaultKind;

use super::Trouble;
use super::shared::{BYTES_SHIFT, MULTI, SPLIT};

/// A warp's addresses: offsets into a space, or device addresses; 0 for inactive lanes.
pub(crate) struct Access {
    pub address: [u64; 32],
    pub mask: u32,
    /// Bytes a lane.
    pub width: u32,
}

impl Access {
    /// The active lanes.
    pub fn lanes(&self) -> impl Iterator<Item = u32> + use<> {
        let mask = self.mask;
        (0..32).filter(move |l| mask >> l & 1 != 0)
    }

    /// A lane whose bytes share a word with address `at`, the one that holds the byte itself first.
    pub fn owner(&self, at: u64) -> Option<u32> {
        let holds = |l: &u32, from: u64, len: u64| {
            let a = self.address[*l as usize];
            a < from + len && from < a + u64::from(self.width)
        };
        self.lanes().find(|l| holds(l, at, 1)).or_else(|| self.lanes().find(|l| holds(l, at & !3, 4)))
    }

    /// Address of the first active lane.
    #[inline(always)]
    pub fn base(&self) -> u64 {
        self.address[self.mask.trailing_zeros() as usize & 31]
    }

    /// Fault if an address is not a multiple of `align`.
    #[inline(always)]
    pub fn aligned(&self, align: u32, what: &str) -> Result<(), Trouble> {
        let mut low = 0;
        for l in 0..32 {
            low |= self.address[l];
        }
        if low & u64::from(align - 1) == 0 { Ok(()) } else { self.misaligned(align, what) }
    }

    #[cold]
    fn misaligned(&self, align: u32, what: &str) -> Result<(), Trouble> {
        let bad = self.lanes().find(|l| !self.address[*l as usize].is_multiple_of(u64::from(align)));
        let Some(lane) = bad else { return Ok(()) };
        let at = self.address[lane as usize];
        let message = format!("{what} of {align} bytes at {at:#x}, which is not a multiple of {align}");
        Err(Trouble::new(FaultKind::Misaligned, Some(lane), message))
    }
}

/// A contiguous range of bytes relative to the base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub at: i64,
    pub len: u32,
}

/// What a pattern covers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    mask: u32,
    phase: u32,
    relative: [i32; 32],
    pub runs: Vec<Run>,
    /// First byte and end of all runs.
    pub low: i64,
    pub high: i64,
    /// Per word of each run, in order: bytes, [`SPLIT`], [`MULTI`], lane, as in a read record without its
    /// time.
    pub codes: Vec<u16>,
    /// Two lanes whose bytes overlap.
    pub overlap: Option<(u32, u32)>,
    /// Shared-memory wavefronts, and the least that the width needs.
    pub waves: u32,
    pub ideal_waves: u32,
    /// 32-byte sectors touched, the least that would hold the bytes, and requests of up to 128 bytes.
    pub sectors: u32,
    pub ideal_sectors: u32,
    pub requests: u32,
    /// Bytes of all lanes together.
    pub lane_bytes: u32,
}

/// The recent patterns of one instruction.
#[derive(Default)]
pub(crate) struct PlanSet {
    plans: Vec<Plan>,
    next: usize,
}

const WAYS: usize = 4;

impl PlanSet {
    /// The plan of `access`. Addresses more than 2 GiB apart are a fault: no kernel of ours strides so far.
    #[inline(always)]
    pub fn find(&mut self, access: &Access) -> Result<&Plan, Trouble> {
        let base = access.base();
        let phase = (base & 31) as u32;
        let mut relative = [0_i32; 32];
        let mut far = 0;
        for l in 0..32 {
            let delta = access.address[l].wrapping_sub(base) as i64;
            let delta = if access.mask >> l & 1 != 0 { delta } else { 0 };
            relative[l] = delta as i32;
            far |= delta ^ i64::from(delta as i32);
        }
        if far != 0 {
            return Err(spread(access));
        }
        let hit = self.plans.iter().position(|plan| {
            let mut same = 0;
            for l in 0..32 {
                same |= plan.relative[l] ^ relative[l];
            }
            same == 0 && plan.mask == access.mask && plan.phase == phase
        });
        let at = match hit {
            Some(at) => at,
            None => self.add(access, relative, phase),
        };
        Ok(&self.plans[at])
    }

    #[cold]
    fn add(&mut self, access: &Access, relative: [i32; 32], phase: u32) -> usize {
        let at = self.next;
        if at == self.plans.len() {
            self.plans.push(Plan::default());
        }
        self.next = (at + 1) % WAYS;
        let plan = &mut self.plans[at];
        *plan = Plan {
            mask: access.mask,
            phase,
            relative,
            runs: std::mem::take(&mut plan.runs),
            ..Plan::default()
        };
        plan.build(access);
        at
    }
}

#[cold]
fn spread(access: &Access) -> Trouble {
    let base = access.base();
    let far = access
        .lanes()
        .find(|l| (access.address[*l as usize].wrapping_sub(base) as i64).unsigned_abs() > 1 << 31);
    let message = format!(
        "address {:#x}, {:#x} bytes from the warp's first: no allocation is that large",
        access.address[far.unwrap_or(0) as usize],
        (access.address[far.unwrap_or(0) as usize].wrapping_sub(base) as i64).unsigned_abs()
    );
    Trouble::new(FaultKind::OutOfBounds, far, message)
}

impl Plan {
    fn build(&mut self, access: &Access) {
        let width = i64::from(access.width);
        let mut order: Vec<(i64, u32)> =
            access.lanes().map(|l| (i64::from(self.relative[l as usize]), l)).collect();
        if !order.is_sorted() {
            order.sort_unstable();
        }
        self.runs.clear();
        for pair in order.windows(2) {
            if pair[1].0 < pair[0].0 + width {
                self.overlap = Some((pair[0].1, pair[1].1));
            }
        }
        for &(at, _) in &order {
            match self.runs.last_mut() {
                Some(run) if at <= run.at + i64::from(run.len) => {
                    run.len = run.len.max((at + width - run.at) as u32);
                }
                _ => self.runs.push(Run { at, len: access.width }),
            }
        }
        self.low = self.runs.first().map_or(0, |r| r.at);
        self.high = self.runs.last().map_or(0, |r| r.at + i64::from(r.len));
        self.word_codes(&order, width);
        self.count_waves(access);
        self.count_sectors(access.width);
    }

    /// Lane and bytes of every word of every run. Words are counted from the first byte's, `phase` bytes into
    /// a 32-byte sector.
    fn word_codes(&mut self, order: &[(i64, u32)], width: i64) {
        let phase = i64::from(self.phase);
        let mut starts = Vec::with_capacity(self.runs.len());
        self.codes.clear();
        for run in &self.runs {
            let first = (run.at + phase).div_euclid(4);
            let end = (run.at + phase + i64::from(run.len) + 3).div_euclid(4);
            starts.push((first, self.codes.len()));
            self.codes.resize(self.codes.len() + (end - first) as usize, 0);
        }
        let mut at_run = 0;
        for &(at, lane) in order {
            while at >= self.runs[at_run].at + i64::from(self.runs[at_run].len) {
                at_run += 1;
            }
            let (first, index) = starts[at_run];
            for byte in (at..at + width).map(|b| b + phase) {
                let code = &mut self.codes[index + (byte.div_euclid(4) - first) as usize];
                let bit = 1 << (BYTES_SHIFT as i64 + byte.rem_euclid(4));
                if *code >> BYTES_SHIFT != 0 && u32::from(*code) & 31 != lane {
                    *code |= if *code & bit != 0 { MULTI } else { SPLIT } as u16;
                }
                *code = *code & !31 | lane as u16 | bit;
            }
        }
    }

    /// Wavefronts: as many lanes go together as make 128 bytes; within them, words of one bank go one after
    /// the other.
    fn count_waves(&mut self, access: &Access) {
        let group = match access.width {
            0..=4 => 32,
            5..=8 => 16,
            9..=16 => 8,
            _ => 4,
        };
        for first in (0..32).step_by(group) {
            let lanes = (first..first + group).filter(|l| self.mask >> l & 1 != 0);
            let mut words: Vec<i64> = Vec::new();
            for l in lanes {
                let at = i64::from(self.relative[l]) + i64::from(self.phase);
                let end = (at + i64::from(access.width) + 3).div_euclid(4);
                words.extend(at.div_euclid(4)..end);
            }
            if words.is_empty() {
                continue;
            }
            words.sort_unstable();
            words.dedup();
            let mut banks = [0; 32];
            for word in words {
                banks[word.rem_euclid(32) as usize] += 1;
            }
            self.waves += banks.into_iter().max().unwrap_or(0);
            self.ideal_waves += 1;
        }
    }

    fn count_sectors(&mut self, width: u32) {
        let phase = i64::from(self.phase);
        let (mut last, mut bytes) = (i64::MIN, 0);
        for run in &self.runs {
            let first = (run.at + phase).div_euclid(32).max(last.saturating_add(1));
            let end = (run.at + phase + i64::from(run.len) - 1).div_euclid(32);
            self.sectors += (end - first + 1).max(0) as u32;
            last = last.max(end);
            bytes += run.len;
        }
        self.ideal_sectors = bytes.div_ceil(32);
        self.requests = self.ideal_waves;
        self.lane_bytes = self.mask.count_ones() * width;
    }
}
