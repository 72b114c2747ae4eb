//! What the test suites and benches of knet share: small models, data sets and checkpoints, goldens, graphs
//! run on the CPU, and plans run on the PTX emulator. Sees the public API of knet alone, as an embedder does.
//!
//! Helpers panic where a test must fail, and return an error where the caller knows better which case it was.

pub mod bench;
pub mod cuda_case;
pub mod data;
pub mod device;
pub mod emulate;
pub mod golden;
pub mod model;
pub mod model_golden;
pub mod occupancy;
pub mod parts;
pub mod pth_writer;
pub mod run;
pub mod sass;
pub mod shared;
pub mod texts;

use std::path::{Path, PathBuf};

/// The repository: where the suite was built, or `KNET_ROOT` on a machine to which its program was carried.
pub fn root() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tools/testkit").into();
    std::env::var_os("KNET_ROOT").map_or_else(built, PathBuf::from)
}
