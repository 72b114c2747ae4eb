//! Metrics against published numbers and against the reference implementations: on `goldens/metrics`, which
//! lies in the repository, and on all of `shared/data/metric-reference`; and what is said of data sets that
//! are not sound.

mod bad_data;
mod coco_ap;
mod hotcoco_limits;
mod panoptic;
mod semantic;

use serde_json::Value;
use std::path::{Path, PathBuf};

/// The reference numbers were stored with all digits, and sums of a few hundred terms in another order differ
/// by less.
const TOLERANCE: f64 = 1e-12;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

/// Names of the classes or categories of a file.
fn names(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_string()).collect()
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/metrics").join(path)
}

#[track_caller]
fn agrees(what: &str, found: f64, wanted: &Value) {
    let wanted = wanted.as_f64().unwrap_or_else(|| panic!("{what}: no number in {wanted}"));
    assert!((found - wanted).abs() <= TOLERANCE, "{what}: {found}, not {wanted}");
}
