//! The device: what it says about itself, by compute capability (CUDA programming guide, "Technical
//! specifications").

use std::ffi::c_char;

use crate::driver::{driver, idle_driver};
use crate::error::CUresult;
use crate::ffi::{Out, entry_points};
use crate::settings::Settings;
use crate::{driver::Driver, report};

/// The device's name. Nobody shall mistake it for a GPU.
pub const NAME: &str = "ptxemu (PTX emulator, no GPU)";

const UUID: [u8; 16] = *b"ptxemu-not-a-gpu";

/// What devices of one compute capability differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    multiprocessors: i32,
    clock_khz: i32,
    memory_khz: i32,
    bus_bits: i32,
    l2_bytes: i32,
}

impl Size {
    /// Four multiprocessors, which small launches fill.
    pub const SMALL: Size = Size {
        multiprocessors: 4,
        clock_khz: 1_000_000,
        memory_khz: 1_000_000,
        bus_bits: 256,
        l2_bytes: 4 << 20,
    };
    /// An H100 SXM as its driver describes it: the clock is the highest that it allows.
    pub const H100: Size = Size {
        multiprocessors: 132,
        clock_khz: 1_980_000,
        memory_khz: 2_619_000,
        bus_bits: 5120,
        l2_bytes: 50 << 20,
    };
}

/// The limits of a compute capability, and a size.
pub struct Model {
    capability: (u32, u32),
    size: Size,
}

impl Model {
    /// Most threads of a block.
    pub const MAX_THREADS: u32 = 1024;
    /// Most threads of a block along x, y and z.
    pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
    /// Most blocks of a grid along x, y and z.
    pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
    /// Shared memory that a block may use without asking for more, in bytes.
    pub const SHARED_PER_BLOCK: u32 = 48 << 10;
    /// Threads of a warp.
    pub const WARP: u32 = 32;

    /// The limits of `capability`, for a device of this size.
    pub fn new(capability: (u32, u32), size: Size) -> Model {
        Model { capability, size }
    }

