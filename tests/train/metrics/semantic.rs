//! Mean IoU, as a confusion matrix in NumPy gives it.

use super::{agrees, golden, names, read_json};
use knet::train::data::labels;
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::semantic_iou::{ClassMap, IouEvaluator};
use serde_json::Value;
use std::path::Path;
use testkit::shared;

fn check(list: &Path, masks: &Path, predicted: &Path, wanted: &Value) {
    let classes = names(&read_json(list)["classes"]);
    let mut evaluator = IouEvaluator::open(list, "classes", &classes, ClassPolicy::Same).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(masks).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in &files {
        let map = labels::indices(&predicted.join(file.file_name().unwrap())).unwrap();
        let values: Vec<u32> = map.values.clone();
        evaluator.add(file, &ClassMap { height: map.height, width: map.width, classes: &values }).unwrap();
    }
    let report = evaluator.summarize();
    assert_eq!(report.images, files.len());
    assert_eq!(report.pixels, wanted["pixels"].as_u64().unwrap());
    for (key, found) in [
        ("aAcc", report.pixel_accuracy),
        ("mAcc_over_classes_in_gt", report.mean_accuracy),
        ("mIoU_over_classes_in_gt_or_pred", report.miou),
        ("mIoU_over_classes_in_gt", report.miou_in_truth),
    ] {
        agrees(key, found, &wanted[key]);
    }
    let per_class = wanted["IoU_per_class"].as_object().unwrap();
    assert_eq!(report.per_class.iter().filter(|c| c.iou.is_some()).count(), per_class.len());
    for (index, wanted) in per_class {
        let class = &report.per_class[index.parse::<usize>().unwrap()];
        agrees(&class.name, class.iou.unwrap(), wanted);
    }
}

#[test]
fn confusion_of_shifted_segments() {
    let wanted = read_json(&golden("iou.json"));
    check(&golden("classes.json"), &golden("semantic"), &golden("semantic_pred"), &wanted);
    let Some(data) = shared::data("confusion_of_shifted_segments", "") else { return };
    let (open, reference) = (data.join("coco-open"), data.join("metric-reference/semantic"));
    let wanted = read_json(&reference.join("expected.json"));
    for split in ["val", "train"] {
        let (masks, predicted) =
            (open.join(format!("semantic_{split}")), reference.join(format!("pred_{split}")));
        check(&open.join("classes.json"), &masks, &predicted, &wanted["results"][split]);
    }
}

/// A PNG of `depth`-bit samples, 3 rows of 5.
fn write_png(path: &Path, color: png::ColorType, depth: png::BitDepth, rows: &[u8]) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 5, 3);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette(vec![9; 3 * 4]);
    }
    encoder.write_header().unwrap().write_image_data(rows).unwrap();
}

#[test]
fn indices_of_every_depth() {
    use png::{BitDepth, ColorType};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let two_bits = [0b0001_1011, 0b1100_0000, 0b1111_0000, 0, 0b0101_0101, 0b0100_0000];
    let wanted = [0, 1, 2, 3, 3, 3, 3, 0, 0, 0, 1, 1, 1, 1, 1];
    for color in [ColorType::Indexed, ColorType::Grayscale] {
        write_png(&path, color, BitDepth::Two, &two_bits);
        let map = labels::indices(&path).unwrap();
        assert_eq!((map.height, map.width), (3, 5));
        assert_eq!(map.values, wanted);
        write_png(&path, color, BitDepth::Eight, &wanted.map(|v: u32| v as u8));
        assert_eq!(labels::indices(&path).unwrap().values, wanted);
    }
    let wide: Vec<u8> = (0..15u16).flat_map(|v| (v * 1000).to_be_bytes()).collect();
    write_png(&path, ColorType::Grayscale, BitDepth::Sixteen, &wide);
    assert_eq!(labels::indices(&path).unwrap().values[14], 14_000);
}

#[test]
fn other_classes_and_void() {
    let folder = tempfile::tempdir().unwrap();
    let (list, mask) = (folder.path().join("classes.json"), folder.path().join("mask.png"));
    let classes = r#"{"classes": [{"index": 1, "name": "sky"}, {"index": 2, "name": "road"}, {"index": 7, "name": "sea"}]}"#;
    std::fs::write(&list, classes).unwrap();
    image::GrayImage::from_raw(6, 1, vec![1, 1, 2, 7, 255, 7]).unwrap().save(&mask).unwrap();
    let model = ["tree", "sky", "sea"].map(String::from);
    let mut evaluator = IouEvaluator::open(&list, "classes", &model, ClassPolicy::Common).unwrap();
    // Of two sky pixels one is found, one void; sky is also said of the road, and sea found once, missed for
    // tree once.
    let predicted = [1, 3, 1, 2, 2, 0];
    evaluator.add(&mask, &ClassMap { height: 1, width: 6, classes: &predicted }).unwrap();
    let report = evaluator.summarize();
    let [sky, sea] = [&report.per_class[0], &report.per_class[1]];
    assert_eq!((sky.name.as_str(), sky.iou, sky.accuracy), ("sky", Some(1.0 / 3.0), Some(0.5)));
    assert_eq!((sea.name.as_str(), sea.iou, sea.accuracy), ("sea", Some(0.5), Some(0.5)));
    assert_eq!((report.pixels, report.pixel_accuracy), (4, 0.5));
    assert_eq!(evaluator.classes().only_in_data, ["road"]);
    assert_eq!(evaluator.classes().only_in_model, ["tree"]);
}
