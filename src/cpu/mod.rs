//! CPU back end: kernels, and the executor that walks a plan.

mod affinity;
pub mod buffer;
pub(crate) mod conv;
pub(crate) mod dot;
pub(crate) mod element;
pub mod executor;
pub(crate) mod gemm;
pub mod kernel;
mod ops;
pub mod pool;
#[cfg(test)]
mod tests;
pub mod weights;
mod widened;

pub use affinity::pin;
pub use conv::Arithmetic;
pub use executor::{Executor, Plan, Selection, plan, rebind};
pub use pool::{Pool, thread_count};
pub use weights::Weights;
