//! Reads arbitrary bytes as a label image.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use knet::train::data::labels;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

fn file() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder")).path().join("labels.png")
}

fuzz_target!(|input: &[u8]| {
    let file = file();
    std::fs::write(&file, input).expect("a file");
    let ids = labels::ids(&file);
    if let Ok(map) = &ids {
        assert_eq!(map.values.len(), map.height * map.width);
        assert!(map.values.iter().all(|&id| id < 1 << 24));
    }
    if let Ok(map) = labels::indices(&file) {
        assert!(map.values.iter().all(|&index| index <= u32::from(u16::MAX)));
        assert_eq!(Some(&map), ids.as_ref().ok());
    }
});
