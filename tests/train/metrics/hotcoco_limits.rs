//! Why ground truth is not read by hotcoco, whose matching and averaging are used: what it lets pass.

use hotcoco::params::IouType;
use hotcoco::{Annotation, COCO, COCOeval, Dataset, PanopticDataset, PanopticEval};
use serde_json::json;

/// AP of `annotations` with the first one's mask as the only detection.
fn ap(annotations: serde_json::Value) -> Result<f64, hotcoco::Error> {
    let dataset = json!({
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": "ant"}],
        "annotations": annotations,
    });
    let dataset: Dataset = serde_json::from_value(dataset).unwrap();
    let truth = COCO::from_dataset(dataset);
    let detection = json!({"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": {"size": [8, 8], "counts": [0, 16, 48]}});
    let detection: Annotation = serde_json::from_value(detection).unwrap();
    let found = truth.load_res_anns(vec![detection])?;
    let mut evaluation = COCOeval::new(truth, found, IouType::Segm);
    evaluation.evaluate()?;
    evaluation.accumulate();
    evaluation.summarize_lines();
    Ok(evaluation.stats().unwrap()[0])
}

#[test]
fn unsound_annotations_become_numbers() {
    let good = json!({"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": {"size": [8, 8], "counts": [0, 16, 48]}});
    assert!((ap(json!([good])).unwrap() - 1.0).abs() < super::TOLERANCE);
    // A second object that cannot be found halves the AP (51 of 101 recall points), one that is dropped does
    // not.
    let missed = 51.0 / 101.0;
    let cases = [
        (json!({"iscrowd": 0}), missed),
        (json!({"segmentation": [[1, 1, 5, 1, 5]]}), missed),
        (json!({"segmentation": {"size": [8, 8], "counts": "~~"}}), missed),
        (json!({"segmentation": {"size": [4, 4], "counts": [0, 16]}}), missed),
        (json!({"segmentation": [[1, 1, 5, 1, 5, 5]], "image_id": 9}), 1.0),
        (json!({"segmentation": [[1, 1, 5, 1, 5, 5]], "category_id": 9}), 1.0),
    ];
    for (difference, wanted) in cases {
        let mut bad = json!({"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0});
        bad.as_object_mut().unwrap().extend(difference.as_object().unwrap().clone());
        let found = ap(json!([good, bad])).unwrap();
        assert!((found - wanted).abs() < super::TOLERANCE, "{bad}: {found}");
    }
}

#[test]
fn a_png_id_without_a_segment_is_void() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut picture = image::RgbImage::new(4, 1);
    picture.put_pixel(0, 0, image::Rgb([1, 0, 0]));
    picture.put_pixel(1, 0, image::Rgb([2, 0, 0]));
    for side in ["truth", "found"] {
        std::fs::create_dir(path.join(side)).unwrap();
        let mut copy = picture.clone();
        if side == "found" {
            copy.put_pixel(1, 0, image::Rgb([0, 0, 0]));
        }
        copy.save(path.join(side).join("a.png")).unwrap();
        let file = json!({
            "images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 4}],
            "categories": [{"id": 1, "name": "ant", "isthing": 1}],
            "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1, "iscrowd": 0, "area": 1}]}],
        });
        std::fs::write(path.join(format!("{side}.json")), file.to_string()).unwrap();
    }
    let read = |side: &str| PanopticDataset::from_file(&path.join(format!("{side}.json"))).unwrap();
    let mut evaluation = PanopticEval::new(read("truth"), read("found"));
    evaluation.run().unwrap();
    assert_eq!(evaluation.result().unwrap().all.scores.pq, 1.0);
}
