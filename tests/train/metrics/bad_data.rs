//! Data sets that are not sound: the message names the file and the record.

use knet::ErrorKind;
use knet::image::bitmask::BitMask;
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::coco_ap::{self, Detection, Overlap, Region};
use knet::train::evaluate::panoptic_quality::{self, PanopticMap};
use knet::train::evaluate::semantic_iou::{self, ClassMap};
use serde_json::{Value, json};
use std::path::Path;

fn classes() -> Vec<String> {
    ["ant", "bee"].map(String::from).to_vec()
}

/// A sound instance file of two 4 x 6 images.
fn instances() -> Value {
    json!({
        "images": [
            {"id": 1, "file_name": "a.png", "height": 4, "width": 6},
            {"id": 2, "file_name": "b.png", "height": 4, "width": 6},
        ],
        "categories": [{"id": 1, "name": "ant"}, {"id": 7, "name": "bee"}],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 3, 2], "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]},
            {"id": 11, "image_id": 2, "category_id": 7, "iscrowd": 1, "bbox": [0, 0, 6, 4], "segmentation": {"size": [4, 6], "counts": [0, 24]}},
        ],
    })
}

/// Sets the value at a JSON pointer; `Value::Null` removes it.
fn with(mut file: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = file.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => {
            map.remove(key);
        }
        (Value::Object(map), value) => {
            map.insert(key.into(), value);
        }
        (Value::Array(list), value) => list[key.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
    file
}

#[track_caller]
fn refused<T>(outcome: knet::Result<T>, kind: ErrorKind, fragments: &[&str]) {
    let error = outcome.err().expect("an error");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for fragment in fragments {
        assert!(text.contains(fragment), "no `{fragment}` in: {text}");
    }
}

fn open_instances(path: &Path, overlap: Overlap) -> knet::Result<coco_ap::ApEvaluator> {
    coco_ap::ApEvaluator::open(path, &classes(), ClassPolicy::Same, overlap)
}

#[test]
fn instance_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    let write = |value: &Value| std::fs::write(&path, value.to_string()).unwrap();
    write(&instances());
    open_instances(&path, Overlap::Masks).unwrap();
    let cases: Vec<(&str, Value, &[&str])> = vec![
        ("/images", json!([]), &["`images` is empty"]),
        ("/images", Value::Null, &["no list `images`"]),
        ("/annotations", json!([]), &["no annotation (other than crowds)"]),
        ("/categories", json!([]), &["`categories` is empty"]),
        ("/images/1/id", json!(1), &["image 1", "twice"]),
        ("/images/1/id", json!("two"), &["image two", "one kind of id"]),
        ("/images/0/height", json!(0), &["image 1", "6 x 0 pixels"]),
        ("/images/0/height", json!(1u64 << 60), &["image 1", "not accepted"]),
        ("/images/0/width", Value::Null, &["image 1", "missing field `width`"]),
        ("/categories/1/id", json!(1), &["category 1 `bee`", "twice"]),
        ("/categories/1/name", json!("ant"), &["category 7 `ant`", "twice"]),
        ("/categories/1/name", json!("wasp"), &["only in the data set: wasp", "only in the model: bee"]),
        ("/annotations/0/image_id", json!(3), &["annotation 10", "`image_id` is 3"]),
        ("/annotations/0/category_id", json!(2), &["annotation 10", "`category_id` is 2"]),
        ("/annotations/0/category_id", json!(-1), &["annotation 10", "`category_id` is -1: a whole number"]),
        ("/annotations/0/segmentation", Value::Null, &["annotation 10", "no `segmentation`"]),
        ("/annotations/0/segmentation", json!([]), &["annotation 10", "empty list"]),
        (
            "/annotations/0/segmentation",
            json!([[1, 1, 2, 2, 3]]),
            &["annotation 10", "polygon 0 has 5 coordinates"],
        ),
        ("/annotations/0/segmentation", json!([[1, 1, 2, 2, 3, 1e300]]), &["annotation 10", "coordinate"]),
        (
            "/annotations/0/segmentation",
            json!("mask"),
            &["annotation 10", "`segmentation` is \"mask\"", "a list of polygons"],
        ),
        (
            "/annotations/0/segmentation",
            json!({"size": [4, 6], "counts": "~"}),
            &["annotation 10", "malformed run lengths", "0x7e"],
        ),
        (
            "/annotations/0/segmentation",
            json!({"size": [4, 6], "counts": "88"}),
            &["annotation 10", "add up to 16"],
        ),
        (
            "/annotations/0/segmentation",
            json!({"size": [6, 4], "counts": [24]}),
            &["annotation 10", "size [6, 4]", "[4, 6]"],
        ),
        ("/annotations/0/segmentation", json!({"size": [4, 6], "counts": [25]}), &["annotation 10", "25"]),
        (
            "/annotations/0/segmentation",
            json!({"size": [4, 6], "counts": [-1]}),
            &["annotation 10", "`counts`"],
        ),
        ("/annotations/0/iscrowd", json!(1), &["no annotation (other than crowds)"]),
        ("/annotations/0/iscrowd", json!("no"), &["annotation 10", "0, 1, false or true"]),
        ("/annotations/0/segments_info", json!([]), &["annotation 10", "--panoptic-dir"]),
    ];
    for (pointer, value, fragments) in cases {
        write(&with(instances(), pointer, value));
        let fragments = [&["a.json"], fragments].concat();
        refused(open_instances(&path, Overlap::Masks), ErrorKind::Data, &fragments);
    }
    write(&with(instances(), "/annotations/0/bbox", Value::Null));
    refused(open_instances(&path, Overlap::Boxes), ErrorKind::Data, &["image 1, object 0", "bbox"]);
    for (text, fragment) in [("", "EOF"), ("[1]", "it is a list"), ("{\"images\": 3}", "a.json")] {
        std::fs::write(&path, text).unwrap();
        refused(open_instances(&path, Overlap::Masks), ErrorKind::Data, &[fragment]);
    }
    std::fs::write(&path, b"{\"images\": \"\xff\"}").unwrap();
    refused(open_instances(&path, Overlap::Masks), ErrorKind::Data, &["not JSON text"]);
    refused(open_instances(&folder.path().join("b.json"), Overlap::Masks), ErrorKind::Io, &["b.json"]);
}

