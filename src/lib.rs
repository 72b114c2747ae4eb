//! K-Net segmentation engine.
pub mod cpu;
pub mod error;
pub mod image;
pub mod isa;
pub mod tensor;
