//! The simulated device's global memory.
//!
//! One large address range is reserved (not committed) from the system, with a shadow of one state byte per
//! byte (allocated, initialised, writable, freed) and records of who uses what during a launch
//! ([`crate::records`]). Device addresses are [`BASE`] + offset. Every allocation lies between red zones that
//! are never accessible, and addresses are handed out in ascending order: a freed range comes back only once
//! the whole range is used up, so that a stale pointer hits freed memory, not somebody else's.
//!
//! The emulated blocks share this memory between host threads, as real blocks share theirs. Device accesses
//! are therefore relaxed atomics; host accesses must not overlap a launch (the driver runs one after the
//! other).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};

use crate::fault::{Fault, FaultKind};
use crate::records::{EPOCHS, Records};

/// Device address of the first byte of the range.
pub const BASE: u64 = 0x0a_0000_0000;

/// State bit: the byte belongs to a live allocation.
pub(crate) const ALLOCATED: u8 = 1;
/// State bit: somebody has written the byte.
pub(crate) const INITIALISED: u8 = 2;
/// State bit: kernels may write the byte.
pub(crate) const WRITABLE: u8 = 4;
/// State bit: the byte belonged to an allocation that was freed.
pub(crate) const FREED: u8 = 8;

const ALIGN: u64 = 256;

/// How large a device to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes that may be allocated at a time: the simulated device's memory.
    pub limit: u64,
    /// Address range to reserve, at least `limit`; addresses are reused only when it is exhausted. Halved
    /// until the system grants it.
    pub address_space: u64,
    /// Inaccessible bytes kept between allocations, rounded up to 256.
    pub red_zone: u64,
}

impl Default for Options {
    /// 16 GiB of memory in a range of 64 GiB, red zones of 4 KiB.
    fn default() -> Options {
        Options { limit: 16 << 30, address_space: 64 << 30, red_zone: 4096 }
    }
}

/// A live allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// First device address.
    pub address: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// The label given to [`Memory::alloc`].
    pub label: String,
}

#[derive(Default)]
struct Table {
    /// Live allocations by offset: bytes, label.
    live: BTreeMap<u64, (u64, String)>,
    /// Freed ranges by offset, for messages: bytes, label. An entry leaves when its range is reused.
    freed: BTreeMap<u64, (u64, String)>,
    /// Ranges (offset, span) to reuse once the range is exhausted, oldest first.
    reusable: VecDeque<(u64, u64)>,
    /// Offset of the first byte never handed out.
    top: u64,
    in_use: u64,
    peak: u64,
}

/// The simulated device's global memory: allocation, host accesses, and shadow state. Shareable between
/// threads.
pub struct Memory {
    data: MmapMut,
    state: MmapMut,
    /// Uses of the running launch.
    pub(crate) records: Records,
    size: u64,
    options: Options,
    table: Mutex<Table>,
    /// Launches since the race shadows were last cleared.
    epoch: AtomicU32,
    /// Held by the launch that runs.
    turn: Mutex<()>,
}

