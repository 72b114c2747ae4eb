//! Kernels: their attributes, and how many blocks of them fit on a multiprocessor.

use std::ffi::c_char;
use std::sync::Arc;

use ptxemu::Entry;

use crate::device::Model;
use crate::driver::Driver;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Handle, In, Out, entry_points};
use crate::launch::LaunchConfig;
use crate::module::Loaded;

/// A kernel of a loaded module.
pub struct Kernel {
    /// The module's code.
    pub loaded: Arc<Loaded>,
    /// Name, parameters, static shared memory, block limits.
    pub entry: Entry,
    /// The module's handle.
    pub module: Handle,
}

/// A kernel with what `cuFuncSetAttribute` has set.
pub struct Function {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Dynamic shared memory that a launch may ask for, in bytes.
    pub max_dynamic_shared: u32,
    carveout: i32,
}

const MAX_DYNAMIC_SHARED: u32 = 8;
const CARVEOUT: u32 = 9;

impl Function {
    /// The kernel as loaded: no more shared memory than every device gives.
    pub fn new(kernel: Kernel) -> Function {
        let max_dynamic_shared = Model::SHARED_PER_BLOCK.saturating_sub(kernel.entry.static_shared);
        Function { kernel: Arc::new(kernel), max_dynamic_shared, carveout: -1 }
    }

    /// Most threads of a block: the kernel's own limit or the device's.
    pub fn max_threads(&self) -> u32 {
        let limit = self.kernel.entry.reqntid.or(self.kernel.entry.maxntid);
        limit.map_or(Model::MAX_THREADS, |[x, y, z]| {
            x.saturating_mul(y).saturating_mul(z).min(Model::MAX_THREADS)
        })
    }
}

fn attribute(driver: &Driver, function: &Function, attribute: u32) -> Outcome<i32> {
    let (major, minor) = driver.device.capability();
    Ok(match attribute {
        0 => function.max_threads() as i32,
        1 => function.kernel.entry.static_shared as i32,
        // PTX knows no registers, hence no spills: 0 says "not known". Constant memory and local memory are
        // not told apart.
        2..=4 => 0,
        5 | 6 => (10 * major + minor) as i32,
        7 => 0,
        MAX_DYNAMIC_SHARED => function.max_dynamic_shared as i32,
        CARVEOUT => function.carveout,
        // Clusters: none required, none allowed.
        10..=15 => 0,
        _ => return Err(CUresult::INVALID_VALUE),
    })
}

fn resident(driver: &Driver, function: Handle, threads: i32, dynamic: usize) -> Outcome<u32> {
    let function = driver.functions.get(function)?;
    let threads =
        u32::try_from(threads).ok().filter(|threads| *threads > 0).ok_or(CUresult::INVALID_VALUE)?;
    let shared = u32::try_from(dynamic)
        .map_err(|_| CUresult::INVALID_VALUE)?
        .saturating_add(function.kernel.entry.static_shared);
    if threads > function.max_threads() || shared > driver.device.shared_opt_in() {
        return Ok(0);
    }
    Ok(driver.device.resident_blocks(threads, shared))
}

/// Dynamic shared memory by block size, as a caller's function gives it.
type SharedByBlock = extern "C" fn(i32) -> usize;

/// The arguments of the two entry points that look for the best block size.
struct BestBlock {
    function: Handle,
    by_block: Option<SharedByBlock>,
    dynamic: usize,
    limit: i32,
}

fn best_block(driver: &Driver, grid: Out<i32>, block: Out<i32>, asked: &BestBlock) -> Outcome {
    let most = driver.functions.get(asked.function)?.max_threads() as i32;
    let most = if asked.limit > 0 { most.min(asked.limit) } else { most };
    let mut best = (0, 0, 0);
    for threads in (1..=most / 32).map(|warps| 32 * warps) {
        let dynamic = asked.by_block.map_or(asked.dynamic, |by_block| by_block(threads));
        let blocks = resident(driver, asked.function, threads, dynamic)? as i32;
        best = best.max((blocks * threads, threads, blocks));
    }
    block.set(best.1)?;
    grid.set(best.2 * driver.device.multiprocessors())
}

