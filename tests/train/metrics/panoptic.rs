//! Panoptic quality, as panopticapi gives it.

use super::{agrees, golden, names, read_json};
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::panoptic_quality::{PanopticEvaluator, PanopticMap};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use testkit::shared;

/// Segment ids of a COCO panoptic PNG.
fn ids(png: &Path) -> (usize, usize, Vec<u32>) {
    let picture = image::open(png).unwrap().to_rgb8();
    let values = picture.pixels().map(|p| u32::from_le_bytes([p.0[0], p.0[1], p.0[2], 0])).collect();
    (picture.height() as usize, picture.width() as usize, values)
}

/// Feeds a COCO panoptic file and its PNGs as predictions.
fn feed(evaluator: &mut PanopticEvaluator, json: &Path, folder: &Path) {
    let file = read_json(json);
    let categories = file["categories"].as_array().unwrap();
    let class_of: HashMap<u64, usize> =
        categories.iter().enumerate().map(|(i, c)| (c["id"].as_u64().unwrap(), i)).collect();
    for annotation in file["annotations"].as_array().unwrap() {
        let (height, width, values) = ids(&folder.join(annotation["file_name"].as_str().unwrap()));
        let segment =
            |s: &Value| (s["id"].as_u64().unwrap() as u32, class_of[&s["category_id"].as_u64().unwrap()]);
        let segments: Vec<(u32, usize)> =
            annotation["segments_info"].as_array().unwrap().iter().map(segment).collect();
        let map = PanopticMap { height, width, values: &values, void: 0, segments: &segments };
        evaluator.add(annotation["image_id"].as_u64().unwrap(), &map).unwrap();
    }
}

/// A panoptic file with its PNGs, predictions with theirs, and the expected numbers.
struct Files {
    truth: (PathBuf, PathBuf),
    predicted: (PathBuf, PathBuf),
    wanted: Value,
}

fn check(files: &Files) {
    let file = read_json(&files.truth.0);
    let classes = names(&file["categories"]);
    let (truth, pngs) = (&files.truth.0, &files.truth.1);
    let mut evaluator = PanopticEvaluator::open(truth, pngs, &classes, ClassPolicy::Same).unwrap();
    feed(&mut evaluator, &files.predicted.0, &files.predicted.1);
    let report = evaluator.summarize();
    let wanted = &files.wanted;
    for (name, found) in [("All", Some(report.all)), ("Things", report.things), ("Stuff", report.stuff)] {
        let found = found.unwrap();
        for (key, found) in
            [("pq", found.pq), ("sq", found.sq), ("rq", found.rq), ("n", found.classes as f64)]
        {
            agrees(&format!("{name} {key}"), found, &wanted[name][key]);
        }
    }
    let per_class = wanted["per_class"].as_object().unwrap();
    let mut above_zero = 0;
    for (class, category) in report.per_class.iter().zip(file["categories"].as_array().unwrap()) {
        assert_eq!(class.name, category["name"].as_str().unwrap());
        // Classes that occur nowhere have no entry, or one of zeros.
        let wanted = per_class.get(&category["id"].to_string());
        for (key, found) in [("pq", class.pq), ("sq", class.sq), ("rq", class.rq)] {
            let wanted = wanted.map_or(Value::from(0.0), |w| w[key].clone());
            agrees(&format!("{} {key}", class.name), found.unwrap_or(0.0), &wanted);
            above_zero += usize::from(found > Some(0.0));
        }
    }
    assert!(above_zero > 100, "{above_zero}");
    evaluator.clear();
    feed(&mut evaluator, truth, pngs);
    let perfect = evaluator.summarize();
    assert_eq!((perfect.all.pq, perfect.all.sq, perfect.all.rq), (1.0, 1.0, 1.0));
    assert_eq!((perfect.things.unwrap().pq, perfect.stuff.unwrap().pq), (1.0, 1.0));
    assert_eq!(evaluator.semantic().miou, 1.0);
}

#[test]
fn shifted_dropped_and_merged_segments() {
    check(&Files {
        truth: (golden("panoptic.json"), golden("panoptic")),
        predicted: (golden("panoptic_pred.json"), golden("panoptic_pred")),
        wanted: read_json(&golden("pq.json")),
    });
    let Some(data) = shared::data("shifted_dropped_and_merged_segments", "") else { return };
    let (open, reference) = (data.join("coco-open"), data.join("metric-reference/panoptic"));
    for split in ["val", "train"] {
        let predicted = (format!("pred_{split}.json"), format!("pred_{split}"));
        check(&Files {
            truth: (
                open.join(format!("annotations/panoptic_{split}.json")),
                open.join(format!("panoptic_{split}")),
            ),
            predicted: (reference.join(predicted.0), reference.join(predicted.1)),
            wanted: read_json(&reference.join("expected.json"))["results"][split].clone(),
        });
    }
}

#[test]
fn common_classes_treat_the_others_as_objects() {
    let (json, pngs) = (golden("panoptic.json"), golden("panoptic"));
    let open = |classes: &[&str]| {
        let classes: Vec<String> = classes.iter().map(|c| c.to_string()).collect();
        PanopticEvaluator::open(&json, &pngs, &classes, ClassPolicy::Common).unwrap()
    };
    let file = read_json(&json);
    let image = &file["images"][0];
    let (height, width) =
        (image["height"].as_u64().unwrap() as usize, image["width"].as_u64().unwrap() as usize);
    let all = vec![7; height * width];
    let segments = [(7, 0)];
    let map = PanopticMap { height, width, values: &all, void: 0, segments: &segments };
    // The image has no dog: a dog everywhere is a false positive, on the motorcycles that are not evaluated
    // too.
    let mut evaluator = open(&["dog", "unicorn"]);
    evaluator.add(image["id"].as_u64().unwrap(), &map).unwrap();
    let report = evaluator.summarize();
    let dog = &report.per_class[0];
    assert_eq!((dog.true_positives, dog.false_positives, dog.false_negatives), (0, 1, 0));
    assert_eq!((report.all.pq, report.all.classes, report.stuff), (0.0, 1, None));
    // What the model says of a class that the data set does not have is not looked at.
    let mut evaluator = open(&["unicorn", "dog"]);
    evaluator.add(image["id"].as_u64().unwrap(), &map).unwrap();
    assert_eq!(evaluator.summarize().per_class[0].pq, None);
}
