//! The twelve COCO numbers, as pycocotools gives them.

use super::{TOLERANCE, agrees, golden, names, read_json};
use hotcoco::{COCO, Rle};
use knet::image::bitmask::BitMask;
use knet::image::rle;
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::coco_ap::{ApEvaluator, ApReport, Detection, Overlap, Region};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use testkit::shared;

fn classes_by_id(file: &Value) -> HashMap<u64, usize> {
    let categories = file["categories"].as_array().unwrap();
    categories.iter().enumerate().map(|(i, c)| (c["id"].as_u64().unwrap(), i)).collect()
}

/// The detections of a COCO result file by image.
fn detections<'a>(
    results: &'a Value,
    class_of: &HashMap<u64, usize>,
    overlap: Overlap,
) -> BTreeMap<u64, Vec<Detection<'a>>> {
    let mut by_image: BTreeMap<u64, Vec<Detection>> = BTreeMap::new();
    for result in results.as_array().unwrap() {
        let region = match overlap {
            Overlap::Boxes => Region::Box(std::array::from_fn(|i| result["bbox"][i].as_f64().unwrap())),
            Overlap::Masks => Region::Rle {
                size: std::array::from_fn(|i| result["segmentation"]["size"][i].as_u64().unwrap() as usize),
                counts: result["segmentation"]["counts"].as_str().unwrap(),
            },
        };
        let class = class_of[&result["category_id"].as_u64().unwrap()];
        let detection = Detection { class, score: result["score"].as_f64().unwrap(), region };
        by_image.entry(result["image_id"].as_u64().unwrap()).or_default().push(detection);
    }
    by_image
}

/// Evaluates a COCO result file.
fn evaluate(annotations: &Path, results: &Path, overlap: Overlap) -> ApReport {
    let file = read_json(annotations);
    let results = read_json(results);
    let classes = names(&file["categories"]);
    let mut evaluator = ApEvaluator::open(annotations, &classes, ClassPolicy::Same, overlap).unwrap();
    for (image, detections) in &detections(&results, &classes_by_id(&file), overlap) {
        evaluator.add(*image, detections).unwrap();
    }
    evaluator.summarize().unwrap()
}

#[track_caller]
fn all_agree(found: &ApReport, wanted: &Value) {
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
        agrees(name, found.unwrap(), &wanted[name]);
    }
    // The total is the mean over the classes that have objects.
    let scored: Vec<f64> = found.per_class.iter().filter_map(|class| class.ap).collect();
    assert!((scored.iter().sum::<f64>() / scored.len() as f64 - found.ap).abs() < 1e-12);
    assert_eq!(found.per_class.iter().map(|class| class.objects).sum::<usize>(), found.objects);
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
        all_agree(&found, &wanted["results"][kind]);
    }
}

#[test]
fn crowds_doubles_and_cuts() {
    let found = evaluate(&golden("instances.json"), &golden("detections.json"), Overlap::Masks);
    assert_eq!(found.images, 10);
    all_agree(&found, &read_json(&golden("ap.json")));
    let Some(data) = shared::data("crowds_doubles_and_cuts", "") else { return };
    let folder = data.join("metric-reference/coco-open-ap");
    let annotations = data.join("coco-open/annotations/instances_val.json");
    let found = evaluate(&annotations, &folder.join("segm_results.json"), Overlap::Masks);
    all_agree(&found, &read_json(&folder.join("expected.json"))["segm"]);
}

/// Masks of all objects that are no crowds, as `(image, class, mask)`.
fn true_masks(annotations: &Path) -> Vec<(u64, usize, BitMask)> {
    let class_of = classes_by_id(&read_json(annotations));
    let file = COCO::new(annotations).unwrap();
    let objects = file.dataset.annotations.iter().filter(|object| !object.iscrowd);
    objects
        .map(|object| {
            let Rle { h, w, counts } = file.ann_to_rle(object).unwrap();
            let mask = rle::from_runs(&counts, h as usize, w as usize).unwrap();
            (object.image_id, class_of[&object.category_id], mask)
        })
        .collect()
}

