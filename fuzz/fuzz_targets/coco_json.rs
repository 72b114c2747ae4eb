//! Reads arbitrary text as COCO instance and panoptic annotations: polygons, run lengths, segments. What is
//! accepted is loaded.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use image::RgbImage;
use knet::train::data::{Catalogue, DataConfig, Dataset, Reading};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// A folder with a photo of 8 x 6 pixels that is also a label image.
fn folder() -> &'static TempDir {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let photo = RgbImage::from_fn(8, 6, |x, _| image::Rgb([if x < 4 { 1 } else { 2 }, 0, 0]));
        photo.save(folder.path().join("a.png")).expect("a photo");
        folder
    })
}

fuzz_target!(|input: &[u8]| {
    let folder = folder().path();
    let annotations: PathBuf = folder.join("annotations.json");
    std::fs::write(&annotations, input).expect("a file");
    let _ = Catalogue::read(&annotations);
    let images = folder.to_path_buf();
    let sets = [
        DataConfig::CocoInstance {
            annotations: annotations.clone(),
            images: images.clone(),
            classes: None,
            repeat: 1.0,
        },
        DataConfig::CocoPanoptic { annotations, masks: images.clone(), images, repeat: 1.0 },
    ];
    for config in &sets {
        for reading in
            [Reading { verify: false, ..Reading::default() }, Reading { strict: true, ..Reading::default() }]
        {
            let Ok(set) = Dataset::open(config, &reading) else { continue };
            for index in 0..set.len() {
                let Ok(sample) = set.load(index) else { continue };
                for object in &sample.objects {
                    assert!(object.class < set.things());
                    assert!(object.mask.x + object.mask.width <= sample.image.width() as usize);
                    assert!(object.mask.y + object.mask.height <= sample.image.height() as usize);
                }
            }
        }
    }
});
