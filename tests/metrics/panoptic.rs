//! Panoptic quality, as panopticapi gives it.

use crate::{category_names, read_json, shared};
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::panoptic_quality::{Evaluator, PanopticMap};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Segment ids of a COCO panoptic PNG.
fn ids(png: &Path) -> (usize, usize, Vec<u32>) {
    let picture = image::open(png).unwrap().to_rgb8();
    let values = picture.pixels().map(|p| u32::from_le_bytes([p.0[0], p.0[1], p.0[2], 0])).collect();
    (picture.height() as usize, picture.width() as usize, values)
}

/// Feeds a COCO panoptic file and its PNGs as predictions.
pub fn feed(evaluator: &mut Evaluator, json: &Path, folder: &Path) {
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

#[test]
fn shifted_dropped_and_merged_segments() {
    let Some(data) = shared::data("shifted_dropped_and_merged_segments", "") else { return };
    let folder = data.join("metric-reference/panoptic");
    let expected = read_json(&folder.join("expected.json"));
    for split in ["val", "train"] {
        let truth = data.join(format!("coco-open/annotations/panoptic_{split}.json"));
        let pngs = data.join(format!("coco-open/panoptic_{split}"));
        let file = read_json(&truth);
        let classes = category_names(&file);
        let mut evaluator = Evaluator::open(&truth, &pngs, &classes, ClassPolicy::Same).unwrap();
        feed(
            &mut evaluator,
            &folder.join(format!("pred_{split}.json")),
            &folder.join(format!("pred_{split}")),
        );
        let report = evaluator.summarize();
        let wanted = &expected["results"][split];
        for (name, found) in [("All", Some(report.all)), ("Things", report.things), ("Stuff", report.stuff)] {
            let found = found.unwrap();
            assert_eq!(found.classes as f64, wanted[name]["n"].as_f64().unwrap(), "{split} {name}");
            for (key, found) in [("pq", found.pq), ("sq", found.sq), ("rq", found.rq)] {
                let wanted = wanted[name][key].as_f64().unwrap();
                assert!((found - wanted).abs() < 1e-12, "{split} {name} {key}: {found}, not {wanted}");
            }
        }
        let mut compared = 0;
        for (class, category) in report.per_class.iter().zip(file["categories"].as_array().unwrap()) {
            let wanted = &wanted["per_class"][category["id"].to_string()];
            assert_eq!(class.name, category["name"].as_str().unwrap());
            for (key, found) in [("pq", class.pq), ("sq", class.sq), ("rq", class.rq)] {
                // panopticapi gives zeros for classes that occur nowhere.
                let wanted = wanted[key].as_f64().unwrap_or(0.0);
                let found = found.unwrap_or(0.0);
                assert!(
                    (found - wanted).abs() < 1e-12,
                    "{split} {} {key}: {found}, not {wanted}",
                    class.name
                );
                compared += usize::from(wanted > 0.0);
            }
        }
        println!(
            "{split}: PQ {} of {} classes, {compared} class numbers above zero",
            report.all.pq, report.all.classes
        );
        assert!(compared > 60);
        evaluator.clear();
        feed(&mut evaluator, &truth, &pngs);
        let perfect = evaluator.summarize();
        assert_eq!((perfect.all.pq, perfect.all.sq, perfect.all.rq), (1.0, 1.0, 1.0));
        assert_eq!(evaluator.semantic().miou, 1.0);
    }
}
