//! Rewrites of an optimised graph for devices on which a launch costs more than a small step, and memory more
//! than arithmetic.

mod conv_tails;
mod linears;

pub use conv_tails::fuse_conv_tails;
pub use linears::fuse_linears;
