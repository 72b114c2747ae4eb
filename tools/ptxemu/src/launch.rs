//! Launching an entry over a grid: argument checks, then blocks in parallel.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::exec::global::Order;
use crate::exec::{Env, Incident, Machine};
use crate::fault::{Fault, FaultKind};
use crate::ir::Lanes;
use crate::memory::Memory;
use crate::module::{Entry, Instance};
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
    /// The parameters, packed as [`Entry::params`] lays them out; its length must be [`Entry::param_bytes`].
    pub params: &'a [u8],
}

/// How floating-point `mma` sums into f32. NVIDIA documents neither order nor rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MmaSum {
    /// As measured on Ampere and Ada, the coarsest of the architectures from 8.0 on (Fasi et al. 2021,
    /// "Numerical behavior of NVIDIA tensor cores"; Xie et al. 2025, "MMA-Sim"): the instruction's k in two
    /// halves (8 products of 16-bit types, 4 of TF32), of each the exact products and the accumulator aligned
    /// to the largest exponent among them, cut to 24 bits below it, added, and the sum cut to f32. Everything
    /// is cut towards zero, so long chains of sums are biased. Hopper and Blackwell keep one bit more and do
    /// not halve k.
    #[default]
    Truncated,
    /// One fused multiply-add after the other in ascending k, rounded to nearest: kinder than any hardware,
    /// and faster here.
    Nearest,
}

/// How to execute a launch. `Config::default()` has every check on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Shuffles the order of blocks and warps and the points where warps are switched; 0 runs them in order.
    pub seed: u64,
    /// `cp.async` data lands only at the wait that guarantees it; reading it earlier is a fault. Otherwise it
    /// lands at once.
    pub late_async: bool,
    /// Reads of bytes that nobody wrote are faults.
    pub check_uninit: bool,
    /// Reads of registers that the path taken has not written are faults.
    pub check_registers: bool,
    /// Shared-memory and cross-block races are faults, and stores of different values by lanes of a warp.
    pub check_races: bool,
    /// Host threads that execute blocks; 0 takes one per core, or what `RAYON_NUM_THREADS` says.
    pub threads: usize,
    /// Upper bound on warp instructions of the launch, against endless loops.
    pub max_instructions: Option<u64>,
    /// Shared memory a block may use, static and dynamic together, in bytes.
    pub max_shared: u32,
    /// How `mma` sums.
    pub mma_sum: MmaSum,
    /// Runs these blocks of the grid alone, by linear index (x first, then y, z): what the others would have
    /// written is not there, and the report counts these. `None` runs them all; a range beyond the grid is
    /// refused.
    pub blocks: Option<Range<u64>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 0,
            late_async: true,
            check_uninit: true,
            check_registers: true,
            check_races: true,
            threads: 0,
            max_instructions: None,
            max_shared: 227 << 10,
            mma_sum: MmaSum::default(),
            blocks: None,
        }
    }
}

fn invalid(entry: &str, message: String) -> Fault {
    let mut fault = Fault::host(FaultKind::InvalidLaunch, message);
    fault.kernel = Some(entry.to_owned());
    fault
}

/// Checks a launch against the entry and the device's limits; returns the threads of a block.
fn check(entry: &Entry, launch: &Launch) -> Result<u32, Fault> {
    let fail = |message: String| Err(invalid(&entry.name, message));
    let [x, y, z] = launch.block.map(u64::from);
    let threads = x * y * z;
    if threads == 0 || threads > 1024 || x > 1024 || y > 1024 || z > 64 {
        return fail(format!("a block of {x} x {y} x {z} threads: 1 to 1024 are possible, at most 64 in z"));
    }
    let [gx, gy, gz] = launch.grid;
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
        return fail(format!(
            "a grid of {gx} x {gy} x {gz} blocks: x up to 2^31-1, y and z up to 65535, none 0"
        ));
    }
    if let Some(wanted) = entry.reqntid
        && wanted != launch.block
    {
        return fail(format!("a block of {:?} threads; the kernel requires {wanted:?}", launch.block));
    }
    if let Some(most) = entry.maxntid {
        let most: u64 = most.iter().map(|n| u64::from(*n)).product();
        if threads > most {
            return fail(format!("{threads} threads a block; the kernel permits {most}"));
        }
    }
    if launch.params.len() != entry.param_bytes as usize {
        return fail(format!(
            "{} bytes of parameters; the kernel takes {}",
            launch.params.len(),
            entry.param_bytes
        ));
    }
    Ok(threads as u32)
}

/// A pool of `threads` host threads (0: rayon's default), made once per size.
fn pool(threads: usize) -> Option<Arc<ThreadPool>> {
    static POOLS: OnceLock<Mutex<HashMap<usize, Arc<ThreadPool>>>> = OnceLock::new();
    let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(pool) = pools.get(&threads) {
        return Some(pool.clone());
    }
    let pool = Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().ok()?);
    pools.insert(threads, pool.clone());
    Some(pool)
}

