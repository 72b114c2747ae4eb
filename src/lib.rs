//! K-Net segmentation engine.
pub mod checkpoint;
pub mod cpu;
pub mod error;
pub mod fsio;
pub mod tensor;
