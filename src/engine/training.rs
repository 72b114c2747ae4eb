//! What runs a training graph.

use super::Device;
use crate::cpu::{self, Arithmetic, Pool, Selection, Weights};
use crate::cuda::gpu::Precision;
use crate::cuda::{self, Runtime};
use crate::error::Result;
use crate::exec::Executor;
use crate::graph::Graph;
use crate::isa::Isa;
use crate::plan::constants::Loader;

/// The precision that training has on every device.
pub const TRAINING_PRECISION: Precision = Precision::F32;

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
    load: Box<Loader>,
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
        Device::Cuda(ordinal) => {
            let device = cuda::Device::open(ordinal)?;
            Runtime::check(&device)?;
            let runtime = Runtime::new(device, TRAINING_PRECISION, load)?;
            let plan = cuda::plan(graph, runtime.selection().clone())?;
            let mut executor = cuda::Executor::with_floats(plan, &runtime)?;
            executor.load(&|param| runtime.constants().load(param))?;
            Ok(Box::new(executor))
        }
    }
}
