//! CPU back end.
pub mod isa;
