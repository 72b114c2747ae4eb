//! Overlay and result files.

use std::borrow::Cow;

use image::{Rgb, RgbImage};
use knet::image::HeadOutput;
use knet::image::bitmask::BitMask;
use knet::image::classes::{coco, numbered};
use knet::image::instance::{InstanceConfig, InstancePostprocessor, InstanceResult};
use knet::image::output::{CocoInstance, ImageRef, coco_instances, coco_panoptic};
use knet::image::overlay::{Layer, draw, flat, instance_layers, panoptic_layers};
use knet::image::panoptic::{PanopticConfig, PanopticPostprocessor, PanopticResult};
use knet::image::preprocess::Geometry;

/// Two things (left and right half) and one stuff class (the middle), at 61 x 90.
fn results() -> (InstanceResult, PanopticResult) {
    let geometry = Geometry { original: (61, 90), resized: (61, 90), padded: (64, 96) };
    let mut mask_logits = Vec::new();
    for object in 0..3 {
        mask_logits.extend((0..8 * 12).map(|i| {
            let inside = [i % 12 < 4, i % 12 >= 8, (4..8).contains(&(i % 12))][object];
            if inside { 6.0 } else { -6.0 }
        }));
    }
    let class_logits = [3.0, -5.0, -5.0, -5.0, 2.0, -5.0, -5.0, -5.0, 1.0];
    let head = HeadOutput {
        objects: 3,
        classes: 3,
        class_logits: &class_logits,
        mask_size: (8, 12),
        mask_logits: &mask_logits,
    };
    let (mut instances, mut panoptic) = (InstanceResult::default(), PanopticResult::default());
    let config = InstanceConfig { min_score: 0.5, ..InstanceConfig::default() };
    InstancePostprocessor::new(config).run(&head, &geometry, &mut instances).unwrap();
    let config = PanopticConfig { proposals: 2, things: 2, stuff: 1, ..PanopticConfig::default() };
    PanopticPostprocessor::new(config).run(&head, &geometry, &mut panoptic).unwrap();
    (instances, panoptic)
}

const IMAGE: ImageRef = ImageRef { id: 7, file_name: "photo.jpg" };

#[test]
fn the_class_table_is_cocos() {
    let classes = coco();
    assert_eq!((classes.len(), classes.iter().filter(|c| c.is_thing).count()), (133, 80));
    assert!(classes[..80].iter().all(|c| c.is_thing));
    assert_eq!((classes[0].id, &*classes[0].name, classes[0].colour), (1, "person", [220, 20, 60]));
    assert_eq!((classes[79].id, &*classes[79].name), (90, "toothbrush"));
    assert_eq!((classes[132].id, &*classes[132].name), (200, "rug-merged"));
}

#[test]
fn instances_become_coco_results() {
    let (instances, _) = results();
    let entries = coco_instances(&instances, IMAGE, coco(), 0.0).unwrap();
    let json = serde_json::to_value(&entries).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[1]["category_id"], 2);
    assert_eq!(json[1]["category_name"], "bicycle");
    assert_eq!(json[1]["image_id"], 7);
    assert_eq!(json[1]["segmentation"]["size"], serde_json::json!([61, 90]));
    let back: Vec<CocoInstance> = serde_json::from_value(json).unwrap();
    for (entry, instance) in back.iter().zip(instances.instances()) {
        let mask = BitMask::from_rle(&entry.segmentation.counts, 61, 90).unwrap();
        assert_eq!(&mask, instances.mask(instance));
        assert_eq!((entry.area, entry.score), (mask.area(), instance.score));
        let b = mask.bbox();
        assert_eq!(entry.bbox, [b.x, b.y, b.width, b.height]);
    }
    assert_eq!(coco_instances(&instances, IMAGE, coco(), 0.8).unwrap().len(), 2);
    let error = coco_instances(&instances, IMAGE, &coco()[..1], 0.0).unwrap_err();
    assert!(error.to_string().contains("class 1"), "{error}");
}

