//! CPU back end.
pub mod conv;
pub mod gemm;
pub mod isa;