    /// Multiprocessors of the device.
    pub fn multiprocessors(&self) -> i32 {
        self.size.multiprocessors
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Shared memory of a multiprocessor, in bytes.
    pub fn shared_per_multiprocessor(&self) -> u32 {
        1024 * match self.capability {
            (7, _) => 64,
            (8, 0 | 7) => 164,
            (8, _) | (12, _) => 100,
            _ => 228,
        }
    }

    /// Shared memory that the system keeps for itself in every block, in bytes.
    pub fn shared_reserved(&self) -> u32 {
        if self.capability.0 < 8 { 0 } else { 1024 }
    }

    /// Shared memory that a block may use after `cuFuncSetAttribute`, in bytes.
    pub fn shared_opt_in(&self) -> u32 {
        self.shared_per_multiprocessor() - self.shared_reserved()
    }

    /// Most resident threads of a multiprocessor.
    pub fn threads_per_multiprocessor(&self) -> u32 {
        match self.capability {
            (7, _) => 1024,
            (8, 0) | (9, _) | (10, _) => 2048,
            _ => 1536,
        }
    }

    /// Most resident blocks of a multiprocessor.
    pub fn blocks_per_multiprocessor(&self) -> u32 {
        match self.capability {
            (8, 0) | (9, _) | (10, _) => 32,
            (7, _) | (8, 6 | 7) => 16,
            _ => 24,
        }
    }

    /// Blocks of `threads` threads and `shared` bytes that fit on a multiprocessor. Registers are not known
    /// to PTX, hence not counted.
    pub fn resident_blocks(&self, threads: u32, shared: u32) -> u32 {
        let warps = threads.div_ceil(Self::WARP).max(1);
        let by_threads = self.threads_per_multiprocessor() / Self::WARP / warps;
        // Shared memory is handed out in units of 128 bytes.
        let block = (shared + self.shared_reserved()).next_multiple_of(128);
        let by_shared = self.shared_per_multiprocessor().checked_div(block).unwrap_or(u32::MAX);
        by_threads.min(by_shared).min(self.blocks_per_multiprocessor())
    }

    /// A `CUdevice_attribute`. Attributes of what the emulator has not (textures, managed memory, virtual
    /// memory, ...) are 0.
    fn attribute(&self, attribute: u32) -> Option<i32> {
        Some(match attribute {
            1 => Self::MAX_THREADS as i32,
            2..=4 => Self::MAX_BLOCK[attribute as usize - 2] as i32,
            5..=7 => Self::MAX_GRID[attribute as usize - 5] as i32,
            8 => Self::SHARED_PER_BLOCK as i32,
            9 => 65536,              // constant memory, bytes
            10 => Self::WARP as i32, // warp size
            11 => i32::MAX,          // greatest pitch of a copy
            12 | 82 => 65536,        // registers per block, per multiprocessor
            13 => self.size.clock_khz,
            14 | 30 => 512,              // alignment of textures and surfaces
            15 | 31 | 78 | 79 | 80 => 1, // overlap, concurrent kernels, stream priorities, L1 of global and of local memory
            16 => self.size.multiprocessors,
            36 => self.size.memory_khz,
            37 => self.size.bus_bits,
            38 => self.size.l2_bytes,
            39 => self.threads_per_multiprocessor() as i32,
            40 => 2,  // copy engines
            41 => 1,  // unified addressing
            51 => 32, // pitch alignment of textures
            75 => self.capability.0 as i32,
            76 => self.capability.1 as i32,
            81 => self.shared_per_multiprocessor() as i32,
            87 => 2,            // single to double precision performance
            95 | 99 | 115 => 1, // cooperative launch, host registration, memory pools
            97 => self.shared_opt_in() as i32,
            106 => self.blocks_per_multiprocessor() as i32,
            111 => self.shared_reserved() as i32,
            17..=147 => 0,
            _ => return None,
        })
    }
}

extern "C" fn at_exit() {
    if let Some(driver) = idle_driver().as_mut().and_then(|slot| slot.as_mut()) {
        report::at_exit(driver);
    }
}

/// Refuses a number that no device has.
pub fn known_device(driver: &Driver, device: i32) -> Result<(), CUresult> {
    if (0..driver.settings.devices).contains(&device) { Ok(()) } else { Err(CUresult::INVALID_DEVICE) }
}

/// The same for every process, another one for each device.
fn uuid(device: i32) -> [u8; 16] {
    let mut uuid = UUID;
    uuid[15] = uuid[15].wrapping_add(device as u8);
    uuid
}

entry_points! {
    /// Reads the environment and sets the device up; later calls change nothing.
    anytime fn cuInit(flags: u32) |call, ()| {
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        let mut slot = driver();
        if slot.is_none() {
            let settings = Settings::from_env().map_err(|why| call.refuse(CUresult::INVALID_VALUE, format_args!("{why}")))?;
            *slot = Some(Driver::new(settings));
            // SAFETY: `at_exit` is a plain function of this library, which stays loaded or runs it when it is
            // unloaded.
            unsafe { libc::atexit(at_exit) };
        }
        Ok(())
    }

    /// The CUDA version of this driver.
    anytime fn cuDriverGetVersion(version: Out<i32>) |call, ()| {
        let settings = Settings::from_env().map_err(|why| call.refuse(CUresult::INVALID_VALUE, format_args!("{why}")))?;
        version.set(settings.driver_version as i32)
    }

    /// Devices are their numbers.
    initialised fn cuDeviceGet(device: Out<i32>, ordinal: i32) |_, driver| {
        known_device(driver, ordinal)?;
        device.set(ordinal)
    }

    /// As many as the environment says.
    initialised fn cuDeviceGetCount(count: Out<i32>) |_, driver| {
        count.set(driver.settings.devices)
    }

    /// [`NAME`].
    initialised fn cuDeviceGetName(name: Out<c_char>, length: i32, device: i32) |_, driver| {
        known_device(driver, device)?;
        let room = usize::try_from(length).ok().and_then(|length| length.checked_sub(1)).ok_or(CUresult::INVALID_VALUE)?;
        let shown = &NAME.as_bytes()[..NAME.len().min(room)];
        for (index, &byte) in shown.iter().chain(&[0]).enumerate() {
            name.set_at(index, byte as c_char)?;
        }
        Ok(())
    }

    /// A fixed value.
    initialised fn cuDeviceGetUuid(place: Out<[u8; 16]>, device: i32) |_, driver| {
        known_device(driver, device)?;
        place.set(uuid(device))
    }

    /// A fixed value.
    initialised fn cuDeviceGetUuid_v2(place: Out<[u8; 16]>, device: i32) |_, driver| {
        known_device(driver, device)?;
        place.set(uuid(device))
    }

    /// All of the device's memory.
    initialised fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) |_, driver| {
        known_device(driver, device)?;
        bytes.set(driver.memory.total() as usize)
    }