#[test]
fn detections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    std::fs::write(&path, instances().to_string()).unwrap();
    let mut evaluator = open_instances(&path, Overlap::Masks).unwrap();
    let mask = BitMask::new(4, 6);
    let turned = BitMask::new(6, 4);
    let good = Detection { class: 0, score: 0.5, region: Region::Mask(&mask) };
    refused(evaluator.add(3, &[good]), ErrorKind::Data, &["no image 3"]);
    let rle = |counts| Region::Rle { size: [4, 6], counts };
    let cases: [(Detection, &str); 6] = [
        (Detection { class: 2, ..good }, "no class 2"),
        (Detection { score: f64::NAN, ..good }, "not a number"),
        (Detection { region: Region::Mask(&turned), ..good }, "6 x 4"),
        (Detection { region: Region::Box([0.0; 4]), ..good }, "box"),
        (Detection { region: rle("~"), ..good }, "0x7e"),
        (Detection { region: rle("88"), ..good }, "add up to"),
    ];
    for (bad, fragment) in cases {
        refused(evaluator.add(1, &[good, bad]), ErrorKind::Usage, &["image 1, detection 1", fragment]);
    }
    evaluator.add(1, &[good]).unwrap();
}

/// A sound panoptic file; its PNG is that of [`write_ids`].
fn panoptic() -> Value {
    json!({
        "images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 4}],
        "categories": [{"id": 1, "name": "ant", "isthing": 1}, {"id": 7, "name": "bee", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [
            {"id": 300, "category_id": 1, "iscrowd": 0, "area": 2},
            {"id": 5, "category_id": 7, "iscrowd": 0, "area": 1},
        ]}],
    })
}

fn write_ids(path: &Path, ids: &[u32]) {
    let pixels = ids.iter().flat_map(|id| [0, 8, 16].map(|shift| (id >> shift) as u8)).collect();
    image::RgbImage::from_raw(ids.len() as u32, 1, pixels).unwrap().save(path).unwrap();
}

