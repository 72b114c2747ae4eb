//! K-Net segmentation engine.
pub mod cpu;
pub mod error;
pub mod graph;
pub mod image;
pub mod isa;
pub mod model;
pub mod ops;
pub mod plan;
pub mod tensor;

pub use error::{Error, ErrorKind, Result};
