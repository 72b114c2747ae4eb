//! K-Net segmentation engine.
pub mod cpu;
pub mod error;
pub mod graph;
pub mod ops;
pub mod plan;
pub mod tensor;
