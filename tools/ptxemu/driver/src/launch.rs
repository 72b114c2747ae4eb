//! Launching kernels: what is checked at the call, and what happens when the launch runs.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::device::Model;
use crate::driver::Driver;
use crate::emulator;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Call, Handle, HostPtr, In, entry_points};
use crate::function::Kernel;
use crate::queue::Work;

/// A launch that has been checked.
pub struct Launch {
    /// The function's handle.
    pub function: Handle,
    kernel: Arc<Kernel>,
    /// Grid, block and dynamic shared memory.
    pub shape: Shape,
    /// Parameters, packed as the kernel lays them out.
    pub parameters: Vec<u8>,
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([x, y, z], [a, b, c]) = (self.grid, self.block);
        write!(f, "grid={x},{y},{z} block={a},{b},{c} shared={}", self.shared)
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel={} {}", self.kernel.entry.name, self.shape)
    }
}

impl Launch {
    /// Where each parameter lies in [`Launch::parameters`].
    pub fn layout(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.kernel.entry.params.iter().map(|parameter| (parameter.offset as usize, parameter.size as usize))
    }
}

/// Where a caller keeps a launch's parameters: one pointer for each, or a packed buffer by `extra`.
#[derive(Clone, Copy)]
pub struct Arguments {
    /// Pointers to the parameters.
    pub each: In<HostPtr>,
    /// Keys and values that end with a 0.
    pub extra: In<usize>,
}

const EXTRA_END: usize = 0;
const EXTRA_POINTER: usize = 1;
const EXTRA_SIZE: usize = 2;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    attributes: In<LaunchAttribute>,
    count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: u32,
    _padding: u32,
    value: [u32; 16],
}

impl Driver {
    /// Checks a launch against the kernel's and the device's limits, and reads its parameters.
    pub fn prepare(
        &self,
        call: &mut Call,
        function: Handle,
        shape: Shape,
        arguments: Arguments,
    ) -> Outcome<Arc<Launch>> {
        if function == 0 {
            return Err(call.refuse(CUresult::INVALID_VALUE, format_args!("the function is null")));
        }
        let state = self.functions.get(function)?;
        let entry = &state.kernel.entry;
        call.note(format_args!("kernel={} {shape}", entry.name));
        let refuse = |why: fmt::Arguments| {
            Err(call.refuse(CUresult::INVALID_VALUE, format_args!("{}: {why}", entry.name)))
        };
        for (axis, name) in ["x", "y", "z"].iter().enumerate() {
            let (blocks, most) = (shape.grid[axis], Model::MAX_GRID[axis]);
            if blocks == 0 || blocks > most {
                return refuse(format_args!("{blocks} blocks along {name}, not 1 to {most}"));
            }
            let (threads, most) = (shape.block[axis], Model::MAX_BLOCK[axis]);
            if threads == 0 || threads > most {
                return refuse(format_args!("{threads} threads along {name}, not 1 to {most}"));
            }
        }
        let threads: u32 = shape.block.iter().product();
        if threads > state.max_threads() {
            return refuse(format_args!("{threads} threads in a block, {} at most", state.max_threads()));
        }
        if let Some(required) = entry.reqntid.filter(|required| *required != shape.block) {
            return refuse(format_args!("blocks of {:?}, the kernel requires {required:?}", shape.block));
        }
        if shape.shared > state.max_dynamic_shared {
            let allowed = state.max_dynamic_shared;
            return refuse(format_args!(
                "{} bytes of dynamic shared memory, {allowed} allowed without another \
                 cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES)",
                shape.shared
            ));
        }
        let parameters = match read_parameters(&state.kernel, arguments) {
            Ok(parameters) => parameters,
            Err(why) => return refuse(format_args!("{why}")),
        };
        Ok(Arc::new(Launch { function, kernel: state.kernel.clone(), shape, parameters }))
    }

    fn launch(
        &mut self,
        call: &mut Call,
        function: Handle,
        shape: Shape,
        arguments: Arguments,
        stream: Handle,
    ) -> Outcome {
        let launch = self.prepare(call, function, shape, arguments)?;
        call.note(format_args!("stream={stream:#x}"));
        self.enqueue(stream, Work::Kernel(launch))
    }

