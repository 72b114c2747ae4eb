//! Models and files for tests: a small custom configuration and checkpoints of seeded tensors.

use image::{Rgb, RgbImage};
use knet::checkpoint::{StorageType, TensorData, TensorOut, seeded, write_safetensors};
use knet::engine::source::{CONFIG_KEY, parameters};
use knet::model::{Classes, Config, Fpn, Head, Rcnn, ResNet};
use knet::tensor::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// A model of other widths and counts than any official one.
pub fn small_config() -> Config {
    let names = ["ant", "bee", "cow", "dog", "eel"].map(String::from).to_vec();
    Config {
        name: "tiny".into(),
        neck: Fpn { channels: 64 },
        head: Head { proposals: 12, stages: 2, feedforward_channels: 128, heads: 4, norm_groups: 16 },
        ..Config::of(ResNet::new(50).into(), Classes { names, ..Classes::new(5, 0) })
    }
}

/// A two-stage detector of so many box heads, with few proposals, detections and classes.
pub fn small_detector(stages: usize) -> Config {
    let rcnn = Rcnn { stages, proposals: 60, hidden_channels: 24, ..Rcnn::default() };
    let mut config = Config::two_stage(ResNet::new(50).into(), rcnn, 5);
    (config.neck.channels, config.test.max_per_image) = (16, 30);
    config
}

/// A tensor to be stored under an upstream name, with its upstream shape.
pub struct Entry {
    /// Upstream's name.
    pub name: String,
    /// Upstream's shape.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub values: Vec<f32>,
}

/// The seeded tensors of a model.
pub fn seeded_entries(config: &Config, seed: u64) -> Vec<Entry> {
    let params = parameters(config).unwrap();
    let entry = |name: String, shape: Vec<usize>| {
        let tensor: Tensor = seeded::tensor(&name, &shape, seed).unwrap();
        Entry { name, values: tensor.data().to_vec(), shape }
    };
    params.into_iter().map(|p| entry(p.key, p.upstream_shape)).collect()
}

/// Writes entries as safetensors with elements of one float type. `config` is the text of the metadata.
pub fn write_entries(path: &Path, entries: &[Entry], config: Option<&str>, dtype: StorageType) {
    let bytes: Vec<Vec<u8>> = entries.iter().map(|entry| encode(&entry.values, dtype)).collect();
    let tensors = entries.iter().zip(&bytes).map(|(entry, bytes)| TensorOut {
        name: &entry.name,
        shape: &entry.shape,
        data: TensorData::Raw(dtype, bytes),
    });
    let metadata: BTreeMap<String, String> =
        config.map(|text| (CONFIG_KEY.to_string(), text.to_string())).into_iter().collect();
    write_safetensors(path, tensors, &metadata).unwrap();
}

fn encode(values: &[f32], dtype: StorageType) -> Vec<u8> {
    match dtype {
        StorageType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        StorageType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        StorageType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        other => panic!("not a float type: {other}"),
    }
}

/// A picture with structure, the same every time.
pub fn photo(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * y / 7) as u8, (x * 3) as u8, (y * 5) as u8]))
}
