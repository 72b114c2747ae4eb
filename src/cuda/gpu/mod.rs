//! What programs are made for: a device's capabilities and the arithmetic; the rates that cost models count
//! with, the GPUs that NVIDIA publishes, and the least time that a step can take.

mod published;
pub mod rates;
pub mod roofline;

pub use crate::tensor::Precision;
pub use published::{GPUS, Gpu, find};

use serde::{Deserialize, Serialize};

/// What a kernel is chosen for, besides the site: the device and the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The device.
    pub caps: Caps,
    /// The arithmetic.
    pub precision: Precision,
}

/// What launches need to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Compute capability, such as (9, 0).
    pub compute: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory of a block, in bytes, with the opt-in above 48 KiB.
    pub shared_per_block: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_per_multiprocessor: u32,
    /// Bytes of the L2 cache.
    pub l2_bytes: u32,
    /// Clock of the multiprocessors, in MHz.
    pub clock_mhz: u32,
    /// Bandwidth of device memory, in GB/s.
    pub bandwidth_gbs: u32,
}

impl Caps {
    /// An H100 SXM, from NVIDIA's data sheet: what plans are printed for where no device is asked.
    pub const H100: Caps = Caps {
        compute: (9, 0),
        multiprocessors: 132,
        shared_per_block: 232_448,
        shared_per_multiprocessor: 233_472,
        l2_bytes: 50 << 20,
        clock_mhz: 1830,
        bandwidth_gbs: 3350,
    };
}
