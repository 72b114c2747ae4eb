//! What the benches share.

use knet::cuda::Device;

/// Worker threads: `KNET_THREADS`, else 2.
pub fn threads() -> usize {
    match std::env::var("KNET_THREADS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("KNET_THREADS is `{text}`, not a number")),
        Err(_) => 2,
    }
}

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
