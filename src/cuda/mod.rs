//! CUDA back end: what each operator launches, the compiler of the kernels, and the executor that replays a
//! plan as one CUDA graph.
//!
//! Only what the programs of [`ops`] say is compiled and launched; they are pure functions, tested where
//! there is no GPU as is the executor, on the stand-in driver of `tools/ptxemu`.
//!
//! # Beside other users of the GPU
//!
//! Engines use the device's primary context, which they share with the CUDA runtime and so with PyTorch, and
//! in it streams of their own. They wait for streams and events, never for the context. Any number of engines
//! may plan and run at once, each in a thread of its own.
//!
//! While an engine plans for a size it has not seen, it records graphs by stream capture, in the mode that
//! leaves other threads alone (`CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`): they may launch, copy, allocate, free
//! and load modules meanwhile. But CUDA lets nobody wait for a context in which anything is captured,
//! whatever the mode: `cudaDeviceSynchronize` or `cuCtxSynchronize` in another thread fails then, and so does
//! the capture, with an error that says so. A program that calls either should let its engines see an image
//! of each size first, or keep both under one lock. Nor may a thread begin a capture of its own in the global
//! mode while an engine plans in another: planning allocates, which that mode forbids to every thread.

pub mod compile;
pub mod device;
pub mod executor;
pub mod gpu;
pub mod launch;
pub mod lower;
mod memory;
pub mod nccl;
pub mod on_device;
pub mod ops;
pub mod pack;
pub mod pipeline;
pub mod post;
pub mod pre;
pub mod probe;
mod profile;
mod recording;
pub mod runtime;
pub mod selection;
mod stopwatch;
pub mod tiles;
mod told;
pub mod tune;

pub use compile::{cache, nvrtc, sources};
pub use device::Device;
pub use executor::Executor;
pub use pipeline::Pipeline;
pub use runtime::Runtime;
pub use selection::Selection;
pub use told::Told;

use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::error::Result;
use crate::graph::Graph;
use crate::ops::{Role, ValueType};
use crate::plan::{self, Choice, Site};
use crate::tensor::DType;
use lower::{fuse_conv_tails, fuse_linears, pack_filters};

/// A plan whose steps carry what they launch.
pub type Plan = plan::Plan<Program>;

/// The plan of an optimised graph of inference: steps over rows of objects are fused first, because each
/// costs less than its launch, and in 16-bit types so are norms and sums of maps. In f32, which is for
/// parity, a norm takes its moments relative to an element of the map, as the CPU does. Of a graph that is
/// cut into segments or updates variables, the filters alone are laid out in front, in 16-bit types.
///
/// # Errors
/// As [`Plan::build`](plan::Plan::build).
pub fn plan(graph: &Graph, selection: impl Into<Selection>) -> Result<Plan> {
    let selection = selection.into();
    let mut graph = graph.clone();
    let inference = graph.segments().is_empty() && graph.updates().is_empty();
    if inference {
        fuse_linears(&mut graph)?;
    }
    if selection.target().precision.is_half() {
        if inference {
            fuse_conv_tails(&mut graph)?
        } else {
            pack_filters(&mut graph)?
        };
    }
    let stored = stored(selection.target());
    Plan::build(&graph, |_, ty| stored(ty), select(selection))
}

/// Type in device memory of a value that the graph knows as `ty`, by its [`Role`] alone: maps take the
/// precision's storage type, everything else stays as it is.
pub fn stored(target: Target) -> impl Fn(ValueType) -> ValueType {
    move |ty| {
        let dtype = match ty.role {
            Role::Map => target.precision.storage(),
            Role::Rows | Role::Weight | Role::Exact => DType::F32,
            Role::Index => DType::I32,
        };
        ValueType { dtype, ..ty }
    }
}

/// The GPU's kernel selection, for [`Plan::build`](crate::plan::Plan::build).
pub fn select(
    selection: impl Into<Selection>,
) -> impl Fn(&Site<'_>) -> std::result::Result<Choice<Program>, String> {
    let selection = selection.into();
    move |site| selection.choose(site)
}
