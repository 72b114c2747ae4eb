//! K-Net segmentation engine.
pub mod error;
pub mod tensor;