    /// Blocks run one after the other here, so blocks that wait for each other would wait for ever.
    fn check_cooperative(&self, call: &Call, function: Handle, shape: Shape) -> Outcome {
        let state = self.functions.get(function)?;
        let threads = shape.block.iter().product();
        let fit = self.device.resident_blocks(threads, shape.shared + state.kernel.entry.static_shared);
        let blocks: u64 = shape.grid.iter().map(|blocks| u64::from(*blocks)).product();
        if blocks > u64::from(fit * self.device.multiprocessors() as u32) {
            return Err(CUresult::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        if blocks > 1 {
            return Err(
                call.refuse(CUresult::NOT_SUPPORTED, format_args!("cooperative launches of several blocks"))
            );
        }
        Ok(())
    }

    /// Runs a launch.
    pub fn run_kernel(&mut self, launch: &Launch) -> Outcome {
        let instance = launch.kernel.loaded.instance();
        let Some(instance) = &*instance else {
            eprintln!("ptxemu: {launch}: the kernel's module was unloaded");
            return Err(CUresult::INVALID_HANDLE);
        };
        let Shape { grid, block, shared } = launch.shape;
        let name = &launch.kernel.entry.name;
        let what = ptxemu::Launch { grid, block, dynamic_shared: shared, params: &launch.parameters };
        let (start, emulated) = (Instant::now(), &self.memory.emulated);
        let report = self.pinned.before_launch(emulated).and_then(|()| {
            let report = ptxemu::launch(instance, name, &what, emulated, &self.config())?;
            self.pinned.after_launch(emulated)?;
            Ok(report)
        });
        let report = report.map_err(|fault| {
            eprintln!("ptxemu: in the launch {launch}:");
            emulator::report_fault(fault)
        })?;
        self.totals.add(name, launch.shape, &report, start.elapsed());
        Ok(())
    }
}

fn read_parameters(kernel: &Kernel, arguments: Arguments) -> Result<Vec<u8>, String> {
    let mut packed = vec![0; kernel.entry.param_bytes as usize];
    let missing = || "null in place of the parameters".to_owned();
    if !arguments.extra.is_null() {
        if !arguments.each.is_null() {
            return Err("parameters both by pointer and packed".to_owned());
        }
        let (mut pointer, mut bytes) = (HostPtr(std::ptr::null_mut()), 0);
        for pair in 0_usize.. {
            let value = |index| arguments.extra.at(2 * pair + index).map_err(|_| missing());
            match value(0)? {
                EXTRA_END => break,
                EXTRA_POINTER => pointer = HostPtr(value(1)? as *mut _),
                EXTRA_SIZE => {
                    bytes = In::<usize>::behind(HostPtr(value(1)? as *mut _)).get().map_err(|_| missing())?
                }
                key => return Err(format!("unknown key {key} among the extra options")),
            }
        }
        if bytes != packed.len() {
            return Err(format!("{bytes} bytes of packed parameters, the kernel takes {}", packed.len()));
        }
        if pointer.address() == 0 && bytes != 0 {
            return Err(missing());
        }
        // SAFETY: the caller vouches for as many packed bytes as it says there are.
        unsafe { pointer.read(&mut packed) };
        return Ok(packed);
    }
    for (index, parameter) in kernel.entry.params.iter().enumerate() {
        let pointer = arguments.each.at(index).map_err(|_| missing())?;
        if pointer.address() == 0 {
            return Err(format!("parameter {index} is null"));
        }
        let place = &mut packed[parameter.offset as usize..][..parameter.size as usize];
        // SAFETY: the caller vouches for each parameter's size by the kernel's signature.
        unsafe { pointer.read(place) };
    }
    Ok(packed)
}

entry_points! {
    /// Queues a kernel.
    healthy fn cuLaunchKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: Handle, each: In<HostPtr>, extra: In<usize>,
    ) |call, driver| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        driver.launch(call, function, shape, Arguments { each, extra }, stream)
    }

    /// Queues a kernel with attributes. Those that only hint are accepted; clusters are not supported.
    healthy fn cuLaunchKernelEx(
        config: In<LaunchConfig>, function: Handle, each: In<HostPtr>, extra: In<usize>,
    ) |call, driver| {
        let config = config.get()?;
        let shape = Shape { grid: config.grid, block: config.block, shared: config.shared };
        for index in 0..config.count as usize {
            let attribute = config.attributes.at(index)?;
            match (attribute.id, attribute.value) {
                // Ignored, access policy, synchronisation policy, programmatic serialisation (a kernel may
                // start early, or not), priority, memory domains, carve-out: none changes what a kernel
                // computes.
                (0 | 1 | 3 | 6 | 8 | 9 | 10 | 14, _) | (2, [0, ..]) | (4, [1, 1, 1, ..]) => {}
                (2, _) => driver.check_cooperative(call, function, shape)?,
                (id, _) => return Err(call.refuse(CUresult::NOT_SUPPORTED, format_args!("launch attribute {id}"))),
            }
        }
        driver.launch(call, function, shape, Arguments { each, extra }, config.stream)
    }

    /// Queues a kernel whose blocks may wait for each other; only a single block is supported.
    healthy fn cuLaunchCooperativeKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: Handle, each: In<HostPtr>,
    ) |call, driver| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        driver.check_cooperative(call, function, shape)?;
        driver.launch(call, function, shape, Arguments { each, extra: In::null() }, stream)
    }
}
