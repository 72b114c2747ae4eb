//! Edits the header of a sound bundle, seals it again, and goes on to a plan bound to what is accepted.
//!
//! The input is a list of edits: where (two bytes, a share of the header), how many bytes go, how many come,
//! and these. The data stay as they are, so that names, lengths, places, manifest and configuration are what
//! is tried.
#![no_main]

use knet::Segmentation;
use knet::engine::bundle::{For, compile};
use knet::engine::{Device, InputSize, Model, ModelOptions, Session, SessionOptions};
use knet::image::RgbImage;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// Networks beyond these cost seconds each under a sanitizer.
const MOST_STAGES: usize = 3;

/// A bundle: header, data without the seal, and where edited ones are written.
static SOUND: LazyLock<(Vec<u8>, Vec<u8>, PathBuf)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("knet-fuzz-{}.knet", std::process::id()));
    let model = load(None).expect("a model");
    compile(&model, &[(32, 64)], &[For::Cpu], &path).expect("a bundle");
    let file = std::fs::read(&path).expect("what was written");
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    (file[8..8 + length].to_vec(), file[8 + length..file.len() - 4].to_vec(), path)
});

fn load(path: Option<&PathBuf>) -> knet::Result<Arc<Model>> {
    let mut options = ModelOptions { device: Device::Cpu, ..ModelOptions::default() };
    match path {
        Some(path) => options.weights = path.as_path().into(),
        None => options.name = Some("knet_s3_lite0_fpn".into()),
    }
    Model::load(&options)
}

fn edited(header: &[u8], mut edits: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    while let [low, high, gone, come, rest @ ..] = edits {
        let at = usize::from(u16::from_le_bytes([*low, *high])) * header.len() / 65536;
        let end = header.len().min(at + usize::from(*gone));
        let (new, rest) = rest.split_at(rest.len().min(usize::from(*come % 32)));
        header.splice(at..end, new.iter().copied());
        edits = rest;
    }
    header
}

fuzz_target!(|edits: &[u8]| {
    let (header, data, path) = &*SOUND;
    let header = edited(header, edits);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file.extend(crc32c::crc32c(&file).to_le_bytes());
    std::fs::write(path, file).expect("room for a file");
    let Ok(model) = load(Some(path)) else { return };
    if model.config().head.stages > MOST_STAGES {
        return;
    }
    let options = SessionOptions { size: InputSize::AsTheyAre, threads: 1, ..SessionOptions::default() };
    let Ok(mut session) = Session::new(model, &options) else { return };
    let photo = RgbImage::from_pixel(64, 32, image::Rgb([90; 3]));
    let mut found = Segmentation::default();
    let _ = session.segment_into(&photo, &mut found);
});
