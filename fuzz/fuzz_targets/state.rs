//! Reads the state of a training run.
//!
//! The input is read as a whole file, and then as the metadata (progress, what the run was started with,
//! model: one a line) of a state whose tensors are sound; a run goes on from what is accepted.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use image::RgbImage;
use knet::engine::source::{CONFIG_KEY, parameters};
use knet::model::{Classes, Config, Fpn, Head};
use knet::train::data::{Augment, DataConfig, Loader, LoaderConfig, Mix, Reading, Targets};
use knet::train::run::state::State;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Where the files lie, the smallest model there is, the entries of its tensors in a header, and their bytes.
struct World {
    _folder: TempDir,
    file: PathBuf,
    model: Config,
    entries: serde_json::Map<String, serde_json::Value>,
    bytes: usize,
    mix: Arc<Mix>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let classes = Classes { names: vec!["a".into()], ids: vec![1], ..Classes::new(1, 0) };
        let model = Config {
            neck: Fpn { channels: 4 },
            head: Head { proposals: 1, stages: 1, feedforward_channels: 1, heads: 1, norm_groups: 1 },
            classes,
            ..Config::named("knet_s3_lite0_fpn").expect("a known model")
        };
        let mut entries = serde_json::Map::new();
        let mut bytes = 0;
        for param in parameters(&model).expect("a sound model") {
            let end = bytes + param.upstream_shape.iter().product::<usize>();
            let entry = serde_json::json!({"dtype": "U8", "shape": param.upstream_shape, "data_offsets": [bytes, end]});
            entries.insert(format!("param.{}", param.key), entry);
            bytes = end;
        }
        let mix = Arc::new(mix(folder.path()));
        World { file: folder.path().join("last.state"), _folder: folder, model, entries, bytes, mix }
    })
}

/// Two photos with an object each.
fn mix(folder: &Path) -> Mix {
    for name in ["a.png", "b.png"] {
        RgbImage::new(8, 6).save(folder.join(name)).expect("a photo");
    }
    let image =
        |id: u32, name: &str| serde_json::json!({"id": id, "file_name": name, "width": 8, "height": 6});
    let object = |image: u32| {
        let polygon = [[1, 1, 5, 1, 5, 4]];
        serde_json::json!({"id": image, "image_id": image, "category_id": 1, "segmentation": polygon})
    };
    let text = serde_json::json!({
        "images": [image(1, "a.png"), image(2, "b.png")],
        "annotations": [object(1), object(2)],
        "categories": [{"id": 1, "name": "a"}],
    });
    let annotations = folder.join("annotations.json");
    std::fs::write(&annotations, text.to_string()).expect("annotations");
    let config =
        DataConfig::CocoInstance { annotations, images: folder.to_path_buf(), classes: None, repeat: 1.0 };
    Mix::open(&[config], &Reading::default()).expect("a sound data set")
}

fn go_on(world: &World) {
    let Ok(state) = State::read(&world.file, &world.model) else { return };
    if let Some(origin) = &state.origin {
        assert_eq!(origin.changes(origin).ok(), Some(Vec::new()));
    }
    let config = LoaderConfig {
        start: state.progress.position,
        targets: Targets::Objects(1),
        batch: 1,
        prefetch: 1,
        augment: Augment::off([32, 32]),
        ..LoaderConfig::default()
    };
    let Ok(mut loader) = Loader::new(Arc::clone(&world.mix), config) else { return };
    let _ = loader.left(2);
    for _ in 0..3 {
        loader.next_batch().expect("sound photos");
    }
    assert!(state.progress.iteration.checked_add(3).is_some());
}

fuzz_target!(|input: &[u8]| {
    let world = world();
    std::fs::write(&world.file, input).expect("a file");
    go_on(world);
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.lines();
    let mut header = world.entries.clone();
    let mut metadata = serde_json::Map::new();
    let own = world.model.to_json();
    for (key, default) in [("knet.progress", None), ("knet.run", None), (CONFIG_KEY, Some(own.as_str()))] {
        if let Some(value) = lines.next().filter(|line| !line.is_empty()).or(default) {
            metadata.insert(key.to_string(), value.into());
        }
    }
    // A full state costs milliseconds: only for what may be one.
    if serde_json::from_str::<serde_json::Value>(text.lines().next().unwrap_or_default()).is_err() {
        return;
    }
    header.insert("__metadata__".into(), metadata.into());
    let header = serde_json::Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + world.bytes, 1);
    std::fs::write(&world.file, file).expect("a file");
    go_on(world);
});
