//! The reference data beside the repository, for tests that need more than the repository holds.

use crate::root;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or folder of the reference data (`$KNET_SHARED`, else `../shared`), or `None` and a line on
/// standard error (past the test harness's capture) that says what was not tested.
pub fn reference(test: &str, path: &str) -> Option<PathBuf> {
    shared(test, &Path::new("reference").join(path))
}

/// As [`reference()`], of the data sets beside it.
pub fn data(test: &str, path: &str) -> Option<PathBuf> {
    shared(test, &Path::new("data").join(path))
}

fn shared(test: &str, path: &Path) -> Option<PathBuf> {
    let shared = std::env::var_os("KNET_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let wanted = shared.join(path);
    if wanted.exists() {
        return Some(wanted);
    }
    let line = format!("SKIPPED: {test}: {} is not there (set KNET_SHARED)\n", wanted.display());
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    None
}
