//! Which GPU is measured.

use knet::cuda::Device;

/// The GPU to measure; if there is none, or only the emulator's, on which no time means anything, one line
/// says so.
pub fn gpu() -> Option<usize> {
    let reason = match Device::open(0) {
        Ok(device) if !device.is_emulated() => return Some(0),
        Ok(device) => format!("{} is an emulator", device.name()),
        Err(error) => error.to_string(),
    };
    println!("benches of the CUDA back end skipped: {reason}");
    None
}
