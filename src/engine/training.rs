//! What runs a training graph.

use super::{Device, Engine, WeightSource};
use crate::cpu::{self, Arithmetic, Pool, Selection, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::{self, Runtime, gpu::Precision};
#[cfg(not(feature = "cuda"))]
use crate::error::Error;
use crate::error::Result;
use crate::exec::Executor;
use crate::graph::Graph;
use crate::isa::Isa;
use crate::plan::constants::ParamLoader;
use std::path::Path;

/// The precision that training has on a GPU.
#[cfg(feature = "cuda")]
const PRECISION: Precision = Precision::F32;

/// An engine with the weights in `path`, on the device and in the precision that training has: what a GPU in
/// f16 makes of a checkpoint must not choose the best one of a run in f32. As in training, [`Device::Auto`]
/// is the CPU.
///
/// # Errors
/// As [`EngineBuilder::build`](super::EngineBuilder::build).
pub fn validation_engine(path: &Path, device: Device, threads: usize) -> Result<Engine> {
    let device = if device == Device::Auto { Device::Cpu } else { device };
    let builder = Engine::builder().weights(WeightSource::File(path.to_path_buf()));
    #[cfg(feature = "cuda")]
    let builder = builder.precision(PRECISION);
    builder.device(device).threads(threads).build()
}

/// Plans a training graph for a device and loads its variables and constants, which `load` gives in the
/// checkpoint's layout. `threads` are those of the CPU, 0 for one a core. [`Device::Auto`] is the CPU, which
/// alone has programs for all that training does.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) naming the first operator that the device has no program for;
/// [`Error::Cuda`](crate::Error::Cuda) if it cannot be used, [`Error::Memory`](crate::Error::Memory) if it is
/// too small; what `load` says.
pub fn training_executor(
    device: Device,
    graph: &Graph,
    threads: usize,
    load: Box<ParamLoader>,
) -> Result<Box<dyn Executor>> {
    match device {
        Device::Auto | Device::Cpu => {
            let pool = Pool::new(threads)?;
            // Exact: what a stage pools hangs on which side of 0 a mask logit falls, and a pixel of a small
            // mask is a per cent of it.
            let fast = Selection::new(Isa::detect(), pool.threads());
            let plan = cpu::plan(graph, Selection { arithmetic: Arithmetic::Exact, ..fast })?;
            let weights = Weights::new(load);
            let executor = pool.run(|| cpu::Executor::new(plan, &weights))?;
            let mut executor = executor.in_pool(pool);
            executor.load(&|param| weights.load(param))?;
            Ok(Box::new(executor))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(Error::NoDevice("knet was built without its feature `cuda`".into())),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let device = cuda::Device::open(ordinal)?;
            Runtime::check(&device)?;
            let runtime = Runtime::new(device, PRECISION, load)?;
            let plan = cuda::plan(graph, runtime.selection().clone())?;
            let mut executor = cuda::Executor::with_floats(plan, &runtime)?;
            executor.load(&|param| runtime.constants().load(param))?;
            Ok(Box::new(executor))
        }
    }
}
