//! The CUDA back end without a device: kernels on the emulator inside this process, what the compiler makes
//! of them, and programs on the stand-in driver.

mod constants;
mod conv;
mod counts;
mod gates;
mod image;
mod instances;
mod limits;
mod mirrors;
mod program;
mod rows;
mod updates;
