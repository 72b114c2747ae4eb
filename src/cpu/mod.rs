//! CPU back end: kernels, and the executor that walks a plan.

pub mod executor;
pub mod isa;
pub mod kernel;
mod ops;
pub mod weights;

pub use executor::{Executor, select};
pub use weights::Weights;
