//! Replays a plan as one captured CUDA graph: copies in, kernels, copies out, one wait.

use super::device::{Device, fault};
use super::memory::{DeviceBuffer, Pinned};
use super::ops::{self, cast};
use super::runtime::{Function, Runtime};
use crate::error::{Error, Result};
use crate::ops::ValueType;
use crate::plan::launch::{Arg, Launch, Packing, Program};
use crate::plan::{Operand, Place, Plan, Site, Step};
use crate::tensor::DType;
use cudarc::driver::{CudaEvent, CudaGraph, result, sys};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A launch with its arguments in place.
struct Bound {
    function: Function,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    /// Values of the kernel's parameters, each at the offset that `arguments` says.
    values: Vec<u64>,
    arguments: Vec<usize>,
    /// What it is, for errors.
    what: String,
}

/// A value that travels between host and device.
struct Staging {
    host: Pinned,
    /// f32 beside the value in the arena, if that is stored otherwise, and the kernel that converts.
    device: Option<(DeviceBuffer, Bound)>,
    /// Address in the arena.
    value: sys::CUdeviceptr,
    /// Whether it is copied in every run; constants are not.
    copied: bool,
}

/// A plan bound to memory and kernels. Everything is allocated, compiled and captured when it is made; a run allocates
/// nothing and waits once.
pub struct Executor {
    plan: Plan,
    steps: Vec<Vec<Bound>>,
    inputs: Vec<Staging>,
    outputs: Vec<Staging>,
    graph: CudaGraph,
    /// Marks between steps, made when first asked for.
    events: Vec<CudaEvent>,
    device: Arc<Device>,
    _arena: DeviceBuffer,
    _constants: Vec<Arc<DeviceBuffer>>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound, as every method does.
unsafe impl Send for Executor {}

/// Where the memory of a plan lies.
struct Memory<'a> {
    plan: &'a Plan,
    runtime: &'a Runtime,
    arena: sys::CUdeviceptr,
    constants: Vec<Arc<DeviceBuffer>>,
}

impl Memory<'_> {
    fn address(&mut self, operand: &Operand, packing: Packing) -> Result<sys::CUdeviceptr> {
        match operand.place {
            Place::Arena(slot) => Ok(self.arena + slot.offset as u64),
            Place::Const(index) => {
                let buffer = self.runtime.packed(self.plan, index, packing)?;
                let pointer = buffer.pointer();
                self.constants.push(buffer);
                Ok(pointer)
            }
        }
    }

    fn bind(&mut self, step: &Step, program: &Program, launch: &Launch) -> Result<Bound> {
        let mut values = Values::default();
        for arg in &launch.args {
            match arg {
                Arg::Input(i) => values.word(self.address(&step.inputs[*i], program.packing_of(*i))?),
                Arg::Output(i) => values.word(self.address(&step.outputs[*i], Packing::plain(DType::F32))?),
                Arg::Workspace(offset) => {
                    values.word(self.arena + (step.workspace.offset + offset) as u64);
                }
                Arg::Null => values.word(0),
                Arg::Struct(bytes) => values.bytes(bytes),
            }
        }
        bound(self.runtime, launch, values)
    }
}

/// Parameter values under construction.
#[derive(Default)]
struct Values {
    words: Vec<u64>,
    offsets: Vec<usize>,
}

impl Values {
    fn word(&mut self, word: u64) {
        self.bytes(&word.to_ne_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.offsets.push(self.words.len());
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.words.push(u64::from_ne_bytes(word));
        }
    }
}

fn bound(runtime: &Runtime, launch: &Launch, values: Values) -> Result<Bound> {
    launch.check(runtime.device().caps()).map_err(Error::Cuda)?;
    Ok(Bound {
        function: runtime.function(launch)?,
        grid: launch.grid,
        block: launch.block,
        shared: launch.shared,
        values: values.words,
        arguments: values.offsets,
        what: launch.to_string(),
    })
}

/// What step runs.
fn program(step: &Step, runtime: &Runtime) -> Result<Program> {
    let types = |operands: &[Operand]| operands.iter().map(|o| o.ty).collect::<Vec<ValueType>>();
    let constant: Vec<bool> = step.inputs.iter().map(|o| matches!(o.place, Place::Const(_))).collect();
    let (inputs, outputs) = (types(&step.inputs), types(&step.outputs));
    let site = Site { op: &step.op, inputs: &inputs, constant: &constant, outputs: &outputs };
    ops::program(&site, &runtime.target()).map_err(|reason| Error::Shape {
        op: step.op.name(),
        value: step.name.clone(),
        reason,
    })
}

