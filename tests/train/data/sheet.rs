//! A contact sheet of augmented samples with their targets, to look at: `target/tmp/train_data_*.png`.

use std::sync::Arc;
use std::time::Instant;

use image::{Rgb, RgbImage};
use knet::image::palette;
use knet::train::data::{Augment, Batch, DataConfig, Loader, LoaderConfig, Mix, Reading, Targets};

use testkit::shared;

const TILES: [u32; 2] = [6, 4];

#[test]
fn contact_sheets() {
    let test = "contact_sheets";
    let person = |folder: &str| {
        let root = shared::data(test, folder)?;
        Some(DataConfig::CocoInstance {
            annotations: root.join("annotations/instances_train.json"),
            images: root.join("images"),
            classes: Some(vec![if folder == "dsb2018-nuclei" { "nucleus".into() } else { "person".into() }]),
            repeat: 1.0,
        })
    };
    let panoptic = shared::data(test, "coco-open").map(|root| DataConfig::CocoPanoptic {
        annotations: root.join("annotations/panoptic_train.json"),
        images: root.join("images"),
        masks: root.join("panoptic_train"),
        repeat: 1.0,
    });
    let people = [person("coco-person-open"), person("coco-open")].into_iter().flatten().collect();
    let sheets: [(&str, Vec<DataConfig>); 3] = [
        ("people", people),
        ("nuclei", person("dsb2018-nuclei").into_iter().collect()),
        ("panoptic", panoptic.into_iter().collect()),
    ];
    for (name, configs) in sheets {
        if configs.is_empty() {
            continue;
        }
        let mix = Arc::new(Mix::open(&configs, &Reading { verify: false, ..Reading::default() }).unwrap());
        let augment = Augment { size: [320, 320], copy_paste: 0.5, ..Augment::default() };
        let settings = LoaderConfig {
            batch: 4,
            targets: Targets::Objects(100),
            augment,
            prefetch: 1,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(Arc::clone(&mix), settings).unwrap();
        let mut sheet = RgbImage::new(TILES[0] * 320, TILES[1] * 320);
        for tile in 0..TILES[0] * TILES[1] / 4 {
            let batch = loader.next_batch().unwrap();
            for slot in 0..4 {
                let at = tile * 4 + slot;
                draw(batch, slot as usize, &mut sheet, [at % TILES[0] * 320, at / TILES[0] * 320]);
            }
        }
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("train_data_{name}.png"));
        sheet.save(&file).unwrap();
        // The second epoch comes from memory: what a step costs in the long run.
        while loader.position().epoch < 1 {
            loader.next_batch().unwrap();
        }
        let (start, mut count) = (Instant::now(), 0);
        while count < 160 {
            count += loader.next_batch().unwrap().len();
        }
        let each = start.elapsed().as_secs_f64() * 1e3 / count as f64;
        println!("{name}: {each:.2} ms an image of 320 x 320, one thread; {}", file.display());
        assert!(sheet.pixels().any(|p| p[0] > 128));
    }
}

/// Draws one image of a batch with its targets at `corner` (x, y).
fn draw(batch: &Batch, slot: usize, sheet: &mut RgbImage, corner: [u32; 2]) {
    let [height, width] = batch.size;
    let (mean, std) = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]);
    let cells = (height / 4) * (width / 4);
    for y in 0..height {
        for x in 0..width {
            let pixel = &batch.images[((slot * height + y) * width + x) * 3..][..3];
            let mut colour = [0, 1, 2].map(|c| pixel[c] * std[c] + mean[c]);
            for k in 0..batch.objects[slot] {
                let cell = (y / 4) * (width / 4) + x / 4;
                let alpha = 0.5 * batch.masks[(slot * batch.slots() + k) * cells + cell];
                let paint = palette::distinct(k).map(f32::from);
                colour = [0, 1, 2].map(|c| colour[c] * (1.0 - alpha) + paint[c] * alpha);
            }
            sheet.put_pixel(corner[0] + x as u32, corner[1] + y as u32, Rgb(colour.map(|v| v as u8)));
        }
    }
}
