//! The training file of the README, on ten photos with two classes of their own.

use knet::train::run::log::read;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use testkit::shared;

/// Photos of `coco-open` with a few objects each.
const PHOTOS: [u64; 10] = [86, 165, 360, 370, 459, 471, 785, 872, 1296, 8690];
/// COCO's id of `person`.
const PERSON: u64 = 1;

/// The README's file, as it stands there.
fn file() -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks =
        readme.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap().to_string());
    blocks.into_iter().find(|block| block.contains("[schedule]")).expect("a training file in the README")
}

/// The annotations of the photos, with people as `human` and all else as `belonging`.
fn annotations(path: &Path) -> Value {
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of_photos = |key: &str, field: &str| -> Vec<Value> {
        let rows = all[key].as_array().unwrap().iter();
        rows.filter(|row| PHOTOS.contains(&row[field].as_u64().unwrap())).cloned().collect()
    };
    let mut objects = of_photos("annotations", "image_id");
    objects.retain(|object| object["iscrowd"] == 0);
    for object in &mut objects {
        object["category_id"] = if object["category_id"] == PERSON { 1 } else { 2 }.into();
    }
    let categories = json!([{"id": 1, "name": "human"}, {"id": 2, "name": "belonging"}]);
    json!({"images": of_photos("images", "id"), "annotations": objects, "categories": categories})
}

#[test]
fn the_training_file_of_the_readme_trains() {
    let Some(data) = shared::data("the README's training file", "coco-open") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("ten.json"), annotations(&data.join("annotations/instances_train.json")).to_string())
        .unwrap();
    let set = format!(
        "[{{ format = \"coco_instance\", annotations = {:?}, images = {:?} }}]",
        at("ten.json"),
        data.join("images")
    );
    std::fs::write(at("run.toml"), file()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_knet-train"))
        .arg(at("run.toml"))
        .arg("--out")
        .arg(at("run"))
        .args(["--set", &format!("data.train={set}"), "--set", &format!("data.val={set}")])
        // The weights are named relative to the repository.
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{notes}");
    for part in ["model: 12 kernels", "human", "belonging"] {
        assert!(notes.contains(part), "no `{part}` in {notes}");
    }
    let log = read(&at("run/log.jsonl")).unwrap();
    let last = log.iter().rev().find(|line| line["kind"] == "val").unwrap_or_else(|| panic!("{notes}"));
    println!("{last}");
    let ap = last["judged"].as_f64().unwrap_or_else(|| panic!("{last}"));
    assert!(ap > 0.3, "AP {ap} on the training photos: {last}");
}