impl Executor {
    /// Compiles and loads the kernels of `plan`, copies its constants to the device, allocates the arena and captures the
    /// graph. The plan must come from [`select`](super::select) for the runtime's target.
    ///
    /// # Errors
    /// [`Error::Cuda`] for kernels that do not compile and memory that does not suffice; whatever the source of parameters
    /// says.
    pub fn new(plan: Plan, runtime: &Runtime) -> Result<Executor> {
        let device = runtime.device().clone();
        let programs: Vec<Program> =
            plan.steps.iter().map(|step| program(step, runtime)).collect::<Result<_>>()?;
        let in_casts = cast_launches(&plan.inputs, |stored| (DType::F32, stored));
        let out_casts = cast_launches(&plan.outputs, |stored| (stored, DType::F32));
        let launches: Vec<&Launch> = programs
            .iter()
            .flat_map(|p| &p.launches)
            .chain(in_casts.iter().flatten())
            .chain(out_casts.iter().flatten())
            .collect();
        runtime.load(&launches)?;

        let arena = DeviceBuffer::new(&device, plan.arena_bytes, "the arena")?;
        let mut memory = Memory { plan: &plan, runtime, arena: arena.pointer(), constants: Vec::new() };
        let mut steps = Vec::with_capacity(plan.steps.len());
        for (step, program) in plan.steps.iter().zip(&programs) {
            let bound = program.launches.iter().map(|launch| memory.bind(step, program, launch));
            steps.push(bound.collect::<Result<Vec<_>>>()?);
        }
        let stage = |operand: &Operand, cast: &Option<Launch>, inward: bool| -> Result<Staging> {
            let mut host = Pinned::new(&device, operand.ty.shape.len())?;
            let slot = match operand.place {
                Place::Arena(slot) => slot,
                Place::Const(index) => {
                    host.as_mut_slice().copy_from_slice(runtime.constants().constant(&plan, index)?.data());
                    return Ok(Staging { host, device: None, value: 0, copied: false });
                }
            };
            let value = arena.pointer() + slot.offset as u64;
            let beside = cast.as_ref().map(|launch| -> Result<_> {
                let floats = DeviceBuffer::new(&device, 4 * operand.ty.shape.len(), "a staged value")?;
                let mut values = Values::default();
                let (from, to) = if inward { (floats.pointer(), value) } else { (value, floats.pointer()) };
                values.word(from);
                values.word(to);
                launch.args.iter().for_each(|arg| {
                    if let Arg::Struct(bytes) = arg {
                        values.bytes(bytes);
                    }
                });
                Ok((floats, bound(runtime, launch, values)?))
            });
            Ok(Staging { host, device: beside.transpose()?, value, copied: !operand.ty.shape.is_empty() })
        };
        let staged = |ends: &[(String, Operand)], casts: &[Option<Launch>], inward| {
            ends.iter()
                .zip(casts)
                .map(|((_, operand), cast)| stage(operand, cast, inward))
                .collect::<Result<Vec<_>>>()
        };
        let inputs = staged(&plan.inputs, &in_casts, true)?;
        let outputs = staged(&plan.outputs, &out_casts, false)?;
        let constants = memory.constants;
        let graph = capture(&device, || {
            copy_in(&device, &inputs)?;
            steps.iter().flatten().try_for_each(|bound| launch(&device, bound))?;
            copy_out(&device, &outputs)
        })?;
        Ok(Executor {
            plan,
            steps,
            inputs,
            outputs,
            graph,
            events: Vec::new(),
            device,
            _arena: arena,
            _constants: constants,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The host's side of input `index`, to be filled before every [`Executor::run`].
    pub fn input_mut(&mut self, index: usize) -> &mut [f32] {
        self.inputs[index].host.as_mut_slice()
    }

    /// Result `index`, valid after [`Executor::run`]. Index results are `i32` bits.
    pub fn output(&self, index: usize) -> &[f32] {
        self.outputs[index].host.as_slice()
    }

    /// Position of the result called `name`.
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.plan.outputs.iter().position(|(n, _)| n == name)
    }

    /// Shape and element type of result `index` as [`Executor::output`] gives it.
    pub fn output_type(&self, index: usize) -> ValueType {
        let ty = self.plan.outputs[index].1.ty;
        ValueType { dtype: if ty.dtype == DType::I32 { DType::I32 } else { DType::F32 }, ..ty }
    }

    /// Runs the plan: one graph launch, one wait.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says; after a fault the device's context is of no further use.
    pub fn run(&mut self) -> Result<()> {
        self.graph.launch().map_err(|e| fault("cannot launch the graph", e))?;
        self.device.synchronize()
    }

    /// As [`Executor::run`], step by step instead of as a graph, and gives the time of each step on the device.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_timed(&mut self, mut report: impl FnMut(usize, Duration)) -> Result<()> {
        self.device.bind()?;
        let stream = self.device.stream();
        let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        while self.events.len() <= self.steps.len() {
            let event = stream.context().new_event(timing).map_err(|e| fault("cannot make an event", e))?;
            self.events.push(event);
        }
        let record = |event: &CudaEvent| event.record(stream).map_err(|e| fault("cannot record an event", e));
        copy_in(&self.device, &self.inputs)?;
        record(&self.events[0])?;
        for (bounds, event) in self.steps.iter().zip(&self.events[1..]) {
            bounds.iter().try_for_each(|bound| launch(&self.device, bound))?;
            record(event)?;
        }
        copy_out(&self.device, &self.outputs)?;
        self.device.synchronize()?;
        for (step, pair) in self.events.windows(2).enumerate() {
            let ms = pair[0].elapsed_ms(&pair[1]).map_err(|e| fault("cannot read a time", e))?;
            report(step, Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3));
        }
        Ok(())
    }
}

