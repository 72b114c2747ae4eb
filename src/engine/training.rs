//! What runs a training graph.

use super::{Device, Engine, WeightSource};
use crate::cpu::{self, Arithmetic, Pool, Selection, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::{self, Runtime};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::graph::{Graph, OutputId};
use crate::isa::Isa;
use crate::plan::constants::ParamLoader;
use crate::tensor::Precision;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What a GPU stores maps and their gradients as while it trains. Weights, gradients of filters, rows of
/// objects, losses and all sums are f32 in each; the CPU has f32 alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingPrecision {
    /// f32, for agreement with the CPU.
    #[default]
    F32,
    /// bf16 on tensor cores: f32's range, so that gradients need no scaling.
    Bf16,
    /// f16 on tensor cores, three digits more than bf16 and little range: losses are
    /// [scaled](crate::train::loss_scale), for GPUs that have no bf16.
    F16,
}

impl fmt::Display for TrainingPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrainingPrecision::F32 => "f32",
            TrainingPrecision::Bf16 => "bf16",
            TrainingPrecision::F16 => "f16",
        })
    }
}

impl FromStr for TrainingPrecision {
    type Err = Error;

    fn from_str(text: &str) -> Result<TrainingPrecision> {
        match text {
            "f32" => Ok(TrainingPrecision::F32),
            "bf16" => Ok(TrainingPrecision::Bf16),
            "f16" => Ok(TrainingPrecision::F16),
            _ => Err(Error::usage(format!("`{text}` is no precision of training; takes f32, bf16 or f16"))),
        }
    }
}

#[cfg(feature = "cuda")]
impl From<TrainingPrecision> for Precision {
    fn from(precision: TrainingPrecision) -> Precision {
        match precision {
            TrainingPrecision::F32 => Precision::F32,
            TrainingPrecision::Bf16 => Precision::Bf16,
            TrainingPrecision::F16 => Precision::F16,
        }
    }
}

/// What a run trains and validates on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// The device. [`Device::Auto`] is the CPU: a run does not change its numbers because a driver was
    /// installed.
    pub device: Device,
    /// Of maps on a GPU.
    pub precision: TrainingPrecision,
    /// Threads of the CPU, 0 for one a core. The numbers do not depend on it.
    pub threads: usize,
}

impl Compute {
    /// The CPU with so many threads.
    pub fn cpu(threads: usize) -> Compute {
        Compute { device: Device::Cpu, precision: TrainingPrecision::F32, threads }
    }

    /// The device that is meant.
    fn device(&self) -> Device {
        meant(self.device)
    }

    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        matches!(self.device(), Device::Cuda(_))
    }

    /// Whether the device has the precision.
    ///
    /// # Errors
    /// A sentence if not.
    pub fn validate(&self) -> Result<(), String> {
        match (self.device(), self.precision) {
            (Device::Cpu, precision) if precision != TrainingPrecision::F32 => {
                Err(format!("precision {precision} is that of a GPU (--device cuda); the CPU trains in f32"))
            }
            _ => Ok(()),
        }
    }
}

/// The device that a run means.
pub(super) fn meant(device: Device) -> Device {
    if device == Device::Auto { Device::Cpu } else { device }
}

/// How the CPU chooses kernels of a training graph. Exact: what a stage pools hangs on which side of 0 a mask
/// logit falls, and a pixel of a small mask is a per cent of it.
pub(super) fn cpu_selection(threads: usize) -> Selection {
    Selection { arithmetic: Arithmetic::Exact, ..Selection::new(Isa::detect(), threads) }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.device(), self.precision)
    }
}

/// An engine with the weights in `path` on the device that a run trains on, in f32: what a GPU in 16 bits
/// makes of a checkpoint must not choose the best one.
///
/// # Errors
/// As [`EngineBuilder::build`](super::EngineBuilder::build).
pub fn validation_engine(path: &Path, compute: Compute) -> Result<Engine> {
    let builder = Engine::builder().weights(WeightSource::File(path.to_path_buf()));
    let builder = builder.precision(Precision::F32);
    builder.device(compute.device()).threads(compute.threads).build()
}

/// Plans a training graph and loads its variables and constants, which `load` gives in the checkpoint's
/// layout. On a GPU the results `resident` stay where they are, and are empty on the host.
///
/// # Errors
/// [`Error::Usage`] for a precision that the device does not have;
/// [`Error::Shape`] naming the first operator that the device has no program for;
/// [`Error::Cuda`] if it cannot be used, [`Error::Memory`] if it is
/// too small; what `load` says.
pub fn training_executor(
    compute: Compute,
    graph: &Graph,
    load: Box<ParamLoader>,
    resident: &[OutputId],
) -> Result<Box<dyn Executor>> {
    compute.validate().map_err(Error::usage)?;
    match compute.device() {
        Device::Auto | Device::Cpu => {
            let pool = Pool::new(compute.threads)?;
            let plan = cpu::plan(graph, cpu_selection(pool.threads()))?;
            let weights = Weights::new(load);
            let executor = pool.run(|| cpu::Executor::new(plan, &weights))?;
            let mut executor = executor.in_pool(pool);
            executor.load(&|param| weights.load(param))?;
            Ok(Box::new(executor))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => {
            let _ = resident;
            Err(Error::NoDevice("knet was built without its feature `cuda`".into()))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let device = cuda::Device::open(ordinal)?;
            Runtime::check(&device)?;
            let runtime = Runtime::new(device, compute.precision.into(), load)?;
            let plan = cuda::plan(graph, runtime.selection().clone())?;
            let mut executor = cuda::Executor::with_floats_but(plan, &runtime, resident)?;
            executor.load(&|param| runtime.constants().load(param))?;
            Ok(Box::new(executor))
        }
    }
}
