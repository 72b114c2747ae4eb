//! CPU back end.
pub use crate::isa;
