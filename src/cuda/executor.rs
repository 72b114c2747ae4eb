//! A plan on a GPU: an arena, constants, kernels with their arguments in place.

use super::Plan;
use super::device::{Device, fault};
use super::memory::{self, DeviceBuffer, Pinned};
use super::ops::cast;
use super::recording::{Bound, capture, copy_between, copy_in, copy_out, launch};
use super::runtime::Runtime;
use super::stopwatch::Stopwatch;
use crate::cuda::launch::{Arg, Packing, Program};
use crate::error::{Error, Result};
use crate::exec::{self, DeviceFloats, Host, HostMut, Report};
use crate::graph::{InputId, OutputId, SegmentId, VariableId};
use crate::ops::ValueType;
use crate::plan::{self, Operand, Place, Segment, Step, Variable};
use crate::tensor::DType;
use cudarc::driver::{CudaEvent, CudaGraph, sys};
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// A plan bound to memory and kernels. Everything is allocated and compiled when it is made.
pub struct Executor {
    plan: Plan,
    steps: Vec<Vec<Bound>>,
    /// The host's side of inputs and results, and the graphs that run between them.
    floats: Option<Floats>,
    /// The end of the last run on a stream that is not the device's, until one waited for it.
    last_external: Option<Arc<CudaEvent>>,
    device: Arc<Device>,
    arena: DeviceBuffer,
    _constants: Vec<Arc<DeviceBuffer>>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound, as every method
// does.
unsafe impl Send for Executor {}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(event) = &self.last_external {
            // The arena goes next. A failure (the context is gone) leaves nothing to wait for.
            let _ = event.synchronize();
        }
    }
}

/// Inputs and results on the host, floats as f32.
struct Floats {
    inputs: Vec<Staging>,
    outputs: Vec<Staging>,
    graphs: Vec<Captured>,
    /// Segments that were started, until somebody waited.
    started: Vec<RangeInclusive<usize>>,
}

/// Segments that are run together: of each the inputs that it is the first to read, its steps, and the
/// results that it makes.
struct Captured {
    segments: RangeInclusive<usize>,
    /// Those of the inputs that lie in their second place.
    turned: Vec<InputId>,
    /// `None` if there is nothing to do.
    graph: Option<CudaGraph>,
}

/// A value that travels between host and device.
struct Staging {
    host: Pinned,
    /// Of an input that was written while what was started read `host`: the other one of two places, which
    /// take turns.
    other: Option<Pinned>,
    /// Whether `host` is the second place.
    turned: bool,
    /// Whether `host` was written for the next run, and not read by what was started.
    ahead: bool,
    /// f32 beside the value in the arena, if that is stored otherwise, and the kernel that converts.
    device: Option<(DeviceBuffer, Bound)>,
    /// Address in the arena; `None`: a constant, copied once, or what stays on the device.
    value: Option<sys::CUdeviceptr>,
}

/// Whether a step can run: a plan is plain data, which may be of another device.
fn check(step: &Step<Program>, device: &Device) -> Result<()> {
    let fault = |reason| Error::Shape { op: step.op.name(), value: step.name.clone(), reason };
    let (wanted, planned) = (step.program.workspace, step.workspace.bytes);
    if wanted > planned {
        return Err(fault(format!(
            "`{}` needs {wanted} bytes of workspace, the plan has {planned}",
            step.kernel
        )));
    }
    step.program.check(device.caps()).map_err(fault)
}

impl Staging {
    /// What stays where it is.
    fn of(host: Pinned) -> Staging {
        Staging { host, other: None, turned: false, ahead: false, device: None, value: None }
    }
}

