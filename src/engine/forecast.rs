//! What a training step takes on a device, planned and not allocated. The device need not be here.

use super::training::{cpu_selection, meant};
use super::{Compute, Device};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::{
    self,
    gpu::{Gpu, Target, roofline},
};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::memory;
use crate::plan::Plan;
use std::time::Duration;

#[cfg(feature = "cuda")]
use super::TrainingPrecision;
#[cfg(feature = "cuda")]
use crate::plan::Operand;

/// A device that a training step is planned for.
#[derive(Clone, Debug)]
pub struct TrainingDevice {
    title: String,
    kind: Kind,
    available: Option<u64>,
}

#[derive(Clone, Debug)]
enum Kind {
    Cpu(cpu::Selection),
    #[cfg(feature = "cuda")]
    Cuda(Target),
}

/// What a step takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes of what stays from step to step: weights in training, their moments, sums and averages.
    pub kept: usize,
    /// Bytes of maps, gradients and workspace, which share memory where they do not live at once, and on a
    /// GPU of the f32 that the host sends.
    pub passing: usize,
    /// Bytes of frozen weights and other constants, in f32. A GPU in 16 bits keeps filters in half of it.
    pub constants: usize,
    /// Floating-point operations of the direct algorithms.
    pub flops: u64,
    /// On a GPU, the least time of a step, and a table of it by operator.
    pub roofline: Option<(Duration, String)>,
}

impl Forecast {
    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.kept + self.passing + self.constants
    }
}

impl TrainingDevice {
    /// The device of this machine that `compute` means.
    ///
    /// # Errors
    /// [`Error::Usage`] for a precision that it does not have; [`Error::NoDevice`] or [`Error::Cuda`] if
    /// there is no such GPU.
    pub fn of(compute: Compute) -> Result<TrainingDevice> {
        compute.validate().map_err(Error::usage)?;
        match meant(compute.device) {
            Device::Auto | Device::Cpu => {
                let threads = cpu::thread_count(compute.threads);
                Ok(TrainingDevice {
                    title: format!("CPU, {threads} threads, in f32"),
                    kind: Kind::Cpu(cpu_selection(threads)),
                    available: memory::available(),
                })
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(Error::NoDevice("knet was built without its feature `cuda`".into())),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let device = cuda::Device::open(ordinal)?;
                let (free, _) = device.memory()?;
                let target = Target { caps: *device.caps(), precision: compute.precision.into() };
                Ok(TrainingDevice {
                    title: format!("{} in {}", device.name(), compute.precision),
                    kind: Kind::Cuda(target),
                    available: Some(free as u64),
                })
            }
        }
    }

    /// A GPU as it is sold, with all of its memory free.
    #[cfg(feature = "cuda")]
    pub fn published(gpu: &Gpu, precision: TrainingPrecision) -> TrainingDevice {
        TrainingDevice {
            title: format!("{} in {precision}", gpu.title),
            kind: Kind::Cuda(Target { caps: gpu.caps, precision: precision.into() }),
            available: Some(u64::from(gpu.memory_gb) * 1_000_000_000),
        }
    }

    /// The device and its precision, for people.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Bytes of memory that are free, if the system says.
    pub fn available(&self) -> Option<u64> {
        self.available
    }

    /// Whether the step takes the memory that photos are decoded into.
    pub fn is_host(&self) -> bool {
        matches!(self.kind, Kind::Cpu(_))
    }

    /// Plans a training graph.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the first operator that the device has no program for.
    pub fn forecast(&self, graph: &Graph) -> Result<Forecast> {
        match &self.kind {
            Kind::Cpu(selection) => Ok(sizes(&cpu::plan(graph, *selection)?, 0)),
            #[cfg(feature = "cuda")]
            Kind::Cuda(target) => {
                let plan = cuda::plan(graph, *target)?;
                let staged = |(_, operand): &(String, Operand)| match operand.ty.dtype.size() {
                    4 => 0,
                    _ => 4 * operand.ty.shape.len(),
                };
                let staged = plan.inputs.iter().chain(&plan.outputs).map(staged).sum();
                let shares = roofline::by_operator(&plan, target);
                let roofline = Some((roofline::plan(&plan, target), roofline::table(&shares)));
                Ok(Forecast { roofline, ..sizes(&plan, staged) })
            }
        }
    }
}

/// What a plan says of memory and work, with so many bytes beside its arena.
fn sizes<P>(plan: &Plan<P>, staged: usize) -> Forecast {
    let kept: usize = plan.variables.iter().map(|variable| variable.operand.ty.bytes()).sum();
    Forecast {
        kept,
        passing: plan.arena_bytes.saturating_sub(kept) + staged,
        constants: plan.consts.iter().map(|constant| constant.ty.bytes()).sum(),
        flops: plan.flops(),
        roofline: None,
    }
}