#[test]
fn the_truth_is_perfect() {
    let path = golden("instances.json");
    let classes = names(&read_json(&path)["categories"]);
    let masks = true_masks(&path);
    let mut evaluator = ApEvaluator::open(&path, &classes, ClassPolicy::Same, Overlap::Masks).unwrap();
    let ids: Vec<u64> = evaluator.images().map(|image| image.id).collect();
    for &id in &ids {
        let detection = |(_, class, mask): &'_ &(u64, usize, BitMask)| (*class, mask.clone());
        let own: Vec<(usize, BitMask)> =
            masks.iter().filter(|(image, ..)| *image == id).map(|m| detection(&m)).collect();
        let found: Vec<Detection> = own
            .iter()
            .map(|(class, mask)| Detection { class: *class, score: 0.5, region: Region::Mask(mask) })
            .collect();
        evaluator.add(id, &found).unwrap();
    }
    let report = evaluator.summarize().unwrap();
    let ranges = [report.ap_small, report.ap_medium, report.ap_large].map(Option::unwrap);
    for value in [report.ap, report.ap50, report.ap75, report.ar100].iter().chain(&ranges) {
        // pycocotools' precision is TP / (TP + FP + 2^-52).
        assert!((value - 1.0).abs() < TOLERANCE, "{report:?}");
    }
    assert_eq!(report.objects, masks.len());
    // Images that were never compared count as empty results, as do those of a fresh start.
    evaluator.clear().unwrap();
    let report = evaluator.summarize().unwrap();
    assert_eq!((report.ap, report.ar100, report.objects), (0.0, 0.0, masks.len()));
    // A second result replaces the first.
    let id = masks[0].0;
    let wrong = BitMask::new(masks[0].2.height(), masks[0].2.width());
    let (class, region) = (masks[0].1, Region::Mask(&masks[0].2));
    evaluator.add(id, &[Detection { class, score: 0.9, region: Region::Mask(&wrong) }]).unwrap();
    evaluator.add(id, &[Detection { class, score: 0.9, region }]).unwrap();
    let twice = evaluator.summarize().unwrap();
    evaluator.clear().unwrap();
    evaluator.add(id, &[Detection { class, score: 0.9, region }]).unwrap();
    assert_eq!(evaluator.summarize().unwrap(), twice);
    assert!(twice.ap > 0.0);
}

#[test]
fn common_classes_keep_all_images() {
    let (annotations, path) = (golden("instances.json"), golden("detections.json"));
    let file = read_json(&annotations);
    let results = read_json(&path);
    // A model of two classes, one of which the data set does not know.
    let model = ["unicorn".to_string(), "person".to_string()];
    let refusal = ApEvaluator::open(&annotations, &model, ClassPolicy::Same, Overlap::Masks).err().unwrap();
    for fragment in ["1 names agree", "79 only in the data set: bicycle, car", "1 only in the model: unicorn"]
    {
        assert!(refusal.to_string().contains(fragment), "{refusal}");
    }
    let mut evaluator = ApEvaluator::open(&annotations, &model, ClassPolicy::Common, Overlap::Masks).unwrap();
    let full = evaluate(&annotations, &path, Overlap::Masks);
    let class_of: HashMap<u64, usize> =
        classes_by_id(&file).into_keys().map(|id| (id, usize::from(id == 1))).collect();
    for (image, detections) in &detections(&results, &class_of, Overlap::Masks) {
        evaluator.add(*image, detections).unwrap();
    }
    let report = evaluator.summarize().unwrap();
    assert_eq!(report.images, full.images);
    assert_eq!(report.per_class, full.per_class[..1]);
    assert!((report.ap - full.per_class[0].ap.unwrap()).abs() < TOLERANCE);
    let first = evaluator.images().next().unwrap().id;
    evaluator.retain_images(|image| image.id != first).unwrap();
    assert_eq!(evaluator.images().len(), full.images - 1);
    let refusal = evaluator.retain_images(|_| false).unwrap_err();
    assert!(refusal.to_string().contains("no annotation is left"), "{refusal}");
}
