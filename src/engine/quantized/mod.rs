//! Quantized models: filters as 8-bit integers in the file, and the levels that maps are brought to, found on
//! photos.
//!
//! | module | holds |
//! |---|---|
//! | [`calibrate`] | what values maps have on photos, and the levels for them |
//! | [`mod@file`] | what a checkpoint says of its quantized filters |
//! | [`make`] | the way from a checkpoint and photos to a quantized checkpoint |
//! | [`report`] | how far each layer is off |

pub mod calibrate;
pub mod file;
pub mod make;
pub mod report;

pub use calibrate::{Calibration, Clip};
pub use file::{QUANTIZATION_KEY, Quantized};
pub use make::{Written, already_quantized, write};
pub use report::{LayerError, compare};