/// Launches that convert between the host's f32 and what the plan stores; `direction` gives (from, to).
fn cast_launches(
    ends: &[(String, Operand)],
    direction: impl Fn(DType) -> (DType, DType),
) -> Vec<Option<Launch>> {
    let needed = |operand: &Operand| {
        let staged = matches!(operand.ty.dtype, DType::F16 | DType::BF16) && !operand.ty.shape.is_empty();
        let in_arena = matches!(operand.place, Place::Arena(_));
        (staged && in_arena).then(|| {
            let (from, to) = direction(operand.ty.dtype);
            cast::launch(operand.ty.shape.len(), from, to)
        })
    };
    ends.iter().map(|(_, operand)| needed(operand)).collect()
}

/// Records what `work` sends to the stream as a graph.
fn capture(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    device.bind()?;
    let stream = device.stream();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .map_err(|e| fault("cannot capture a graph", e))?;
    let outcome = work();
    // The capture ends whatever came of the work, so that the stream can be used again.
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).map_err(|e| fault("cannot instantiate the graph", e));
    outcome?;
    let graph = graph?.ok_or_else(|| Error::Cuda("the captured graph is empty".into()))?;
    graph.upload().map_err(|e| fault("cannot upload the graph", e))?;
    device.synchronize()?;
    Ok(graph)
}

fn copy_in(device: &Device, inputs: &[Staging]) -> Result<()> {
    for input in inputs.iter().filter(|input| input.copied) {
        let target = input.device.as_ref().map_or(input.value, |(floats, _)| floats.pointer());
        // SAFETY: page-locked memory that lives as long as the executor, as many bytes as the target holds.
        unsafe { result::memcpy_htod_async(target, input.host.as_slice(), device.stream().cu_stream()) }
            .map_err(|e| fault("cannot copy an input", e))?;
        if let Some((_, cast)) = &input.device {
            launch(device, cast)?;
        }
    }
    Ok(())
}

fn copy_out(device: &Device, outputs: &[Staging]) -> Result<()> {
    for output in outputs.iter().filter(|output| output.copied) {
        let mut source = output.value;
        if let Some((floats, cast)) = &output.device {
            launch(device, cast)?;
            source = floats.pointer();
        }
        let bytes: Range<usize> = 0..4 * output.host.as_slice().len();
        // SAFETY: page-locked memory that lives as long as the executor; it is read only after the stream was waited for.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(output.host.address(), source, bytes.len(), device.stream().cu_stream())
        }
        .result()
        .map_err(|e| fault("cannot copy a result", e))?;
    }
    Ok(())
}

fn launch(device: &Device, bound: &Bound) -> Result<()> {
    /// Most parameters of a kernel of ours.
    const MAX_ARGUMENTS: usize = 16;
    let mut arguments = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
    let count = bound.arguments.len();
    if count > MAX_ARGUMENTS {
        return Err(Error::Cuda(format!("{}: {count} arguments, at most {MAX_ARGUMENTS}", bound.what)));
    }
    for (argument, &offset) in arguments.iter_mut().zip(&bound.arguments) {
        *argument = bound.values[offset..].as_ptr().cast_mut().cast();
    }
    let ([gx, gy, gz], [bx, by, bz]) = (bound.grid, bound.block);
    // SAFETY: a loaded kernel; its program gave as many arguments as it has parameters, of their sizes, with pointers into
    // the arena, the constants and staging memory that the executor holds.
    unsafe {
        result::launch_kernel(
            bound.function.handle(),
            (gx, gy, gz),
            (bx, by, bz),
            bound.shared,
            device.stream().cu_stream(),
            &mut arguments[..count],
        )
    }
    .map_err(|e| fault(&format!("cannot launch {}", bound.what), e))
}
