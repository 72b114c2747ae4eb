//! Launching an entry over a grid.

use crate::fault::{Fault, FaultKind};
use crate::memory::Memory;
use crate::module::Instance;
use crate::report::Report;

/// What to launch an entry with.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y, z; each at least 1.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z; at most 1024 together.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters, packed as [`crate::Entry::params`] lays them out; its length must be [`crate::Entry::param_bytes`].
    pub params: &'a [u8],
}

/// How to execute a launch. `Config::default()` has every check on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Shuffles the order of blocks and warps and the points where warps are switched; 0 runs them in order.
    pub seed: u64,
    /// `cp.async` data lands only at the wait that guarantees it; reading it earlier is a fault. Otherwise it lands at once.
    pub late_async: bool,
    /// Reads of bytes that nobody wrote are faults.
    pub check_uninit: bool,
    /// Shared-memory and cross-block races are faults.
    pub check_races: bool,
    /// Host threads that execute blocks; 0 takes rayon's global pool.
    pub threads: usize,
    /// Upper bound on warp instructions of the launch, against endless loops.
    pub max_instructions: Option<u64>,
    /// Shared memory a block may use, static and dynamic together, in bytes.
    pub max_shared: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 0,
            late_async: true,
            check_uninit: true,
            check_races: true,
            threads: 0,
            max_instructions: None,
            max_shared: 227 << 10,
        }
    }
}

/// Executes `entry` over the grid and returns what was counted.
///
/// # Errors
/// The first [`Fault`]; if several blocks fault, the one with the lowest linear index among those that ran.
pub fn launch(
    instance: &Instance,
    entry: &str,
    launch: &Launch,
    memory: &Memory,
    config: &Config,
) -> Result<Report, Fault> {
    let _ = (instance, launch, memory, config);
    Err(Fault::host(FaultKind::InvalidLaunch, format!("no entry `{entry}`")))
}
