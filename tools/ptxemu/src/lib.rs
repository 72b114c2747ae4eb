//! Runs the PTX that NVRTC emits on the CPU, and checks every access.
//!
//! A PTX text is parsed and decoded once ([`Module::parse`]), given memory for its variables
//! ([`Instance::new`]), and launched over a grid ([`launch()`]). Warps run in lock-step over 32 lanes; blocks
//! run in parallel on host threads. What goes wrong ends the launch with a [`Fault`] that names the kernel,
//! the line of CUDA source (compile with `-lineinfo`), the PTX instruction, the thread, and what happened:
//!
//! - accesses outside allocations (red zones), after `free`, misaligned, of bytes or registers nobody has
//!   written;
//! - races in shared memory between warps (vector clocks over all barriers) and between lanes of a warp, and
//!   between the blocks of a launch in global memory, unless an atomic orders them;
//! - reads of asynchronous copies before their wait (`cp.async` data lands as late as it may), barriers
//!   reached by part of a warp, deadlocks, wrong barrier counts, shuffles from inactive lanes, matrix
//!   instructions by part of a warp.
//!
//! What goes well yields a [`Report`]: instructions by class, matrix products, shared-memory wavefronts
//! against the conflict-free count, global-memory sectors per request.
//!
//! Values are IEEE: sums, products, quotients, roots and conversions round as PTX says. The `.approx`
//! functions are more accurate than hardware's, and `mma` sums as [`MmaSum`] says, which is measured and
//! nowhere promised; both agree with a GPU to the accuracy it states, not to the bit. NaN payloads are
//! unspecified.
//!
//! Not there: `mbarrier`, bulk (TMA) copies, `wgmma`, clusters, textures, dynamic parallelism, recursion,
//! indirect calls.

mod exec;
mod fault;
mod ir;
mod launch;
mod lower;
mod memory;
mod module;
mod records;
mod report;
mod text;

pub use fault::{Details, Fault, FaultKind, ParseError, SourceLine};
pub use launch::{Config, Launch, MmaSum, launch};
pub use memory::{Allocation, BASE, Memory, Options};
pub use module::{Entry, Global, Instance, Module, Param};
pub use report::{Report, Traffic};
