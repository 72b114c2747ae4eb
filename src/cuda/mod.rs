//! CUDA back end: what each operator launches, the compiler of the kernels, and the executor that replays a plan as one
//! CUDA graph.
//!
//! Only what the programs of [`ops`] say is compiled and launched; they are pure functions, tested where there is no GPU as is
//! the executor, on the stand-in driver of `tools/ptxemu`.

pub mod cache;
pub mod device;
pub mod executor;
mod memory;
pub mod nvrtc;
pub mod ops;
pub mod pack;
pub mod pipeline;
pub mod post;
pub mod pre;
mod recording;
pub mod runtime;
pub mod sources;

pub use device::Device;
pub use executor::Executor;
pub use pipeline::Pipeline;
pub use runtime::Runtime;

use crate::error::Result;
use crate::graph::Graph;
use crate::graph::maps::fuse_maps;
use crate::graph::rows::fuse_rows;
use crate::ops::ValueType;
use crate::plan::launch::{Precision, Target};
use crate::plan::{Choice, Plan, Site};
use crate::tensor::DType;

/// The plan of an optimised graph of inference: steps over rows of objects are fused first, because each costs less than its
/// launch, and in 16-bit types so are norms and sums of maps. In f32, which is for parity, a norm takes its moments relative to an
/// element of the map, as the CPU does.
///
/// # Errors
/// As [`Plan::build_stored`].
pub fn plan(graph: &Graph, target: Target) -> Result<Plan> {
    let mut graph = graph.clone();
    fuse_rows(&mut graph)?;
    if target.precision != Precision::F32 {
        fuse_maps(&mut graph)?;
    }
    Plan::build_stored(&graph, stored(target), select(target))
}

/// Type in device memory of a value that the graph knows as `ty`: feature maps and mask logits (rank 4) take the
/// precision's storage type; rows of objects stay f32, as they are few and the sums of mask pooling leave f16's range.
pub fn stored(target: Target) -> impl Fn(ValueType) -> ValueType {
    move |ty| match ty.dtype {
        DType::F32 if ty.shape.rank() == 4 => ValueType { dtype: target.precision.storage(), ..ty },
        _ => ty,
    }
}

/// The GPU's kernel selection, for [`Plan::build_stored`](crate::plan::Plan::build_stored).
pub fn select(target: Target) -> impl Fn(&Site<'_>) -> std::result::Result<Choice, String> {
    move |site| {
        let program = ops::program(site, &target)?;
        program.launches.iter().try_for_each(|launch| launch.check(&target.caps))?;
        Ok(Choice { kernel: program.kernel, workspace: program.workspace })
    }
}
