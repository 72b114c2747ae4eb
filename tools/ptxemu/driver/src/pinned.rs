//! Page-locked host memory: only copies from and to it are asynchronous with respect to the caller. Where
//! kernels can reach it, they reach a copy on the device, which takes the host's bytes before each launch and
//! gives them back after it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::slice;

use ptxemu::{Fault, Memory};

use crate::emulator;
use crate::error::{CUresult, Outcome};
use crate::ffi::{HostPtr, Out, entry_points};

const PAGE: usize = 4096;

/// Ranges of page-locked memory by their first address.
#[derive(Default)]
pub struct PinnedMemory(BTreeMap<usize, Range>);

#[derive(Clone, Copy)]
struct Range {
    bytes: usize,
    flags: u32,
    /// Whether the driver allocated it, or the caller registered memory of its own.
    owned: bool,
    /// The copy that kernels reach, once its address was asked for.
    on_device: Option<u64>,
}

impl PinnedMemory {
    fn around(&self, address: usize) -> Option<(usize, Range)> {
        let (&start, &range) = self.0.range(..=address).next_back()?;
        (address - start < range.bytes).then_some((start, range))
    }

    /// Whether `bytes` bytes from `address` on are page-locked.
    pub fn holds(&self, address: HostPtr, bytes: usize) -> bool {
        self.around(address.address())
            .is_some_and(|(start, range)| address.address() - start + bytes <= range.bytes)
    }

    /// Start and size of the range around an address.
    pub fn range(&self, address: u64) -> Option<(usize, usize)> {
        self.around(address as usize).map(|(start, range)| (start, range.bytes))
    }

    fn allocate(&mut self, place: Out<HostPtr>, bytes: usize, flags: u32) -> Outcome {
        if bytes == 0 || place.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| CUresult::OUT_OF_MEMORY)?;
        // SAFETY: the layout's size is not 0.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(CUresult::OUT_OF_MEMORY);
        }
        self.0.insert(memory as usize, Range { bytes, flags, owned: true, on_device: None });
        place.set(HostPtr(memory.cast()))
    }

    fn free(&mut self, memory: HostPtr, emulated: &Memory) -> Outcome {
        let start = memory.address();
        let range = self.0.get(&start).filter(|range| range.owned).copied().ok_or(CUresult::INVALID_VALUE)?;
        self.remove(start, emulated)?;
        let layout = Layout::from_size_align(range.bytes, PAGE).map_err(|_| CUresult::INVALID_VALUE)?;
        // SAFETY: `allocate` made this range with this layout, and it has just left the table.
        unsafe { dealloc(memory.0.cast(), layout) };
        Ok(())
    }

    /// Forgets a range, and frees its copy on the device.
    fn remove(&mut self, start: usize, emulated: &Memory) -> Outcome {
        match self.0.remove(&start).and_then(|range| range.on_device) {
            Some(copy) => emulated.free(copy).map_err(emulator::report_fault),
            None => Ok(()),
        }
    }

    /// Where kernels reach the byte at `address`.
    fn map(&mut self, address: usize, emulated: &Memory) -> Outcome<u64> {
        let (start, mut range) = self.around(address).ok_or(CUresult::INVALID_VALUE)?;
        let copy = match range.on_device {
            Some(copy) => copy,
            None => {
                emulated.alloc(range.bytes as u64, "mapped host memory").map_err(emulator::report_fault)?
            }
        };
        range.on_device = Some(copy);
        self.0.insert(start, range);
        Ok(copy + (address - start) as u64)
    }

    /// The host's bytes go to the device before a launch.
    pub fn before_launch(&self, emulated: &Memory) -> Result<(), Fault> {
        self.mapped().try_for_each(|(start, bytes, copy)| {
            // SAFETY: page-locked memory, which its owner keeps until it is no longer page-locked.
            emulated.write(copy, unsafe { slice::from_raw_parts(start as *const u8, bytes) })
        })
    }

    /// What kernels left there comes back.
    pub fn after_launch(&self, emulated: &Memory) -> Result<(), Fault> {
        self.mapped().try_for_each(|(start, bytes, copy)| {
            // SAFETY: as above; the host may not touch it before it has waited for the launch.
            emulated.read_raw(copy, unsafe { slice::from_raw_parts_mut(start as *mut u8, bytes) })
        })
    }

    fn mapped(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        self.0.iter().filter_map(|(&start, range)| Some((start, range.bytes, range.on_device?)))
    }
}

entry_points! {
    /// Allocates page-locked memory.
    healthy fn cuMemHostAlloc(memory: Out<HostPtr>, bytes: usize, flags: u32) |call, driver| {
        call.note(format_args!("bytes={bytes} flags={flags}"));
        driver.refuse_unsafe_while_capturing()?;
        if flags > 7 {
            return Err(CUresult::INVALID_VALUE);
        }
        driver.pinned.allocate(memory, bytes, flags)
    }

    /// Allocates page-locked memory.
    healthy fn cuMemAllocHost_v2(memory: Out<HostPtr>, bytes: usize) |call, driver| {
        call.note(format_args!("bytes={bytes}"));
        driver.refuse_unsafe_while_capturing()?;
        driver.pinned.allocate(memory, bytes, 0)
    }

    /// Waits for everything that is queued, as a driver does, and frees page-locked memory.
    healthy fn cuMemFreeHost(memory: HostPtr) |call, driver| {
        call.note(format_args!("memory={:#x}", memory.address()));
        driver.refuse_unsafe_while_capturing()?;
        driver.run_everything()?;
        driver.pinned.free(memory, &driver.memory.emulated)
    }

    /// Page-locks memory of the caller's.
    healthy fn cuMemHostRegister_v2(memory: HostPtr, bytes: usize, flags: u32) |call, driver| {
        call.note(format_args!("bytes={bytes} flags={flags}"));
        driver.refuse_unsafe_while_capturing()?;
        let start = memory.address();
        if start == 0 || bytes == 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        let last = start + (bytes - 1);
        if driver.pinned.around(start).is_some() || driver.pinned.0.range(start..=last).next().is_some() {
            return Err(CUresult::HOST_MEMORY_ALREADY_REGISTERED);
        }
        driver.pinned.0.insert(start, Range { bytes, flags, owned: false, on_device: None });
        Ok(())
    }

    /// Waits for everything that is queued and makes the memory pageable again.
    healthy fn cuMemHostUnregister(memory: HostPtr) |_, driver| {
        driver.run_everything()?;
        let start = memory.address();
        driver.pinned.0.get(&start).filter(|range| !range.owned).ok_or(CUresult::HOST_MEMORY_NOT_REGISTERED)?;
        driver.pinned.remove(start, &driver.memory.emulated)
    }

    /// Where kernels reach page-locked memory.
    healthy fn cuMemHostGetDevicePointer_v2(device: Out<u64>, memory: HostPtr, flags: u32) |call, driver| {
        call.note(format_args!("memory={:#x}", memory.address()));
        driver.refuse_unsafe_while_capturing()?;
        if flags != 0 || device.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        let address = driver.pinned.map(memory.address(), &driver.memory.emulated)?;
        device.set(address)
    }

    /// The flags that page-locked memory was made with.
    healthy fn cuMemHostGetFlags(flags: Out<u32>, memory: HostPtr) |_, driver| {
        let (_, range) = driver.pinned.around(memory.address()).ok_or(CUresult::INVALID_VALUE)?;
        flags.set(range.flags)
    }
}
