//! The twelve COCO numbers, as pycocotools gives them.

use crate::{category_names, read_json, shared};
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::coco_ap::{ApReport, Detection, Evaluator, Overlap, Region};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Evaluates a COCO result file.
fn evaluate(annotations: &Path, results: &Path, overlap: Overlap) -> ApReport {
    let file = read_json(annotations);
    let class_of: HashMap<u64, usize> = file["categories"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, c)| (c["id"].as_u64().unwrap(), i))
        .collect();
    let results = read_json(results);
    let mut by_image: BTreeMap<u64, Vec<Detection>> = BTreeMap::new();
    for result in results.as_array().unwrap() {
        let number = |v: &Value| v.as_f64().unwrap();
        let region = match overlap {
            Overlap::Boxes => Region::Box(std::array::from_fn(|i| number(&result["bbox"][i]))),
            Overlap::Masks => Region::Rle {
                size: std::array::from_fn(|i| result["segmentation"]["size"][i].as_u64().unwrap() as usize),
                counts: result["segmentation"]["counts"].as_str().unwrap(),
            },
        };
        by_image.entry(result["image_id"].as_u64().unwrap()).or_default().push(Detection {
            class: class_of[&result["category_id"].as_u64().unwrap()],
            score: number(&result["score"]),
            region,
        });
    }
    let mut evaluator =
        Evaluator::open(annotations, &category_names(&file), ClassPolicy::Same, overlap).unwrap();
    for (image, detections) in &by_image {
        evaluator.add(*image, detections).unwrap();
    }
    evaluator.summarize().unwrap()
}

#[track_caller]
fn agrees(found: &ApReport, wanted: &Value, tolerance: f64) {
    let pairs = [
        ("AP", Some(found.ap)),
        ("AP50", Some(found.ap50)),
        ("AP75", Some(found.ap75)),
        ("APs", found.ap_small),
        ("APm", found.ap_medium),
        ("APl", found.ap_large),
        ("AR1", Some(found.ar1)),
        ("AR10", Some(found.ar10)),
        ("AR100", Some(found.ar100)),
        ("ARs", found.ar_small),
        ("ARm", found.ar_medium),
        ("ARl", found.ar_large),
    ];
    assert_eq!(wanted.as_object().unwrap().len(), pairs.len());
    for (name, found) in pairs {
        let (found, wanted) = (found.unwrap(), wanted[name].as_f64().unwrap());
        println!("{name}: {found} and {wanted}");
        assert!((found - wanted).abs() <= tolerance, "{name}: {found}, not {wanted}");
    }
}

#[test]
fn published_numbers_of_val2014() {
    let Some(folder) = shared::data("published_numbers_of_val2014", "metric-reference/coco-ap") else {
        return;
    };
    let wanted = read_json(&folder.join("expected.json"));
    for (kind, overlap) in [("segm", Overlap::Masks), ("bbox", Overlap::Boxes)] {
        let results = folder.join(format!("instances_val2014_fake{kind}100_results.json"));
        let found = evaluate(&folder.join("instances_val2014_100.json"), &results, overlap);
        agrees(&found, &wanted["results"][kind], 1e-12);
    }
}

#[test]
fn crowds_doubles_and_cuts() {
    let Some(data) = shared::data("crowds_doubles_and_cuts", "") else { return };
    let folder = data.join("metric-reference/coco-open-ap");
    let annotations = data.join("coco-open/annotations/instances_val.json");
    let found = evaluate(&annotations, &folder.join("segm_results.json"), Overlap::Masks);
    agrees(&found, &read_json(&folder.join("expected.json"))["segm"], 1e-12);
}
