//! Where the network runs: the CPU or a GPU behind one face.

use super::gpu::Gpu;
use super::tuning::Tuning;
use crate::cpu::{self, Pool, Selection, Weights};
use crate::cuda::gpu::{Precision, Target};
use crate::cuda::{self, Runtime};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ops::ValueType;
use crate::plan::Plan;
use crate::plan::constants::Loader;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Where an engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if it can be used, else the CPU; [`Engine::device_note`](super::Engine::device_note)
    /// then says why.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This NVIDIA GPU. If it cannot be used, that is an error.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Device> {
        let ordinal = || text.strip_prefix("cuda:")?.parse::<u8>().ok();
        match (text, ordinal()) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            (_, Some(number)) => Ok(Device::Cuda(number.into())),
            _ => Err(Error::usage(format!("`{text}` is no device; takes auto, cpu, cuda or cuda:N"))),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// A back end with its constants.
pub(super) enum Backend {
    Cpu { selection: Selection, weights: Weights },
    Cuda(Box<Runtime>),
}

/// A plan bound to a back end.
pub(super) enum Executor {
    Cpu(Box<cpu::Executor>),
    /// Between floats on the host.
    Cuda(Box<cuda::Executor>),
    /// From photos to results at their size.
    Gpu(Box<Gpu>),
}

/// What a person may want to know of how a back end came about.
pub(super) struct Notes {
    /// Why the CPU computes.
    pub device: Option<String>,
    /// Why a tuning table is not followed.
    pub tuning: Option<String>,
}

impl Backend {
    /// The back end for `device`, with kernels by `selection` on the CPU, and why it is not the GPU if it
    /// might have been, or does not follow the tuning table.
    pub(super) fn new(
        device: Device,
        precision: Precision,
        selection: Selection,
        tuning: &Tuning,
        load: Box<Loader>,
    ) -> Result<(Backend, Notes)> {
        let ready = |ordinal| -> Result<cuda::Device> {
            let device = cuda::Device::open(ordinal)?;
            Runtime::check(&device)?;
            Ok(device)
        };
        let (gpu, device) = match device {
            Device::Cpu => (None, None),
            Device::Cuda(ordinal) => (Some(ready(ordinal)?), None),
            Device::Auto => match ready(0) {
                Ok(gpu) => (Some(gpu), None),
                Err(reason) => (None, Some(reason.to_string())),
            },
        };
        let Some(gpu) = gpu else {
            let backend = Backend::Cpu { selection, weights: Weights::new(load) };
            return Ok((backend, Notes { device, tuning: None }));
        };
        let mut runtime = Runtime::new(gpu, precision, load)?;
        let tuning = tuning.apply(&mut runtime)?;
        Ok((Backend::Cuda(Box::new(runtime)), Notes { device: None, tuning }))
    }

    /// The device, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Backend::Cpu { selection, .. } => format!("cpu ({})", selection.isa),
            Backend::Cuda(runtime) => {
                let precision = runtime.target().precision.name();
                format!("{} ({precision})", runtime.device().name())
            }
        }
    }

    pub(super) fn is_emulated(&self) -> bool {
        matches!(self, Backend::Cuda(runtime) if runtime.device().is_emulated())
    }

    pub(super) fn target(&self) -> Option<Target> {
        match self {
            Backend::Cpu { .. } => None,
            Backend::Cuda(runtime) => Some(runtime.target()),
        }
    }

    /// The plan of `graph`, for people.
    pub(super) fn plan(&self, graph: &Graph) -> Result<Plan> {
        match self {
            Backend::Cpu { selection, .. } => Ok(cpu::plan(graph, *selection)?.described()),
            Backend::Cuda(runtime) => Ok(cuda::plan(graph, runtime.selection().clone())?.described()),
        }
    }

    /// As [`Backend::executor`], without floats on the host where a GPU can go from photos to results by
    /// itself.
    pub(super) fn pipelined(&self, graph: &Graph, pool: &Pool) -> Result<Executor> {
        let Backend::Cuda(runtime) = self else { return self.executor(graph, pool) };
        let plan = cuda::plan(graph, runtime.selection().clone())?;
        let executor = pool.run(|| cuda::Executor::new(plan, runtime))?;
        runtime.trim();
        Ok(Executor::Gpu(Box::new(Gpu::new(executor))))
    }

    /// The GPU's runtime.
    pub(super) fn runtime(&self) -> Option<&Runtime> {
        match self {
            Backend::Cpu { .. } => None,
            Backend::Cuda(runtime) => Some(runtime),
        }
    }

    /// Plans `graph` and binds the plan to memory and constants.
    pub(super) fn executor(&self, graph: &Graph, pool: &Pool) -> Result<Executor> {
        match self {
            Backend::Cpu { selection, weights } => {
                let plan = cpu::plan(graph, *selection)?;
                let executor = pool.run(|| cpu::Executor::new(plan, weights))?;
                weights.trim();
                Ok(Executor::Cpu(Box::new(executor)))
            }
            Backend::Cuda(runtime) => {
                let plan = cuda::plan(graph, runtime.selection().clone())?;
                let executor = pool.run(|| cuda::Executor::with_floats(plan, runtime))?;
                runtime.trim();
                Ok(Executor::Cuda(Box::new(executor)))
            }
        }
    }
}