entry_points! {
    /// One number about a kernel.
    healthy fn cuFuncGetAttribute(value: Out<i32>, which: u32, function: Handle) |call, driver| {
        call.note(format_args!("attribute={which}"));
        value.set(attribute(driver, driver.functions.get(function)?, which)?)
    }

    /// Sets the dynamic shared memory that launches may ask for, or the (ineffective) carve-out.
    healthy fn cuFuncSetAttribute(function: Handle, which: u32, value: i32) |call, driver| {
        let most = driver.device.shared_opt_in();
        let state = driver.functions.get_mut(function)?;
        call.note(format_args!("kernel={} attribute={which} value={value}", state.kernel.entry.name));
        match which {
            MAX_DYNAMIC_SHARED => {
                let dynamic = u32::try_from(value).map_err(|_| CUresult::INVALID_VALUE)?;
                let all = dynamic.saturating_add(state.kernel.entry.static_shared);
                if all > most {
                    let why = format_args!("{all} bytes of shared memory; a block has {most} at most");
                    return Err(call.refuse(CUresult::INVALID_VALUE, why));
                }
                state.max_dynamic_shared = dynamic;
                Ok(())
            }
            CARVEOUT if (-1..=100).contains(&value) => {
                state.carveout = value;
                Ok(())
            }
            _ => Err(CUresult::INVALID_VALUE),
        }
    }

    /// Accepted without effect.
    healthy fn cuFuncSetCacheConfig(function: Handle, config: u32) |_, driver| {
        driver.functions.get(function)?;
        if config > 3 { Err(CUresult::INVALID_VALUE) } else { Ok(()) }
    }

    /// The kernel's module.
    healthy fn cuFuncGetModule(module: Out<Handle>, function: Handle) |_, driver| {
        module.set(driver.functions.get(function)?.kernel.module)
    }

    /// Offset and size of a parameter.
    healthy fn cuFuncGetParamInfo(
        function: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>,
    ) |_, driver| {
        let function = driver.functions.get(function)?;
        let parameter = function.kernel.entry.params.get(index).ok_or(CUresult::INVALID_VALUE)?;
        offset.set(parameter.offset as usize)?;
        bytes.offer(parameter.size as usize);
        Ok(())
    }

    /// Kernels are loaded at once.
    healthy fn cuFuncIsLoaded(state: Out<u32>, function: Handle) |_, driver| {
        driver.functions.get(function)?;
        state.set(1)
    }

    /// Kernels are loaded at once.
    healthy fn cuFuncLoad(function: Handle) |_, driver| {
        driver.functions.get(function).map(|_| ())
    }

    /// Resident blocks of a multiprocessor; registers are not known to PTX and not counted.
    healthy fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>, function: Handle, threads: i32, dynamic: usize,
    ) |_, driver| {
        blocks.set(resident(driver, function, threads, dynamic)? as i32)
    }

    /// Resident blocks of a multiprocessor; registers are not known to PTX and not counted.
    healthy fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>, function: Handle, threads: i32, dynamic: usize, _flags: u32,
    ) |_, driver| {
        blocks.set(resident(driver, function, threads, dynamic)? as i32)
    }

    /// The block size with most resident threads.
    healthy fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, block: Out<i32>, function: Handle, by_block: Option<SharedByBlock>, dynamic: usize, limit: i32,
    ) |_, driver| {
        best_block(driver, grid, block, &BestBlock { function, by_block, dynamic, limit })
    }

    /// The block size with most resident threads.
    healthy fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>, block: Out<i32>, function: Handle, by_block: Option<SharedByBlock>, dynamic: usize, limit: i32, _flags: u32,
    ) |_, driver| {
        best_block(driver, grid, block, &BestBlock { function, by_block, dynamic, limit })
    }

    /// Dynamic shared memory that each of so many resident blocks can have.
    healthy fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: Out<usize>, function: Handle, blocks: i32, threads: i32,
    ) |_, driver| {
        let taken = driver.functions.get(function)?.kernel.entry.static_shared;
        let fit = resident(driver, function, threads, 0)?;
        let blocks = u32::try_from(blocks).ok().filter(|blocks| (1..=fit).contains(blocks)).ok_or(CUresult::INVALID_VALUE)?;
        let share = driver.device.shared_per_multiprocessor() / blocks - driver.device.shared_reserved();
        bytes.set(share.min(driver.device.shared_opt_in()).saturating_sub(taken) as usize)
    }

    /// Clusters are not supported.
    healthy fn cuOccupancyMaxActiveClusters(
        _clusters: Out<i32>, _function: Handle, _config: In<LaunchConfig>,
    ) |_, _| {
        Err(CUresult::NOT_SUPPORTED)
    }

    /// The kernel's name, which lives as long as the process.
    healthy fn cuFuncGetName(name: Out<*const c_char>, function: Handle) |_, driver| {
        let text = &driver.functions.get(function)?.kernel.entry.name;
        let text = std::ffi::CString::new(text.as_str()).map_err(|_| CUresult::UNKNOWN)?;
        name.set(text.into_raw())
    }
}
