//! Times on a device.
//!
//! A candidate is captured several times in a row into one CUDA graph, as a plan's steps are, and what
//! remains of the time of the two events around it ([`Stopwatch`]) is divided by the repeats. All repeats
//! read the same maps, which therefore lie in L2 if they fit there, as they do in a plan whose step before
//! has just written them. Constants (filters) are read once a run of a plan, and by then others have taken
//! their place in L2: each repeat reads another copy, as many as it takes to fill the cache twice.

use super::TuningTask;
use crate::cuda::device::fault;
use crate::cuda::launch::{Arg, Launch, Packing};
use crate::cuda::memory::DeviceBuffer;
use crate::cuda::pack::pack;
use crate::cuda::recording::{Bound, capture};
use crate::cuda::runtime::Runtime;
use crate::cuda::stopwatch::{Stopwatch, noise};
use crate::error::{Error, Result};
use crate::ops::ValueType;
use cudarc::driver::CudaGraph;
use std::time::Duration;

/// Takes times on a device.
pub struct Timer<'a> {
    runtime: &'a Runtime,
    /// Runs of a candidate in a graph.
    repeats: usize,
    stopwatch: Stopwatch,
    bench: Option<Bench>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound, as every method
// does.
unsafe impl Send for Timer<'_> {}

/// A task's operands on the device and the graphs of its candidates.
struct Bench {
    /// The site as text.
    site: String,
    repeats: usize,
    graphs: Vec<Option<Ready>>,
    /// Operands that are no constants, at their positions; empty buffers at those of constants.
    inputs: Vec<DeviceBuffer>,
    outputs: Vec<DeviceBuffer>,
    workspace: DeviceBuffer,
    /// Copies of constants, by position and packing.
    constants: Vec<(usize, Packing, Vec<DeviceBuffer>)>,
}

/// A captured candidate; the graph goes before what it launches.
struct Ready {
    graph: CudaGraph,
    _bound: Vec<Bound>,
}

impl<'a> Timer<'a> {
    /// Compiles, several at a time, whatever `tasks` need. Each time will be that of one of `repeats` runs in
    /// a row; [`REPEATS`](super::REPEATS) are enough to make events not count.
    ///
    /// # Errors
    /// [`Error::Cuda`] for kernels that do not compile, and as the driver says.
    pub fn new(runtime: &'a Runtime, tasks: &[TuningTask], repeats: usize) -> Result<Timer<'a>> {
        let programs = tasks.iter().flat_map(|task| &task.candidates);
        runtime.load(&programs.flat_map(|program| &program.launches).collect::<Vec<&Launch>>())?;
        let stopwatch = Stopwatch::new(runtime.device())?;
        Ok(Timer { runtime, repeats: repeats.max(1), stopwatch, bench: None })
    }

    /// The time of candidate `index` of `task`. Operands and graph are made, and run once, the first time;
    /// those of a task are dropped when another comes.
    ///
    /// # Errors
    /// [`Error::Cuda`] for memory that does not suffice, and as the driver says.
    pub fn measure(&mut self, task: &TuningTask, index: usize) -> Result<Duration> {
        let site = task.site.site().to_string();
        if self.bench.as_ref().is_none_or(|bench| bench.site != site) {
            self.bench = None;
        }
        let bench = match &mut self.bench {
            Some(bench) => bench,
            none => none.insert(Bench::new(self.runtime, task, self.repeats)?),
        };
        let graph = bench.graph(self.runtime, task, index)?;
        Ok(self.stopwatch.time(self.runtime.device(), graph)? / self.repeats as u32)
    }
}

impl Bench {
    fn new(runtime: &Runtime, task: &TuningTask, repeats: usize) -> Result<Bench> {
        let device = runtime.device();
        let types = task.site.site();
        let input = |(i, &ty): (usize, &ValueType)| match types.constant[i] {
            true => DeviceBuffer::new(device, 0, "nothing"),
            false => DeviceBuffer::of(device, &pack(&noise(ty, 1.0), Packing::plain(ty.dtype)), "an operand"),
        };
        let inputs = types.inputs.iter().enumerate().map(input).collect::<Result<_>>()?;
        let output = |ty: &ValueType| DeviceBuffer::new(device, ty.bytes(), "a result");
        let outputs = types.outputs.iter().map(output).collect::<Result<_>>()?;
        let bytes = task.candidates.iter().map(|program| program.workspace).max().unwrap_or(0);
        let workspace = DeviceBuffer::new(device, bytes, "partial sums")?;
        let graphs = task.candidates.iter().map(|_| None).collect();
        let site = types.to_string();
        Ok(Bench { site, repeats, graphs, inputs, outputs, workspace, constants: Vec::new() })
    }

    /// The captured candidate, which has run at least once.
    fn graph(&mut self, runtime: &Runtime, task: &TuningTask, index: usize) -> Result<&CudaGraph> {
        if self.graphs[index].is_none() {
            let ready = self.capture(runtime, task, index)?;
            ready.graph.launch().map_err(|e| fault("cannot launch the graph", e))?;
            runtime.device().synchronize()?;
            self.graphs[index] = Some(ready);
        }
        let ready = self.graphs[index].as_ref();
        ready.map(|ready| &ready.graph).ok_or_else(|| Error::Graph("a candidate was not captured".into()))
    }

    fn capture(&mut self, runtime: &Runtime, task: &TuningTask, index: usize) -> Result<Ready> {
        let (site, program) = (task.site.site(), &task.candidates[index]);
        let mut places = Vec::new();
        for (i, &ty) in site.inputs.iter().enumerate() {
            places.push(match site.constant[i] {
                true => Some(self.constant(runtime, i, ty, program.packing_of(i))?),
                false => None,
            });
        }
        let mut bound = Vec::new();
        for repeat in 0..self.repeats {
            for launch in &program.launches {
                bound.push(Bound::new(runtime, launch, |arg| {
                    Ok(match arg {
                        Arg::Input(i) => match places[*i] {
                            Some(place) => {
                                let copies = &self.constants[place].2;
                                copies[repeat % copies.len()].pointer()
                            }
                            None => self.inputs[*i].pointer(),
                        },
                        Arg::Output(i) => self.outputs[*i].pointer(),
                        Arg::Workspace(offset) => self.workspace.pointer() + *offset as u64,
                        Arg::Null | Arg::Struct(_) | Arg::Table(_) => 0,
                    })
                })?);
            }
        }
        let device = runtime.device();
        let graph = capture(device, || bound.iter().try_for_each(|launch| launch.launch(device)))?;
        Ok(Ready { graph, _bound: bound })
    }

    /// Place of the copies of constant `input` among [`Bench::constants`].
    fn constant(
        &mut self,
        runtime: &Runtime,
        input: usize,
        ty: ValueType,
        packing: Packing,
    ) -> Result<usize> {
        let known = self.constants.iter().position(|(i, other, _)| (*i, *other) == (input, packing));
        if let Some(known) = known {
            return Ok(known);
        }
        let device = runtime.device();
        // Small enough for sums over any filter to stay within f16.
        let bytes = pack(&noise(ty, 1.0 / 16.0), packing);
        let copies = (2 * device.caps().l2_bytes as usize / bytes.len().max(1)).clamp(1, self.repeats);
        let copy = |_| DeviceBuffer::of(device, &bytes, "a constant");
        self.constants.push((input, packing, (0..copies).map(copy).collect::<Result<_>>()?));
        Ok(self.constants.len() - 1)
    }
}
