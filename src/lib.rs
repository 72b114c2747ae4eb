//! K-Net segmentation engine.
pub mod checkpoint;
pub mod cpu;
pub mod engine;
pub mod error;
pub mod fsio;
pub mod graph;
pub mod image;
pub mod isa;
pub mod model;
pub mod ops;
pub mod plan;
pub mod tensor;

pub use engine::Engine;
pub use error::{Error, ErrorKind, Result};
