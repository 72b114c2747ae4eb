//! Metrics against published numbers and against the reference implementations, on the data of
//! `shared/data/metric-reference` (all of it) and `goldens/metrics` (the part that lies in the repository).

#[path = "../common/shared.rs"]
mod shared;

mod coco_ap;
mod panoptic;
mod semantic;

use serde_json::Value;
use std::path::Path;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Names of the categories of an annotation file.
fn category_names(file: &Value) -> Vec<String> {
    let categories = file["categories"].as_array().unwrap();
    categories.iter().map(|c| c["name"].as_str().unwrap().to_string()).collect()
}