#[test]
fn panoptic_maps_become_coco_annotations() {
    let (_, panoptic) = results();
    let (annotation, picture) = coco_panoptic(&panoptic, IMAGE, "photo.png", coco()).unwrap();
    assert_eq!(annotation.segments_info.len(), 3);
    for info in &annotation.segments_info {
        let pixels: Vec<(u32, u32)> = picture
            .enumerate_pixels()
            .filter(|(_, _, p)| u32::from(p[0]) + 256 * u32::from(p[1]) + 65536 * u32::from(p[2]) == info.id)
            .map(|(x, y, _)| (x, y))
            .collect();
        assert_eq!(pixels.len(), info.area);
        let (left, right) =
            (pixels.iter().map(|p| p.0).min().unwrap(), pixels.iter().map(|p| p.0).max().unwrap());
        assert_eq!((info.bbox[0], info.bbox[2]), (left as usize, (right - left + 1) as usize));
        assert_eq!((info.bbox[1], info.bbox[3]), (0, 61));
    }
    let names: Vec<&str> = annotation.segments_info.iter().map(|s| s.category_name.as_str()).collect();
    assert_eq!(names, ["person", "bicycle", "car"]);
    assert!(!annotation.segments_info[2].isthing);
}

#[test]
fn overlays_colour_the_regions_and_nothing_else() {
    let (instances, panoptic) = results();
    let photo = RgbImage::from_pixel(90, 61, Rgb([100, 100, 100]));
    let classes = numbered(3, 2);
    let layers = instance_layers(&instances, &classes, 0.5);
    assert_eq!(layers[0].label, "class 0 0.95");
    assert_eq!(panoptic_layers(&panoptic, &classes)[2].label, "class 2", "stuff has no score");
    for layers in [layers, panoptic_layers(&panoptic, &classes)] {
        let bare: Vec<Layer> = layers.iter().map(|l| Layer { label: String::new(), ..l.clone() }).collect();
        let drawn = draw(&photo, &bare).unwrap();
        for (x, y, pixel) in drawn.enumerate_pixels() {
            let covered = layers.iter().any(|l| l.mask.get(y as usize, x as usize));
            assert_eq!(pixel.0 != [100; 3], covered, "pixel ({x}, {y}) is {pixel:?}");
        }
        let labelled = draw(&photo, &layers).unwrap();
        assert_ne!(labelled, drawn);
    }
}

#[test]
fn flat_pictures_have_the_colours_alone() {
    let mask = |columns: std::ops::Range<usize>| BitMask::from_fn(4, 9, |_, x| columns.contains(&x));
    let layer = |mask, colour| Layer { mask: Cow::Owned(mask), colour, label: "left out".into() };
    let picture = flat(&[layer(mask(1..4), [9, 8, 7]), layer(mask(3..6), [1, 2, 3])], (4, 9));
    for (x, _, pixel) in picture.enumerate_pixels() {
        let wanted = [[0; 3], [9, 8, 7], [1, 2, 3]][[0, 1, 1, 1, 2, 2, 0, 0, 0][x as usize]];
        assert_eq!(pixel.0, wanted, "column {x}");
    }
}

#[test]
fn overlays_of_any_size_can_be_drawn() {
    for (height, width) in [(1, 1), (1, 500), (500, 1), (3, 3), (40, 30), (300, 200)] {
        let photo = RgbImage::new(width as u32, height as u32);
        let full = BitMask::from_fn(height, width, |_, _| true);
        let layer =
            Layer { mask: Cow::Owned(full), colour: [255, 0, 0], label: "toothbrush \u{1f600} 1.00".into() };
        let empty = Layer { mask: Cow::Owned(BitMask::new(height, width)), ..layer.clone() };
        draw(&photo, &[layer.clone(), layer.clone(), empty]).unwrap();
        let error = draw(&RgbImage::new(7, 7), &[layer]).unwrap_err();
        assert!(error.to_string().contains("7 x 7"), "{error}");
    }
}

#[test]
fn labels_do_not_cover_each_other() {
    // Ten regions that share one middle: every label needs a place of its own, and the surplus is left out.
    let (height, width) = (240, 320);
    let photo = RgbImage::new(320, 240);
    let mask = BitMask::from_fn(height, width, |y, x| y.abs_diff(120) < 9 && x.abs_diff(160) < 9);
    let layer = |n: usize| Layer {
        mask: Cow::Borrowed(&mask),
        colour: [0, 20 * n as u8 + 40, 255],
        label: format!("thing number {n}"),
    };
    let one = draw(&photo, &[layer(0)]).unwrap();
    let two = draw(&photo, &[layer(0), layer(1)]).unwrap();
    let lit = |image: &RgbImage| image.pixels().filter(|p| p.0 != [0; 3]).count();
    assert!(lit(&two) > lit(&one) + 1000, "the second label has its own place");
    let ten: Vec<Layer> = (0..10).map(layer).collect();
    draw(&photo, &ten).unwrap();
}
