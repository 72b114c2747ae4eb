//! K-Net segmentation engine.
pub mod cpu;
pub mod error;
pub mod tensor;