impl Executor {
    /// Compiles and loads the kernels of `plan`, copies its constants to the device and allocates the arena.
    /// The plan may come from any [selection](super::Selection) whose precision is the runtime's.
    ///
    /// # Errors
    /// [`Error::Shape`] for a step that this device cannot run; [`Error::Memory`] if the device has too
    /// little; [`Error::Cuda`] for kernels that do not compile; whatever the source of parameters says.
    pub fn new(plan: Plan, runtime: &Runtime) -> Result<Executor> {
        let device = runtime.device().clone();
        memory::check(&device, plan.arena_bytes, "the arena")?;
        plan.steps.iter().try_for_each(|step| check(step, &device))?;
        runtime.load(&plan.steps.iter().flat_map(|step| &step.program.launches).collect::<Vec<_>>())?;
        let arena = DeviceBuffer::new(&device, plan.arena_bytes, "the arena")?;
        let mut constants = Vec::new();
        let mut address = |operand: &Operand, packing| -> Result<sys::CUdeviceptr> {
            match operand.place {
                Place::Arena(slot) => Ok(arena.pointer() + slot.offset as u64),
                Place::Const(index) => {
                    let buffer = runtime.packed(&plan.consts, index, packing)?;
                    constants.push(buffer);
                    Ok(constants[constants.len() - 1].pointer())
                }
            }
        };
        let mut steps = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let program = &step.program;
            let mut pointer = |arg: &Arg| match arg {
                Arg::Input(i) => address(&step.inputs[*i], program.packing_of(*i)),
                Arg::Output(i) => address(&step.outputs[*i], Packing::plain(DType::F32)),
                Arg::Workspace(offset) => Ok(arena.pointer() + (step.workspace.offset + offset) as u64),
                Arg::Null | Arg::Struct(_) | Arg::Table(_) => Ok(0),
            };
            let bound = program.launches.iter().map(|launch| Bound::new(runtime, launch, &mut pointer));
            steps.push(bound.collect::<Result<Vec<_>>>()?);
        }
        let executor =
            Executor { plan, steps, floats: None, last_external: None, device, arena, _constants: constants };
        for variable in executor.plan.variables.iter().filter(|variable| variable.initial.is_none()) {
            let place = executor.address(&variable.operand)?;
            memory::clear(&executor.device, place, variable.operand.ty.bytes())?;
        }
        Ok(executor)
    }

    /// As [`Executor::new`], with inputs and results on the host, floats as f32: what runs in one go is one
    /// graph of copies in, kernels and copies out, captured here. Running it allocates nothing and waits
    /// once.
    ///
    /// # Errors
    /// As [`Executor::new`].
    pub fn with_floats(plan: Plan, runtime: &Runtime) -> Result<Executor> {
        let mut executor = Executor::with_floats_but(plan, runtime, &[])?;
        executor.captured(executor.all_segments())?;
        Ok(executor)
    }

    /// As [`Executor::with_floats`], for runs of some segments: a graph is captured when it is first run. The
    /// results `resident` stay on the device, and are empty on the host.
    ///
    /// # Errors
    /// As [`Executor::new`].
    pub fn with_floats_but(plan: Plan, runtime: &Runtime, resident: &[OutputId]) -> Result<Executor> {
        let mut executor = Executor::new(plan, runtime)?;
        let plan = &executor.plan;
        let stays = |index: usize| resident.iter().any(|id| id.index() == index);
        let inputs = executor.stage(&plan.inputs, runtime, |_| false, |stored| (DType::F32, stored))?;
        let outputs = executor.stage(&plan.outputs, runtime, stays, |stored| (stored, DType::F32))?;
        executor.floats = Some(Floats { inputs, outputs, graphs: Vec::new(), started: Vec::new() });
        Ok(executor)
    }

    /// Position of the graph of these segments, which is captured if it was not yet.
    fn captured(&mut self, range: RangeInclusive<usize>) -> Result<usize> {
        let floats = self.floats()?;
        let segments = &self.plan.segments[range.clone()];
        let turned = || {
            let inputs = segments.iter().flat_map(|segment| segment.inputs.iter().copied());
            inputs.filter(move |id| floats.inputs[id.index()].turned)
        };
        let is_known =
            |known: &Captured| known.segments == range && turned().eq(known.turned.iter().copied());
        if let Some(known) = floats.graphs.iter().position(is_known) {
            return Ok(known);
        }
        let graph = || {
            capture(&self.device, || {
                segments.iter().try_for_each(|segment| {
                    self.send_inputs(segment, floats)?;
                    self.record_segment(segment)?;
                    self.send_outputs(segment, floats)
                })
            })
        };
        let has_work = segments.iter().any(|segment| self.has_work(segment, floats));
        let captured = Captured {
            turned: turned().collect(),
            graph: has_work.then(graph).transpose()?,
            segments: range,
        };
        let graphs = &mut self.floats.as_mut().ok_or_else(without_floats)?.graphs;
        graphs.push(captured);
        Ok(graphs.len() - 1)
    }

    fn all_segments(&self) -> RangeInclusive<usize> {
        0..=self.plan.segments.len() - 1
    }

    /// Page-locked memory for some inputs or results, but not for those that stay on the device; `direction`
    /// gives the types that a conversion goes from and to.
    fn stage(
        &self,
        ends: &[(String, Operand)],
        runtime: &Runtime,
        stays: impl Fn(usize) -> bool,
        direction: impl Fn(DType) -> (DType, DType),
    ) -> Result<Vec<Staging>> {
        let stage = |(index, (_, operand)): (usize, &(String, Operand))| -> Result<Staging> {
            if stays(index) {
                return Ok(Staging::of(Pinned::new(&self.device, 0)?));
            }
            let count = operand.ty.shape.len();
            let mut host = Pinned::new(&self.device, 4 * count)?;
            let slot = match operand.place {
                Place::Arena(slot) => slot,
                Place::Const(index) => {
                    let constant = runtime.constants().constant(&self.plan.consts, index)?;
                    host.as_mut_slice::<f32>().copy_from_slice(constant.data());
                    return Ok(Staging::of(host));
                }
            };
            let value = self.arena.pointer() + slot.offset as u64;
            let mut device = None;
            if operand.ty.dtype.size() != 4 && count > 0 {
                let floats = DeviceBuffer::new(&self.device, 4 * count, "a staged value")?;
                let (from, to) = direction(operand.ty.dtype);
                let launch = cast::launch(count, from, to);
                runtime.load(&[&launch])?;
                let (source, target) =
                    if from == DType::F32 { (floats.pointer(), value) } else { (value, floats.pointer()) };
                let pointer = |arg: &Arg| Ok(if matches!(arg, Arg::Input(_)) { source } else { target });
                device = Some((floats, Bound::new(runtime, &launch, pointer)?));
            }
            Ok(Staging { device, value: Some(value), ..Staging::of(host) })
        };
        ends.iter().enumerate().map(stage).collect()
    }

    /// Whether a segment sends anything to the device.
    fn has_work(&self, segment: &Segment, floats: &Floats) -> bool {
        let travels = |staging: &Staging| staging.value.is_some() && staging.host.len() > 0;
        let mut ends = segment.inputs.iter().map(|id| &floats.inputs[id.index()]);
        let mut results = segment.outputs.iter().map(|id| &floats.outputs[id.index()]);
        let mut copies = segment.copies.iter().filter(|(from, _)| from.ty.bytes() > 0);
        self.steps[segment.steps.clone()].iter().any(|bound| !bound.is_empty())
            || ends.any(travels)
            || results.any(travels)
            || copies.next().is_some()
    }

    fn send_inputs(&self, segment: &Segment, floats: &Floats) -> Result<()> {
        for input in segment.inputs.iter().map(|id| &floats.inputs[id.index()]) {
            let Some(value) = input.value else { continue };
            let target = input.device.as_ref().map_or(value, |(floats, _)| floats.pointer());
            copy_in(&self.device, &input.host, target)?;
            if let Some((_, cast)) = &input.device {
                cast.launch(&self.device)?;
            }
        }
        Ok(())
    }

    fn send_outputs(&self, segment: &Segment, floats: &Floats) -> Result<()> {
        for output in segment.outputs.iter().map(|id| &floats.outputs[id.index()]) {
            let Some(mut source) = output.value else { continue };
            if let Some((floats, cast)) = &output.device {
                cast.launch(&self.device)?;
                source = floats.pointer();
            }
            copy_out(&self.device, source, &output.host)?;
        }
        Ok(())
    }

    /// Sends all segments to the device's stream, between whatever the caller sends.
    pub(super) fn record(&self) -> Result<()> {
        self.plan.segments.iter().try_for_each(|segment| self.record_segment(segment))
    }

    /// Sends the steps of a segment, and the copies of new values that were made elsewhere.
    fn record_segment(&self, segment: &Segment) -> Result<()> {
        segment.steps.clone().try_for_each(|step| self.record_step(step))?;
        self.record_copies(segment)
    }

    fn record_copies(&self, segment: &Segment) -> Result<()> {
        segment.copies.iter().try_for_each(|(from, to)| {
            copy_between(&self.device, self.address(from)?, self.address(to)?, from.ty.bytes())
        })
    }

    /// Sends one step to the device's stream.
    pub(super) fn record_step(&self, step: usize) -> Result<()> {
        self.steps[step].iter().try_for_each(|bound| bound.launch(&self.device))
    }

    /// Where an operand of the arena lies on the device.
    pub(super) fn address(&self, operand: &Operand) -> Result<sys::CUdeviceptr> {
        match operand.place {
            Place::Arena(slot) => Ok(self.arena.pointer() + slot.offset as u64),
            Place::Const(_) => Err(Error::Graph("a constant where a value of the arena is needed".into())),
        }
    }

    /// Lets what is sent to `stream` come after the last run on another stream.
    pub(super) fn wait_on_last(&self, stream: sys::CUstream) -> Result<()> {
        let Some(event) = &self.last_external else { return Ok(()) };
        // SAFETY: a live event and a stream of its context.
        unsafe { sys::cuStreamWaitEvent(stream, event.cu_event(), 0) }
            .result()
            .map_err(|e| fault("cannot wait for an event", e))
    }

    /// Notes that a run on another stream ends with `event`.
    pub(super) fn record_end(&mut self, event: Arc<CudaEvent>) {
        self.last_external = Some(event);
    }

    /// Lets what is sent to the device's own stream come after the last run on another, and forgets that one:
    /// who sends waits.
    pub(super) fn join(&mut self) -> Result<()> {
        self.wait_on_last(self.device.stream().cu_stream())?;
        self.last_external = None;
        Ok(())
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The host's side of input `index`, to be filled before every [`Executor::run`]; empty without floats.
    pub fn input_mut(&mut self, index: usize) -> &mut [f32] {
        self.floats.as_mut().map_or(&mut [], |floats| floats.inputs[index].host.as_mut_slice())
    }

    /// As [`Executor::input_mut`], for an input of indices.
    pub fn input_i32_mut(&mut self, index: usize) -> &mut [i32] {
        bytemuck::cast_slice_mut(self.input_mut(index))
    }

    /// Result `index`, valid after [`Executor::run`]; empty without floats. Index results are `i32` bits.
    pub fn output(&self, index: usize) -> &[f32] {
        self.floats.as_ref().map_or(&[], |floats| floats.outputs[index].host.as_slice())
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

    /// Runs all segments between the host's floats: one graph launch and one wait.
    ///
    /// # Errors
    /// [`Error::Graph`] if the executor was made without floats. [`Error::Cuda`] as the driver says; after a
    /// fault the device's context is of no further use.
    pub fn run(&mut self) -> Result<()> {
        self.start_segments(self.all_segments())?;
        self.device.synchronize()
    }

    fn start_segments(&mut self, range: RangeInclusive<usize>) -> Result<()> {
        self.join()?;
        let at = self.captured(range)?;
        match &self.floats()?.graphs[at].graph {
            Some(graph) => launch(graph),
            None => Ok(()),
        }
    }

    /// Lets an input be written while what was started reads where it lies now.
    fn turn(&mut self, input: InputId) -> Result<()> {
        let staging = &mut self.floats.as_mut().ok_or_else(without_floats)?.inputs[input.index()];
        let other = match staging.other.take() {
            Some(other) => other,
            None => Pinned::new(&self.device, staging.host.len())?,
        };
        staging.other = Some(std::mem::replace(&mut staging.host, other));
        (staging.turned, staging.ahead) = (!staging.turned, true);
        Ok(())
    }

    fn floats(&self) -> Result<&Floats> {
        self.floats.as_ref().ok_or_else(without_floats)
    }
}

fn without_floats() -> Error {
    Error::Graph("the executor has no inputs and results on the host".into())
}

/// Places of floats, each once and in order, without the empty ones; `None` if two overlap.
fn distinct(places: Vec<(u64, usize)>) -> Option<Vec<(u64, usize)>> {
    let mut seen = HashSet::new();
    let places: Vec<(u64, usize)> =
        places.into_iter().filter(|place| place.1 > 0 && seen.insert(*place)).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    let apart = |pair: &[(u64, usize)]| pair[0].0 + 4 * pair[0].1 as u64 <= pair[1].0;
    sorted.windows(2).all(apart).then_some(places)
}

/// What [`Executor::with_floats`] makes.
impl exec::Executor for Executor {
    fn described(&self) -> plan::Plan {
        self.plan.described()
    }

    fn inputs(&self) -> &[(String, Operand)] {
        &self.plan.inputs
    }

    fn outputs(&self) -> &[(String, Operand)] {
        &self.plan.outputs
    }

    fn variables(&self) -> &[Variable] {
        &self.plan.variables
    }

    fn segments(&self) -> &[Segment] {
        &self.plan.segments
    }

    fn input(&mut self, input: InputId) -> HostMut<'_> {
        let dtype = self.plan.inputs[input.index()].1.ty.dtype;
        HostMut::of(dtype, self.input_mut(input.index()))
    }

    fn read(&self, output: OutputId) -> Host<'_> {
        Host::of(self.output_type(output.index()).dtype, self.output(output.index()))
    }

    fn fetch(&self, output: OutputId, values: &mut [f32]) -> Result<()> {
        let result = &self.plan.outputs[output.index()];
        exec::check_fetch(result, values.len())?;
        let host = self.output(output.index());
        if host.len() == values.len() {
            values.copy_from_slice(host);
            return Ok(());
        }
        let (name, operand) = result;
        if operand.ty.dtype != DType::F32 {
            return Err(Error::Graph(format!("`{name}` stays on the device as {}", operand.ty)));
        }
        memory::read(&self.device, self.address(operand)?, bytemuck::cast_slice_mut(values))
    }

    fn on_device(&mut self, results: &[OutputId]) -> Result<Option<DeviceFloats>> {
        self.join()?;
        let mut places = Vec::with_capacity(results.len());
        for id in results {
            let (name, operand) = &self.plan.outputs[id.index()];
            if operand.ty.dtype != DType::F32 {
                return Err(Error::Graph(format!("`{name}` is {}, and no floats", operand.ty)));
            }
            places.push((self.address(operand)?, operand.ty.shape.len()));
        }
        let places = distinct(places).ok_or_else(|| Error::Graph("results overlap on the device".into()))?;
        Ok(Some(DeviceFloats { places, stream: self.device.stream().cu_stream() as usize }))
    }

    fn start(&mut self, segments: RangeInclusive<SegmentId>) -> Result<()> {
        let segments = segments.start().index()..=segments.end().index();
        self.start_segments(segments.clone())?;
        if let Some(floats) = &mut self.floats {
            floats.started.push(segments);
            floats.inputs.iter_mut().for_each(|input| input.ahead = false);
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        self.floats.iter_mut().for_each(|floats| floats.started.clear());
        self.device.synchronize()
    }

    fn write_ahead(&mut self, input: InputId, values: Host<'_>) -> Result<bool> {
        let floats = self.floats()?;
        let mut started = floats.started.iter().flat_map(|range| &self.plan.segments[range.clone()]);
        let is_read = started.any(|segment| segment.inputs.contains(&input));
        if is_read && !floats.inputs[input.index()].ahead {
            self.turn(input)?;
        }
        self.write(input, values)?;
        Ok(true)
    }

    fn run_timed(&mut self, segment: SegmentId, report: &mut Report<'_>) -> Result<()> {
        self.join()?;
        self.device.bind()?;
        let (floats, stopwatch) = (self.floats()?, Stopwatch::new(&self.device)?);
        let segment = &self.plan.segments[segment.index()];
        self.send_inputs(segment, floats)?;
        for step in segment.steps.clone() {
            let mut time = Duration::ZERO;
            if !self.steps[step].is_empty() {
                // Once, not repeated as for a table of times: a step may update a variable.
                let graph = capture(&self.device, || self.record_step(step))?;
                time = stopwatch.time(&self.device, &graph)?;
            }
            report(step, time);
        }
        self.record_copies(segment)?;
        self.send_outputs(segment, floats)?;
        self.device.synchronize()
    }

    fn read_variable(&self, variable: VariableId, values: &mut [f32]) -> Result<()> {
        let variable = &self.plan.variables[variable.index()];
        exec::check_variable(variable, values.len())?;
        memory::read(&self.device, self.address(&variable.operand)?, bytemuck::cast_slice_mut(values))
    }

    fn write_variable(&mut self, variable: VariableId, values: &[f32]) -> Result<()> {
        let variable = &self.plan.variables[variable.index()];
        exec::check_variable(variable, values.len())?;
        memory::write(&self.device, self.address(&variable.operand)?, bytemuck::cast_slice(values))
    }
}