/// Executes `entry` over the grid and returns what was counted. Launches into one [`Memory`] run one after
/// the other.
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
    let module = instance.module();
    let Some(number) = module.number(entry) else {
        return Err(invalid(entry, format!("the module has no entry `{entry}`")));
    };
    let threads = check(module.entry_at(number), launch)?;
    let program = module.program(number);
    let shared = u64::from(program.static_shared.next_multiple_of(program.dynamic_align))
        + u64::from(launch.dynamic_shared);
    let shared = if launch.dynamic_shared == 0 { u64::from(program.static_shared) } else { shared };
    if shared > u64::from(config.max_shared) {
        return Err(invalid(
            entry,
            format!("{shared} bytes of shared memory a block; {} are there", config.max_shared),
        ));
    }
    let grid: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
    let chosen = config.blocks.clone().unwrap_or(0..grid);
    if chosen.is_empty() || chosen.end > grid {
        return Err(invalid(entry, format!("blocks {chosen:?} of a grid of {grid}")));
    }
    // Parameters in aligned storage: kernels load them like any other memory.
    let mut aligned = vec![Lanes([0; 32]); launch.params.len().div_ceil(128)];
    // SAFETY: `aligned` holds at least as many bytes, all initialised, and plain words may be seen as bytes.
    let params = unsafe {
        let to = aligned.as_mut_ptr().cast::<u8>();
        to.copy_from_nonoverlapping(launch.params.as_ptr(), launch.params.len());
        std::slice::from_raw_parts(to.cast_const(), launch.params.len())
    };
    let turn = memory.launch_turn();
    let env = Env {
        program,
        constants: instance.constants(number),
        memory,
        config,
        grid: launch.grid,
        block: launch.block,
        threads,
        warps: threads.div_ceil(32),
        params,
        shared_bytes: shared as u32,
        dynamic_shared: launch.dynamic_shared,
        epoch: memory.next_epoch(),
        budget: AtomicU64::new(config.max_instructions.unwrap_or(u64::MAX)),
        order: Order::default(),
    };
    let count = chosen.end - chosen.start;
    let run = Run {
        env: &env,
        blocks: chosen,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        worst: Mutex::new(None),
        report: Mutex::new(Report::default()),
        stride: stride(count, config.seed),
    };
    if count == 1 || config.threads == 1 {
        run.work();
    } else {
        // A pool of its own: the caller may be a worker of another one, and would take up strange work while
        // it waits here.
        match pool(config.threads) {
            Some(pool) => drop(pool.broadcast(|_| run.work())),
            None => run.work(),
        }
    }
    drop(turn);
    let worst = run.worst.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, incident)) = worst {
        return Err(module.fault(number, incident, launch.block));
    }
    let mut report = run.report.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    report.launches = 1;
    Ok(report)
}

/// A launch's shared work list.
struct Run<'a> {
    env: &'a Env<'a>,
    /// Blocks of the grid to run.
    blocks: Range<u64>,
    next: AtomicU64,
    stop: AtomicBool,
    worst: Mutex<Option<(u64, Incident)>>,
    report: Mutex<Report>,
    /// Entry `i` of the work list is block `(i * stride.0 + stride.1) % count` of the `count` in `blocks`.
    stride: (u64, u64),
}

/// A permutation of the blocks: the identity for seed 0, else an affine one.
fn stride(blocks: u64, seed: u64) -> (u64, u64) {
    if seed == 0 || blocks < 3 {
        return (1, if seed == 0 { 0 } else { seed % blocks });
    }
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut step = (mixed % blocks) | 1;
    while gcd(step, blocks) != 1 {
        step += 2;
    }
    (step % blocks, (mixed >> 32) % blocks)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Run<'_> {
    /// Executes blocks until there are none, or one has faulted.
    fn work(&self) {
        let mut machine = None;
        while !self.stop.load(Relaxed) {
            let at = self.next.fetch_add(1, Relaxed);
            let count = self.blocks.end - self.blocks.start;
            if at >= count {
                break;
            }
            let wide = u128::from(at) * u128::from(self.stride.0) + u128::from(self.stride.1);
            let id = self.blocks.start + (wide % u128::from(count)) as u64;
            let machine = machine.get_or_insert_with(|| Machine::new(self.env));
            if let Err(incident) = machine.run_block(id) {
                self.stop.store(true, Relaxed);
                let mut worst = self.worst.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if worst.as_ref().is_none_or(|w| id < w.0) {
                    *worst = Some((id, incident));
                }
            }
        }
        if let Some(machine) = machine {
            let part = machine.counts.report(self.env.program);
            self.report.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).merge(&part);
        }
    }
}