#[test]
fn panoptic_files() {
    let folder = tempfile::tempdir().unwrap();
    let (path, png) = (folder.path().join("p.json"), folder.path().join("a.png"));
    let open = |value: &Value| {
        std::fs::write(&path, value.to_string()).unwrap();
        panoptic_quality::PanopticEvaluator::open(&path, folder.path(), &classes(), ClassPolicy::Same)
    };
    let segment = "/annotations/0/segments_info/1";
    let cases: Vec<(String, Value, &[&str])> = vec![
        ("/annotations".into(), json!([]), &["no image has an annotation"]),
        ("/categories/1/isthing".into(), Value::Null, &["category 7 `bee`", "isthing"]),
        ("/annotations/0/segments_info".into(), Value::Null, &["image 1", "no panoptic file"]),
        ("/annotations/0/file_name".into(), Value::Null, &["image 1", "file_name"]),
        ("/annotations/0/image_id".into(), json!(2), &["`image_id` is 2"]),
        (format!("{segment}/category_id"), json!(2), &["image 1", "segment 5", "`category_id` is 2"]),
        (format!("{segment}/id"), json!(0), &["image 1", "segments_info[1]", "0 is void"]),
        (format!("{segment}/id"), json!(300), &["image 1", "segment 300", "twice"]),
    ];
    for (pointer, value, fragments) in cases {
        let fragments = [&["p.json"], fragments].concat();
        refused(open(&with(panoptic(), &pointer, value)), ErrorKind::Data, &fragments);
    }
    let mut evaluator = open(&panoptic()).unwrap();
    let good =
        PanopticMap { height: 1, width: 4, values: &[9, 9, 8, 0], void: 0, segments: &[(9, 0), (8, 1)] };
    refused(evaluator.add(1, &good), ErrorKind::Io, &["a.png"]);
    for (ids, fragments) in [
        (&[300, 300, 5, 6][..], &["a.png", "pixel (3, 0)", "segment id 6 (1 pixels)"]),
        (&[300, 5, 0], &["a.png", "3 x 1", "4 x 1"]),
    ] {
        write_ids(&png, ids);
        refused(evaluator.add(1, &good), ErrorKind::Data, fragments);
    }
    std::fs::write(&png, "no picture").unwrap();
    refused(evaluator.add(1, &good), ErrorKind::Image, &["a.png"]);
    write_ids(&png, &[300, 300, 5, 0]);
    refused(evaluator.add(2, &good), ErrorKind::Data, &["image 2"]);
    let cases: [(PanopticMap, &str); 6] = [
        (PanopticMap { width: 3, ..good }, "1 x 3"),
        (PanopticMap { values: &[9; 3], ..good }, "1 x 4"),
        (PanopticMap { values: &[9, 9, 8, 7], ..good }, "value 7"),
        (PanopticMap { values: &[9; 4], ..good }, "segment 8 has no pixel"),
        (PanopticMap { segments: &[(9, 0), (8, 2)], ..good }, "no class 2"),
        (PanopticMap { segments: &[(9, 0), (9, 1)], ..good }, "two segments"),
    ];
    for (bad, fragment) in cases {
        refused(evaluator.add(1, &bad), ErrorKind::Usage, &["image 1", fragment]);
    }
    evaluator.add(1, &good).unwrap();
    let report = evaluator.summarize();
    assert_eq!((report.all.pq, report.images), (1.0, 1));
    // A segment without a pixel is no segment, here as in training: the bee is a false positive, and nothing
    // is missed.
    evaluator.clear();
    write_ids(&png, &[300, 300, 0, 0]);
    evaluator.add(1, &good).unwrap();
    let bee = &evaluator.summarize().per_class[1];
    assert_eq!(
        (bee.true_positives, bee.false_positives, bee.false_negatives),
        (0, 0, 0),
        "on void for its whole"
    );
}

#[test]
fn class_lists_and_masks() {
    let folder = tempfile::tempdir().unwrap();
    let (list, mask) = (folder.path().join("c.json"), folder.path().join("m.png"));
    let open = |text: &str| {
        std::fs::write(&list, text).unwrap();
        semantic_iou::IouEvaluator::open(&list, "classes", &classes(), ClassPolicy::Same)
    };
    let two = |a: u32, b: u32, name: &str| {
        format!(r#"{{"classes": [{{"index": {a}, "name": "ant"}}, {{"index": {b}, "name": "{name}"}}]}}"#)
    };
    for (text, fragment) in [
        ("[]".to_string(), "not a class list"),
        (r#"{"classes": []}"#.to_string(), "empty"),
        (two(0, 0, "bee"), "classes[1] (`bee`)"),
        (two(0, 1, "ant"), "twice"),
        (two(0, 70_000, "bee"), "70000"),
        (two(0, 1, "wasp"), "only in the data set: wasp"),
    ] {
        refused(open(&text), ErrorKind::Data, &["c.json", fragment]);
    }
    let mut evaluator = open(&two(0, 1, "bee")).unwrap();
    let map = ClassMap { height: 1, width: 4, classes: &[0, 1, 1, 0] };
    refused(evaluator.add(&mask, &map), ErrorKind::Io, &["m.png"]);
    let grey = |values: &[u8]| {
        image::GrayImage::from_raw(values.len() as u32, 1, values.to_vec()).unwrap().save(&mask).unwrap();
    };
    grey(&[0, 1, 2, 255]);
    refused(evaluator.add(&mask, &map), ErrorKind::Data, &["m.png", "pixel (2, 0)", "index 2", "c.json"]);
    grey(&[0, 1, 1]);
    refused(evaluator.add(&mask, &map), ErrorKind::Data, &["m.png", "3 x 1", "4 x 1"]);
    write_ids(&mask, &[0, 1, 1, 0]);
    refused(evaluator.add(&mask, &map), ErrorKind::Image, &["m.png", "Rgb", "palette"]);
    std::fs::write(&mask, "no picture").unwrap();
    refused(evaluator.add(&mask, &map), ErrorKind::Image, &["m.png", "PNG"]);
    grey(&[0, 1, 1, 255]);
    evaluator.add(&mask, &map).unwrap();
    assert_eq!(evaluator.summarize().miou, 1.0);
}
