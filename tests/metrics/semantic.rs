//! Mean IoU, as a confusion matrix in NumPy gives it.

use crate::{read_json, shared};
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::index_png;
use knet::train::evaluate::semantic_iou::{ClassMap, Evaluator};

#[test]
fn confusion_of_shifted_segments() {
    let Some(data) = shared::data("confusion_of_shifted_segments", "") else { return };
    let folder = data.join("metric-reference/semantic");
    let expected = read_json(&folder.join("expected.json"));
    let list = data.join("coco-open/classes.json");
    let classes: Vec<String> = read_json(&list)["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap().to_string())
        .collect();
    for split in ["val", "train"] {
        let masks = data.join(format!("coco-open/semantic_{split}"));
        let mut evaluator = Evaluator::open(&list, &classes, ClassPolicy::Same).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&masks).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for file in &files {
            let map = index_png::read(&folder.join(format!("pred_{split}")).join(file.file_name().unwrap()))
                .unwrap();
            let values: Vec<u32> = map.values.iter().map(|&v| u32::from(v)).collect();
            evaluator
                .add(file, &ClassMap { height: map.height, width: map.width, classes: &values })
                .unwrap();
        }
        let report = evaluator.summarize();
        let wanted = &expected["results"][split];
        assert_eq!(report.pixels, wanted["pixels"].as_u64().unwrap());
        for (key, found) in [
            ("aAcc", report.pixel_accuracy),
            ("mAcc_over_classes_in_gt", report.mean_accuracy),
            ("mIoU_over_classes_in_gt_or_pred", report.miou),
            ("mIoU_over_classes_in_gt", report.miou_in_truth),
        ] {
            let wanted = wanted[key].as_f64().unwrap();
            assert!((found - wanted).abs() < 1e-12, "{split} {key}: {found}, not {wanted}");
        }
        let per_class = wanted["IoU_per_class"].as_object().unwrap();
        assert_eq!(report.per_class.iter().filter(|c| c.iou.is_some()).count(), per_class.len());
        for (index, wanted) in per_class {
            let class = &report.per_class[index.parse::<usize>().unwrap()];
            let (found, wanted) = (class.iou.unwrap(), wanted.as_f64().unwrap());
            assert!((found - wanted).abs() < 1e-12, "{split} {}: {found}, not {wanted}", class.name);
        }
        println!("{split}: mIoU {} of {} classes", report.miou, per_class.len());
    }
}