    /// One number about the device.
    initialised fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) |call, driver| {
        call.note(format_args!("attribute={attribute}"));
        known_device(driver, device)?;
        value.set(driver.device.attribute(attribute).ok_or(CUresult::INVALID_VALUE)?)
    }

    /// Compute capability, the old way.
    initialised fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) |_, driver| {
        known_device(driver, device)?;
        let capability = driver.device.capability();
        major.set(capability.0 as i32)?;
        minor.set(capability.1 as i32)
    }

    /// A made-up place on the bus.
    initialised fn cuDeviceGetPCIBusId(text: Out<c_char>, length: i32, device: i32) |_, driver| {
        known_device(driver, device)?;
        let id = format!("0000:{device:02x}:00.0\0").into_bytes();
        if (length as usize) < id.len() {
            return Err(CUresult::INVALID_VALUE);
        }
        (0..id.len()).try_for_each(|index| text.set_at(index, id[index] as c_char))
    }

    /// There is one memory pool, which is the device's memory.
    initialised fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: i32) |_, driver| {
        known_device(driver, device)?;
        pool.set(crate::memory::POOL)
    }

    /// The same pool.
    initialised fn cuDeviceGetMemPool(pool: Out<usize>, device: i32) |_, driver| {
        known_device(driver, device)?;
        pool.set(crate::memory::POOL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_programming_guide() {
        // Capability; opt-in shared memory in KiB, threads and blocks of a multiprocessor.
        for (capability, shared, threads, blocks) in [
            ((7, 5), 64, 1024, 16),
            ((8, 0), 163, 2048, 32),
            ((8, 6), 99, 1536, 16),
            ((8, 7), 163, 1536, 16),
            ((8, 9), 99, 1536, 24),
            ((9, 0), 227, 2048, 32),
            ((10, 0), 227, 2048, 32),
            ((12, 0), 99, 1536, 24),
        ] {
            let model = Model::new(capability, Size::SMALL);
            assert_eq!(model.shared_opt_in(), shared << 10, "{capability:?}");
            assert_eq!(model.threads_per_multiprocessor(), threads, "{capability:?}");
            assert_eq!(model.blocks_per_multiprocessor(), blocks, "{capability:?}");
        }
    }

    #[test]
    fn occupancy_is_the_tightest_of_threads_shared_memory_and_blocks() {
        let model = Model::new((8, 0), Size::SMALL);
        assert_eq!(model.resident_blocks(32, 0), 32);
        assert_eq!(model.resident_blocks(1024, 0), 2);
        assert_eq!(model.resident_blocks(33, 0), 32);
        assert_eq!(model.resident_blocks(256, 48 << 10), 3);
        assert_eq!(model.resident_blocks(256, 163 << 10), 1);
    }
}