impl Memory {
    /// Reserves the address range. No memory is committed until it is written.
    ///
    /// # Errors
    /// [`FaultKind::OutOfMemory`] when the system grants not even 256 MiB of address space.
    pub fn new(options: Options) -> Result<Memory, Fault> {
        let red_zone = options.red_zone.next_multiple_of(ALIGN).max(ALIGN);
        let mut size = options.address_space.max(options.limit).next_multiple_of(4096).max(256 << 20);
        loop {
            let map = || {
                let len = usize::try_from(size).map_err(std::io::Error::other)?;
                MmapOptions::new().len(len).no_reserve_swap().map_anon()
            };
            match (map(), map(), Records::new(size)) {
                (Ok(data), Ok(state), Ok(records)) => {
                    let table = Mutex::new(Table { top: red_zone, ..Table::default() });
                    let options = Options { red_zone, address_space: size, limit: options.limit.min(size) };
                    return Ok(Memory {
                        data,
                        state,
                        records,
                        size,
                        options,
                        table,
                        epoch: AtomicU32::new(0),
                        turn: Mutex::new(()),
                    });
                }
                (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) if size <= 256 << 20 => {
                    let message = format!("cannot reserve {size} bytes of address space: {e}");
                    return Err(Fault::host(FaultKind::OutOfMemory, message));
                }
                _ => size /= 2,
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Allocates `bytes` (at least 1), 256-byte aligned and uninitialised, between red zones. `label` names
    /// it in messages.
    ///
    /// # Errors
    /// [`FaultKind::OutOfMemory`] beyond [`Options::limit`].
    pub fn alloc(&self, bytes: u64, label: &str) -> Result<u64, Fault> {
        let mut table = self.table();
        let free = self.options.limit.saturating_sub(table.in_use);
        if bytes > free {
            let message = format!("`{label}` needs {bytes} bytes; {free} of {} are free", self.options.limit);
            return Err(Fault::host(FaultKind::OutOfMemory, message));
        }
        let bytes = bytes.max(1);
        let span = bytes.next_multiple_of(ALIGN) + self.options.red_zone;
        let offset = if self.size - table.top >= span {
            let offset = table.top;
            table.top += span;
            offset
        } else {
            self.reuse(&mut table, span).ok_or_else(|| {
                let message = format!("`{label}` needs {bytes} bytes: the address range is exhausted");
                Fault::host(FaultKind::OutOfMemory, message)
            })?
        };
        self.set_state(offset, bytes, ALLOCATED | WRITABLE);
        table.live.insert(offset, (bytes, label.to_owned()));
        table.in_use += bytes;
        table.peak = table.peak.max(table.in_use);
        Ok(BASE + offset)
    }

    /// Takes a freed range of at least `span` bytes: the oldest that fits, after merging neighbours.
    fn reuse(&self, table: &mut Table, span: u64) -> Option<u64> {
        let fits = |table: &Table| table.reusable.iter().position(|r| r.1 >= span);
        if fits(table).is_none() {
            let mut ranges: Vec<_> = table.reusable.drain(..).collect();
            ranges.sort_unstable();
            for (offset, len) in ranges {
                match table.reusable.back_mut() {
                    Some(last) if last.0 + last.1 == offset => last.1 += len,
                    _ => table.reusable.push_back((offset, len)),
                }
            }
        }
        let at = fits(table)?;
        let (offset, len) = table.reusable.remove(at)?;
        if len > span {
            table.reusable.push_back((offset + span, len - span));
        }
        let stale: Vec<u64> = table.freed.range(offset..offset + span).map(|f| *f.0).collect();
        for key in stale {
            table.freed.remove(&key);
        }
        self.set_state(offset, span, 0);
        Some(offset)
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    /// [`FaultKind::DoubleFree`], or [`FaultKind::InvalidFree`] for an address `alloc` did not return.
    pub fn free(&self, address: u64) -> Result<(), Fault> {
        let offset = address.wrapping_sub(BASE);
        let mut table = self.table();
        let Some((bytes, label)) = table.live.remove(&offset) else {
            drop(table);
            let double = self.table().freed.contains_key(&offset);
            let kind = if double { FaultKind::DoubleFree } else { FaultKind::InvalidFree };
            return Err(Fault::host(kind, format!("free of {address:#x}: {}", self.describe(address))));
        };
        self.set_state(offset, bytes, FREED);
        let (first, last) = (offset.next_multiple_of(4096), (offset + bytes) & !4095);
        if last > first {
            // SAFETY: whole pages of an allocation nobody owns any more; they read as zero from here on,
            // which nothing relies on.
            let advice = unsafe {
                let (at, len) = (first as usize, (last - first) as usize);
                self.data.unchecked_advise_range(UncheckedAdvice::DontNeed, at, len)
            };
            // Failing to give pages back costs memory, not correctness.
            drop(advice);
        }
        table.in_use -= bytes;
        table.reusable.push_back((offset, bytes.next_multiple_of(ALIGN) + self.options.red_zone));
        table.freed.insert(offset, (bytes, label));
        Ok(())
    }

    /// Makes an allocation read-only for kernels (constant memory). Host writes stay possible.
    ///
    /// # Errors
    /// [`FaultKind::InvalidFree`] if `address` is not an allocation's first address.
    pub fn protect(&self, address: u64) -> Result<(), Fault> {
        let offset = address.wrapping_sub(BASE);
        let Some((bytes, _)) = self.table().live.get(&offset).cloned() else {
            return Err(Fault::host(
                FaultKind::InvalidFree,
                format!("protect {address:#x}: {}", self.describe(address)),
            ));
        };
        for state in self.host_states(offset, bytes) {
            *state &= !WRITABLE;
        }
        Ok(())
    }

    /// The live allocation that holds `address`.
    pub fn allocation(&self, address: u64) -> Option<Allocation> {
        let offset = address.checked_sub(BASE)?;
        let table = self.table();
        let (start, (bytes, label)) = table.live.range(..=offset).next_back()?;
        (offset < start + bytes).then(|| Allocation {
            address: BASE + start,
            bytes: *bytes,
            label: label.clone(),
        })
    }

    /// All live allocations in address order.
    pub fn allocations(&self) -> Vec<Allocation> {
        let table = self.table();
        let to = |(offset, (bytes, label)): (&u64, &(u64, String))| Allocation {
            address: BASE + offset,
            bytes: *bytes,
            label: label.clone(),
        };
        table.live.iter().map(to).collect()
    }

    /// Bytes in live allocations.
    pub fn in_use(&self) -> u64 {
        self.table().in_use
    }

    /// The highest value [`Memory::in_use`] has had.
    pub fn peak(&self) -> u64 {
        self.table().peak
    }

    /// The simulated device's size in bytes.
    pub fn limit(&self) -> u64 {
        self.options.limit
    }

    /// Host write; the bytes become initialised.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`] or [`FaultKind::UseAfterFree`], naming the nearest allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let offset = self.host_range(address, bytes.len() as u64, "host write")?;
        // SAFETY: the range lies in one live allocation inside the mapping, and host accesses do not overlap
        // launches.
        unsafe { self.data_ptr(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.initialise(offset, bytes.len() as u64);
        Ok(())
    }

    /// Host read.
    ///
    /// # Errors
    /// As [`Memory::write`], and [`FaultKind::UninitialisedRead`] with the first byte that nobody has
    /// written.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let offset = self.host_range(address, bytes.len() as u64, "host read")?;
        if let Some(at) = self.first_without(offset, bytes.len() as u64, INITIALISED) {
            let message = format!(
                "host read of {} bytes at {address:#x}: byte {} was never written; {}",
                bytes.len(),
                at - offset,
                self.describe(BASE + at)
            );
            return Err(Fault::host(FaultKind::UninitialisedRead, message));
        }
        self.read_raw(address, bytes)
    }

    /// Host read that permits uninitialised bytes.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn read_raw(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let offset = self.host_range(address, bytes.len() as u64, "host read")?;
        // SAFETY: the range lies in one live allocation inside the mapping, and host accesses do not overlap
        // launches.
        unsafe { self.data_ptr(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Writes `pattern` (1 to 16 bytes) `count` times from `address` on; the bytes become initialised.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), Fault> {
        let len = (pattern.len() as u64).saturating_mul(count);
        let offset = self.host_range(address, len, "host fill")?;
        for at in 0..count {
            // SAFETY: as in `write`; `at` stays below `count`.
            unsafe {
                let to = self.data_ptr(offset + at * pattern.len() as u64);
                to.copy_from_nonoverlapping(pattern.as_ptr(), pattern.len());
            }
        }
        self.initialise(offset, len);
        Ok(())
    }

    /// Copies `len` bytes between allocations (overlap permitted). Bytes stay as initialised as they were at
    /// the source.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn copy(&self, to: u64, from: u64, len: u64) -> Result<(), Fault> {
        let source = self.host_range(from, len, "copy from")?;
        let target = self.host_range(to, len, "copy to")?;
        // SAFETY: both ranges lie in live allocations inside the mappings; `copy` permits overlap.
        unsafe {
            self.data_ptr(target).copy_from(self.data_ptr(source), len as usize);
        }
        let states = self.host_states(source, len).to_vec();
        for (state, from) in self.host_states(target, len).iter_mut().zip(states) {
            *state = *state & !INITIALISED | from & INITIALISED;
        }
        Ok(())
    }

    /// One phrase on what lies at `address`: the allocation and the offset into it, or the nearest ones.
    pub fn describe(&self, address: u64) -> String {
        let table = self.table();
        let Some(offset) = address.checked_sub(BASE).filter(|o| *o < self.size) else {
            return format!("{address:#x} is no global address");
        };
        if let Some((start, (bytes, label))) = table.live.range(..=offset).next_back() {
            let end = start + bytes;
            if offset < end {
                return format!("byte {} of `{label}` ({bytes} bytes)", offset - start);
            }
            if offset - end < self.options.red_zone {
                return format!("{} bytes past the end of `{label}` ({bytes} bytes)", offset - end);
            }
        }
        if let Some((start, (bytes, label))) = table.freed.range(..=offset).next_back()
            && offset < start + bytes
        {
            return format!("byte {} of `{label}` ({bytes} bytes), which was freed", offset - start);
        }
        if let Some((start, (_, label))) = table.live.range(offset..).next()
            && start - offset <= self.options.red_zone
        {
            return format!("{} bytes before `{label}`", start - offset);
        }
        format!("{address:#x} lies in no allocation")
    }

    /// Offset of a host range, checked to lie in live allocations.
    fn host_range(&self, address: u64, len: u64, what: &str) -> Result<u64, Fault> {
        let offset = address.wrapping_sub(BASE);
        if len == 0 {
            return Ok(0);
        }
        let holds = self.allocation(address).is_some_and(|a| address - a.address + len <= a.bytes);
        if !holds {
            let kind = match self.state_at(offset) {
                Some(state) if state & FREED != 0 => FaultKind::UseAfterFree,
                _ => FaultKind::OutOfBounds,
            };
            let at = self.describe(address);
            return Err(Fault::host(kind, format!("{what} of {len} bytes at {address:#x}: {at}")));
        }
        Ok(offset)
    }

    fn initialise(&self, offset: u64, len: u64) {
        for state in self.host_states(offset, len) {
            *state |= INITIALISED;
        }
    }

    fn set_state(&self, offset: u64, len: u64, state: u8) {
        self.host_states(offset, len).fill(state);
    }

    /// The state bytes of a range, for host-side calls alone.
    #[allow(clippy::mut_from_ref)] // the mapping is interior-mutable; see the SAFETY comment
    fn host_states(&self, offset: u64, len: u64) -> &mut [u8] {
        assert!(offset <= self.size && len <= self.size - offset, "range inside the mapping");
        // SAFETY: in bounds by the assertion. Callers are host-side functions: they overlap no launch, use
        // the slice at once and either hold the table's lock or work on a range of an allocation that they
        // were handed.
        unsafe {
            std::slice::from_raw_parts_mut(self.state.as_ptr().cast_mut().add(offset as usize), len as usize)
        }
    }

    /// Size of the mapping: every offset below it may be passed to the accessors below.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// State byte at `offset`; `None` outside the range.
    pub(crate) fn state_at(&self, offset: u64) -> Option<u8> {
        (offset < self.size).then(|| self.state_cell(offset).load(Relaxed))
    }

    /// The first byte of the range whose state lacks `bits`.
    pub(crate) fn first_without(&self, offset: u64, len: u64, bits: u8) -> Option<u64> {
        let at = self.host_states(offset, len).iter().position(|state| state & bits != bits)?;
        Some(offset + at as u64)
    }

    fn state_cell(&self, offset: u64) -> &AtomicU8 {
        assert!(offset < self.size, "offset inside the mapping");
        // SAFETY: in bounds by the assertion; the mapping lives as long as `self` and is only accessed
        // atomically.
        unsafe { &*self.state.as_ptr().add(offset as usize).cast::<AtomicU8>() }
    }

    /// The state bytes: [`Memory::size`] of them.
    pub(crate) fn state_ptr(&self) -> *const u8 {
        self.state.as_ptr()
    }

    /// Waits until no launch runs; none starts while the guard lives.
    pub(crate) fn launch_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts a launch: returns its epoch for the race records, clearing them when the numbers are used up.
    pub(crate) fn next_epoch(&self) -> u32 {
        let epoch = self.epoch.load(Relaxed) + 1;
        let epoch = if epoch > EPOCHS {
            self.records.clear();
            1
        } else {
            epoch
        };
        self.epoch.store(epoch, Relaxed);
        epoch
    }

    /// Bytes of device memory at `offset` (below [`Memory::size`]).
    pub(crate) fn data_ptr(&self, offset: u64) -> *mut u8 {
        // The mapping is interior-mutable memory: `MmapMut` never hands out references to it here.
        self.data.as_ptr().wrapping_add(offset as usize).cast_mut()
    }
}
