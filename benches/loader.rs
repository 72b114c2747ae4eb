//! Training samples a second: photos of 640 pixels with outlines are decoded, augmented as by default, and made into
//! batches of two images of 640 x 640 with 100 slots, by `KNET_THREADS` threads (2) while nobody learns. `decoded`
//! reads every photo anew, as of a set that is larger than memory; `cached` has decoded it before.
//!
//! The photos and outlines are those of `shared/data/coco-open` where that lies beside the repository, enlarged from
//! 320 to 640 pixels and written as JPEG of quality 90 again: they take fewer bytes than photos of that size, and so
//! somewhat less time to decode. Elsewhere they are synthetic, and said to be.

mod common;

use criterion::{Criterion, SamplingMode, Throughput};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};
use knet::train::data::{DataConfig, Loader, LoaderConfig, Mix, Reading, augment::Augment};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longer side of the photos, and both of the samples.
const SIDE: u32 = 640;

/// The photos of a set and the objects in them.
struct Set {
    title: String,
    folder: tempfile::TempDir,
}

impl Set {
    fn annotations(&self) -> PathBuf {
        self.folder.path().join("annotations.json")
    }

    fn add(&self, name: &str, photo: &RgbImage) {
        let mut file = std::fs::File::create(self.folder.path().join(name)).expect("a file for a photo");
        JpegEncoder::new_with_quality(&mut file, 90).encode_image(photo).expect("a photo written");
    }
}

/// `shared/data/coco-open`, looked for beside the repository and above.
fn coco_open() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|folder| folder.join("shared/data/coco-open")).find(|folder| folder.is_dir())
}

/// Photos and outlines of `source`, enlarged.
fn enlarged(source: &Path) -> Set {
    let set = Set { title: "coco-open, enlarged".into(), folder: tempfile::tempdir().expect("a folder") };
    let text = std::fs::read_to_string(source.join("annotations/instances_train.json")).expect("annotations");
    let mut document: Value = serde_json::from_str(&text).expect("annotations in JSON");
    let mut factors = std::collections::BTreeMap::new();
    for entry in document["images"].as_array_mut().expect("images") {
        let name = entry["file_name"].as_str().expect("a name").to_string();
        let photo = image::open(source.join("images").join(&name)).expect("a photo").into_rgb8();
        let factor = f64::from(SIDE) / f64::from(photo.width().max(photo.height()));
        let [width, height] =
            [photo.width(), photo.height()].map(|side| (f64::from(side) * factor).round() as u32);
        set.add(&name, &resize(&photo, width, height, FilterType::CatmullRom));
        (entry["width"], entry["height"]) = (json!(width), json!(height));
        factors.insert(entry["id"].as_u64().expect("an id"), factor);
    }
    let annotations = document["annotations"].as_array_mut().expect("annotations");
    // Crowds are runs of pixels, which do not scale.
    annotations.retain(|annotation| annotation["segmentation"].is_array());
    for annotation in annotations {
        let factor = factors[&annotation["image_id"].as_u64().expect("an image")];
        annotation["area"] = json!(annotation["area"].as_f64().expect("an area") * factor * factor);
        scale(&mut annotation["bbox"], factor);
        scale(&mut annotation["segmentation"], factor);
    }
    std::fs::write(set.annotations(), document.to_string()).expect("annotations written");
    set
}

/// Multiplies all numbers of nested lists.
fn scale(value: &mut Value, factor: f64) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| scale(value, factor)),
        number => *number = json!(number.as_f64().expect("a number") * factor),
    }
}

/// Photos of noise on waves with seven boxes each, as many objects as one of COCO has.
fn synthetic() -> Set {
    let set = Set { title: "synthetic".into(), folder: tempfile::tempdir().expect("a folder") };
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for id in 1..=64u32 {
        let colour = |x: u32, y: u32| {
            let wave =
                |c: f32| 100.0 + 50.0 * ((x as f32 / 37.0 + c + id as f32).sin() + (y as f32 / 23.0).cos());
            let noise = ((y.wrapping_mul(SIDE) + x).wrapping_mul(2_654_435_761) >> 28) as u8;
            Rgb([0.0, 1.0, 2.0].map(|c| (wave(c) as u8).saturating_add(noise)))
        };
        let name = format!("{id}.jpg");
        set.add(&name, &RgbImage::from_fn(SIDE, SIDE * 3 / 4, colour));
        images.push(json!({"id": id, "file_name": name, "width": SIDE, "height": SIDE * 3 / 4}));
        for object in 0..7 {
            let (left, top) = (20 + 80 * object, 20 + (37 * id * (object + 1)) % 240);
            let (right, bottom) = (left + 70, top + 180);
            annotations.push(json!({
                "id": annotations.len() + 1, "image_id": id, "category_id": 1, "iscrowd": 0,
                "bbox": [left, top, 70, 180], "area": 70 * 180,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }));
        }
    }
    let categories = [json!({"id": 1, "name": "box"})];
    let document = json!({"images": images, "annotations": annotations, "categories": categories});
    std::fs::write(set.annotations(), document.to_string()).expect("annotations written");
    set
}

fn loader(criterion: &mut Criterion) {
    let set = coco_open().map_or_else(synthetic, |source| enlarged(&source));
    let data = DataConfig::CocoInstance {
        annotations: set.annotations(),
        images: set.folder.path().into(),
        classes: None,
        repeat: 1.0,
    };
    let mix = Arc::new(Mix::open(&[data], &Reading::default()).expect("the set"));
    let threads = common::threads();
    println!("loader: {} photos ({}), {threads} threads", mix.len(), set.title);
    let mut group = criterion.benchmark_group("loader");
    group.sampling_mode(SamplingMode::Flat).sample_size(20).measurement_time(Duration::from_secs(20));
    for (name, cache_bytes) in [("decoded", 0), ("cached", 1 << 30)] {
        let augment = Augment { size: [SIDE as usize; 2], ..Augment::default() };
        let config = LoaderConfig { threads, cache_bytes, augment, ..LoaderConfig::default() };
        group.throughput(Throughput::Elements(config.batch as u64));
        let mut loader = Loader::new(Arc::clone(&mix), config).expect("a loader");
        if cache_bytes > 0 {
            // Once through all photos.
            for _ in 0..mix.len() {
                loader.next_batch().expect("a batch");
            }
        }
        group.bench_function(name, |bencher| bencher.iter(|| loader.next_batch().expect("a batch").len()));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    loader(&mut criterion);
    criterion.final_summary();
}