impl Executor {
    /// The plan, for people.
    pub(super) fn plan(&self) -> Plan {
        match self {
            Executor::Cpu(executor) => executor.plan().described(),
            Executor::Cuda(executor) => executor.plan().described(),
            Executor::Gpu(gpu) => gpu.executor().plan().described(),
        }
    }

    pub(super) fn input_mut(&mut self, index: usize) -> &mut [f32] {
        match self {
            Executor::Cpu(executor) => executor.input_mut(index),
            Executor::Cuda(executor) => executor.input_mut(index),
            Executor::Gpu(gpu) => gpu.executor_mut().input_mut(index),
        }
    }

    pub(super) fn run(&mut self) -> Result<()> {
        match self {
            Executor::Cpu(executor) => executor.run(),
            Executor::Cuda(executor) => executor.run()?,
            Executor::Gpu(gpu) => gpu.run()?,
        }
        Ok(())
    }

    /// The time of the network alone in each of `runs` runs, over whatever its inputs hold: on a GPU by the
    /// device's own clock, as one graph without copies; on the CPU by the wall's.
    pub(super) fn time_network(&mut self, runs: usize) -> Result<Vec<Duration>> {
        match self {
            Executor::Cpu(executor) => Ok((0..runs)
                .map(|_| {
                    let start = Instant::now();
                    executor.run();
                    start.elapsed()
                })
                .collect()),
            Executor::Cuda(executor) => executor.time_network(runs),
            Executor::Gpu(gpu) => gpu.executor_mut().time_network(runs),
        }
    }

    /// The time of each step in each of `runs` runs: on the CPU in runs of the network, on a GPU as
    /// [`cuda::Executor::time_steps`] takes it.
    pub(super) fn time_steps(&mut self, runs: usize, mut report: impl FnMut(usize, Duration)) -> Result<()> {
        match self {
            Executor::Cpu(executor) => (0..runs).for_each(|_| executor.run_timed(&mut report)),
            Executor::Cuda(executor) => executor.time_steps(runs, report)?,
            Executor::Gpu(gpu) => gpu.executor_mut().time_steps(runs, report)?,
        }
        Ok(())
    }

    pub(super) fn output(&self, index: usize) -> &[f32] {
        match self {
            Executor::Cpu(executor) => executor.output(index),
            Executor::Cuda(executor) => executor.output(index),
            Executor::Gpu(gpu) => gpu.executor().output(index),
        }
    }

    pub(super) fn output_index(&self, name: &str) -> Option<usize> {
        match self {
            Executor::Cpu(executor) => executor.output_index(name),
            Executor::Cuda(executor) => executor.output_index(name),
            Executor::Gpu(gpu) => gpu.executor().output_index(name),
        }
    }

    pub(super) fn output_type(&self, index: usize) -> ValueType {
        match self {
            Executor::Cpu(executor) => executor.output_type(index),
            Executor::Cuda(executor) => executor.output_type(index),
            Executor::Gpu(gpu) => gpu.executor().output_type(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:999"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
