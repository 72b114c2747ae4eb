//! Device memory: allocation, plain and stream-ordered.

use std::collections::HashSet;

use ptxemu::{Allocation, Memory, Options};

use crate::driver::Driver;
use crate::emulator;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Call, Handle, Out, entry_points};
use crate::queue::Work;

/// The handle of the device's one memory pool.
pub const POOL: Handle = 0x100;

/// The device's memory, with what is queued to be freed.
pub struct DeviceMemory {
    /// The emulator's memory.
    pub emulated: Memory,
    /// Allocations whose freeing is queued on a stream: no later call may name them.
    leaving: HashSet<u64>,
    count: u64,
}

impl DeviceMemory {
    /// `bytes` of memory.
    ///
    /// # Panics
    /// When the system has no address space for it; the entry points turn that into an unknown error.
    pub fn new(bytes: u64) -> DeviceMemory {
        let emulated = Memory::new(Options { limit: bytes, ..Options::default() });
        DeviceMemory {
            emulated: emulated.unwrap_or_else(|fault| panic!("{fault}")),
            leaving: HashSet::new(),
            count: 0,
        }
    }

    /// Bytes of the device.
    pub fn total(&self) -> u64 {
        self.emulated.limit()
    }

    /// Bytes not in use.
    pub fn free_bytes(&self) -> u64 {
        self.total() - self.emulated.in_use()
    }

    /// The allocation around `address`, unless it is about to be freed.
    pub fn allocation(&self, address: u64) -> Option<Allocation> {
        self.emulated.allocation(address).filter(|allocation| !self.leaving.contains(&allocation.address))
    }

    /// Checks that `bytes` bytes from `address` on lie in one allocation.
    pub fn check(&self, address: u64, bytes: u64) -> Result<(), String> {
        match self.allocation(address) {
            Some(allocation) if address - allocation.address + bytes <= allocation.bytes => Ok(()),
            _ if bytes == 0 => Ok(()),
            _ => Err(format!(
                "{bytes} bytes of device memory at {address:#x}: {}",
                self.emulated.describe(address)
            )),
        }
    }

    /// Frees an allocation now.
    pub fn release(&mut self, address: u64) -> Outcome {
        self.leaving.remove(&address);
        self.emulated.free(address).map_err(|fault| {
            eprintln!("ptxemu: {fault}");
            CUresult::INVALID_VALUE
        })
    }
}

impl Driver {
    fn allocate(&mut self, call: &mut Call, place: Out<u64>, bytes: usize) -> Outcome {
        call.note(format_args!("bytes={bytes}"));
        if bytes == 0 || place.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        if self.memory.free_bytes() < bytes as u64 {
            // Queued work may free some: a driver would wait for it before giving up.
            self.run_everything()?;
        }
        self.memory.count += 1;
        let label = format!("allocation {}", self.memory.count);
        let address = self.memory.emulated.alloc(bytes as u64, &label);
        let address =
            address.map_err(|fault| call.refuse(emulator::result_of(&fault), format_args!("{fault}")))?;
        call.note(format_args!("address={address:#x}"));
        place.set(address)
    }

    fn allocation_start(&self, call: &Call, address: u64) -> Outcome<Allocation> {
        self.memory.allocation(address).filter(|allocation| allocation.address == address).ok_or_else(|| {
            let place = self.memory.emulated.describe(address);
            call.refuse(
                CUresult::INVALID_VALUE,
                format_args!("{address:#x} is not the start of an allocation: {place}"),
            )
        })
    }
}

entry_points! {
    /// Allocates device memory, aligned to 256 bytes, uninitialised.
    healthy fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) |call, driver| {
        driver.refuse_unsafe_while_capturing()?;
        driver.allocate(call, address, bytes)
    }

    /// Allocates rows of device memory, each aligned to 512 bytes.
    healthy fn cuMemAllocPitch_v2(
        address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, _element: u32,
    ) |call, driver| {
        driver.refuse_unsafe_while_capturing()?;
        let row = width.next_multiple_of(512);
        pitch.set(row)?;
        driver.allocate(call, address, row.saturating_mul(height))
    }

    /// Waits for everything that is queued, as a driver does, and frees the memory.
    healthy fn cuMemFree_v2(address: u64) |call, driver| {
        call.note(format_args!("address={address:#x}"));
        if address == 0 {
            return Ok(());
        }
        driver.refuse_unsafe_while_capturing()?;
        driver.allocation_start(call, address)?;
        driver.run_everything()?;
        driver.memory.release(address)
    }

    /// Allocates at once; only work that follows on the stream may rely on it.
    healthy fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Handle) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        driver.refuse_in_capture(call, stream, "stream-ordered allocation")?;
        driver.allocate(call, address, bytes)
    }

    /// As `cuMemAllocAsync`: the pool is the device's memory.
    healthy fn cuMemAllocFromPoolAsync(
        address: Out<u64>, bytes: usize, pool: Handle, stream: Handle,
    ) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        if pool != POOL {
            return Err(CUresult::INVALID_HANDLE);
        }
        driver.refuse_in_capture(call, stream, "stream-ordered allocation")?;
        driver.allocate(call, address, bytes)
    }

    /// Queues the freeing.
    healthy fn cuMemFreeAsync(address: u64, stream: Handle) |call, driver| {
        call.note(format_args!("address={address:#x} stream={stream:#x}"));
        if address == 0 {
            return Ok(());
        }
        driver.refuse_in_capture(call, stream, "stream-ordered freeing")?;
        driver.allocation_start(call, address)?;
        driver.enqueue(stream, Work::Free(address))?;
        driver.memory.leaving.insert(address);
        Ok(())
    }

    /// Free and total bytes.
    healthy fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |call, driver| {
        call.note(format_args!("free={} total={}", driver.memory.free_bytes(), driver.memory.total()));
        free.set(driver.memory.free_bytes() as usize)?;
        total.set(driver.memory.total() as usize)
    }

    /// Start and size of the allocation around an address.
    healthy fn cuMemGetAddressRange_v2(start: Out<u64>, bytes: Out<usize>, address: u64) |call, driver| {
        call.note(format_args!("address={address:#x}"));
        let allocation = driver.memory.allocation(address).ok_or(CUresult::NOT_FOUND)?;
        start.offer(allocation.address);
        bytes.offer(allocation.bytes as usize);
        Ok(())
    }

    /// Bytes in use now or at most; other attributes are kept by nobody.
    healthy fn cuMemPoolGetAttribute(_pool: Handle, attribute: u32, value: Out<u64>) |_, driver| {
        match attribute {
            5 | 7 => value.set(driver.memory.emulated.in_use()),
            6 | 8 => value.set(driver.memory.emulated.peak()),
            // Reuse policies are 32-bit switches: all are on.
            1..=3 => value.cast::<u32>().set(1),
            4 => value.set(u64::MAX),
            _ => Err(CUresult::INVALID_VALUE),
        }
    }

    /// Accepted without effect: freed memory goes back at once.
    healthy fn cuMemPoolSetAttribute(_pool: Handle, attribute: u32, _value: Handle) |_, _| {
        if (1..=8).contains(&attribute) { Ok(()) } else { Err(CUresult::INVALID_VALUE) }
    }

    /// Nothing to trim: freed memory goes back at once.
    healthy fn cuMemPoolTrimTo(_pool: Handle, _bytes: usize) |_, _| {
        Ok(())
    }

    /// The device's own pool is the only one.
    healthy fn cuDeviceSetMemPool(_device: i32, pool: Handle) |_, _| {
        if pool == POOL { Ok(()) } else { Err(CUresult::INVALID_HANDLE) }
    }
}
