//! CPU back end: kernels, and the executor that walks a plan.

pub mod buffer;
pub mod executor;
pub mod isa;
pub mod kernel;
pub mod pool;
mod ops;
pub mod weights;

pub use executor::{Executor, select};
pub use pool::Pool;
pub use weights::Weights;
