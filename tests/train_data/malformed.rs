//! Damaged, inconsistent and incomplete data: each fault gives a typed error that names file and record, none a panic.

use std::fs;

use knet::ErrorKind;
use knet::train::data::{DataConfig, Dataset, Mix};
use serde_json::{Value, json};

use crate::data;

/// The error of opening `config`; its class must be data, unless the system refused a file.
fn refused(config: &DataConfig) -> String {
    let error = Dataset::open(config, true).map(|set| set.len()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Data | ErrorKind::Io | ErrorKind::Image), "{error:?}");
    error.to_string()
}

fn check(config: &DataConfig, wanted: &[&str]) {
    let error = refused(config);
    for part in wanted {
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    }
}

#[test]
fn instance_records() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    data::photos(root, &["a.png"]);
    let with = |key: &str, value: Value| {
        let mut annotation = data::square(41, 7, 9);
        annotation[key] = value;
        data::coco_file(root, &[data::square(1, 7, 9), annotation])
    };
    let rle = |size: [usize; 2], counts: Value| json!({"size": size, "counts": counts});
    let cases: [(&str, Value, &[&str]); 15] = [
        ("image_id", 8.into(), &["annotation 41 (image 8)", "not in the list `images`"]),
        ("category_id", 10.into(), &["annotation 41", "category id 10 is not in the list"]),
        ("image_id", "seven".into(), &["annotations[1]", "invalid type"]),
        ("id", 1.into(), &["annotation 1", "occurs twice"]),
        ("segmentation", Value::Null, &["annotation 41", "has no segmentation"]),
        ("segmentation", json!([]), &["annotation 41", "segmentation is empty"]),
        ("segmentation", json!([[1, 1, 5, 5]]), &["polygon 0 has 4 coordinates", "three points"]),
        (
            "segmentation",
            json!([[1, 1, 5, 5, 9, 1], [1, 2, 3, 4, 5, 6, 7]]),
            &["polygon 1 has 7 coordinates"],
        ),
        ("segmentation", json!([["a", 1, 5, 5, 9, 1]]), &["annotation 41", "not lists of numbers"]),
        ("segmentation", json!([[1, 1, 1e12, 5, 9, 1]]), &["annotation 41", "far outside"]),
        ("segmentation", rle([48, 32], "0".into()), &["annotation 41", "size [48, 32]", "[32, 48]"]),
        ("segmentation", rle([32, 48], "o".into()), &["annotation 41", "malformed run lengths"]),
        ("segmentation", rle([32, 48], json!([10, 20])), &["annotation 41", "add up to 30", "1536"]),
        ("segmentation", rle([32, 48], json!([-1, 20])), &["annotation 41", "need `size`"]),
        ("segmentation", json!({"size": [32, 48]}), &["annotation 41", "need `size`"]),
    ];
    for (key, value, wanted) in cases {
        check(&with(key, value), wanted);
    }
}

#[test]
fn instance_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    data::photos(root, &["a.png"]);
    let sound = json!({
        "images": [{"id": 7, "file_name": "a.png", "width": 48, "height": 32}],
        "annotations": [data::square(1, 7, 9)],
        "categories": [{"id": 9, "name": "dog"}],
    });
    let with = |list: &str, value: Value| {
        let mut file = sound.clone();
        file[list] = value;
        data::coco_text(root, &file.to_string())
    };
    let photo =
        |id: u64, name: &str, width: u64| json!({"id": id, "file_name": name, "width": width, "height": 32});
    check(&with("images", json!([])), &["instances.json", "`images` is empty"]);
    check(&with("categories", json!([])), &["`categories` is empty"]);
    check(&with("categories", json!([{"id": 9, "name": "a"}, {"id": 9, "name": "b"}])), &["occurs twice"]);
    check(&with("images", json!([photo(7, "gone.png", 48)])), &["image 7", "gone.png does not exist"]);
    check(&with("images", json!([photo(7, "a.png", 0)])), &["image 7", "not accepted"]);
    check(&with("images", json!([photo(7, "a.png", u64::MAX)])), &["image 7", "not accepted"]);
    check(
        &with("images", json!([photo(7, "a.png", 48), photo(7, "a.png", 48)])),
        &["image 7", "occurs twice"],
    );
    check(&with("images", json!([{"id": 7}])), &["images[0]", "missing field `file_name`"]);
    // The polygon is fine for 50 columns, but the photo has 48.
    check(&with("images", json!([photo(7, "a.png", 50)])), &["image 7", "50 x 32", "48 x 32"]);
    check(&with("annotations", json!({})), &["instances.json", "not the JSON expected"]);
    let text = sound.to_string();
    for cut in [0, 1, text.len() / 2, text.len() - 1] {
        check(&data::coco_text(root, &text[..cut]), &["instances.json", "not the JSON expected"]);
    }
    fs::write(root.join("instances.json"), [0xff, 0xfe, 0]).unwrap();
    let config = DataConfig::CocoInstance {
        annotations: root.join("instances.json"),
        images: root.join("images"),
        classes: None,
        repeat: 1.0,
    };
    check(&config, &["not UTF-8"]);
    fs::remove_file(root.join("instances.json")).unwrap();
    check(&config, &["instances.json"]);
    data::coco_text(root, &text);
    fs::write(root.join("images/a.png"), b"not a picture").unwrap();
    check(&config, &["a.png"]);
    fs::remove_dir_all(root.join("images")).unwrap();
    check(&config, &["images", "does not exist"]);
}

#[test]
fn harmless_records_are_counted_and_nothing_to_learn_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let mut outside = data::square(2, 7, 9);
    outside["segmentation"] = json!([[100, 100, 120, 100, 120, 120]]);
    let config = data::coco_file(folder.path(), &[outside.clone(), data::square(3, 7, 9)]);
    let set = Dataset::open(&config, true).unwrap();
    assert_eq!(set.objects(0), 1);
    let found: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|w| w.contains("first: annotation 2 (image 7)")), "{found:?}");
    for annotations in [vec![], vec![outside]] {
        let config = data::coco_file(folder.path(), &annotations);
        assert_eq!(Dataset::open(&config, true).unwrap().objects(0), 0);
        let error = Mix::open(&[config], true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("instances.json: no image has an object"), "{error}");
    }
    assert_eq!(Mix::open(&[], true).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn panoptic_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (config, sound) = data::panoptic(root);
    let with = |at: &str, value: Value| {
        let mut file = sound.clone();
        *file.pointer_mut(at).unwrap() = value;
        data::panoptic_text(root, &file.to_string())
    };
    check(&with("/annotations/0/image_id", 8.into()), &["annotation of image 8", "not in the list `images`"]);
    check(&with("/annotations/0/file_name", "gone.png".into()), &["image 7", "gone.png does not exist"]);
    let segment = "/annotations/0/segments_info/1";
    check(&with(&format!("{segment}/category_id"), 4.into()), &["segment 70000", "category id 4"]);
    check(&with(&format!("{segment}/id"), 300.into()), &["segment 300", "occurs twice"]);
    check(&with(&format!("{segment}/id"), 0.into()), &["segment 0", "between 1 and"]);
    check(&with(&format!("{segment}/id"), 71_000.into()), &["a.png", "pixel (4, 10)", "segment id 70000"]);
    check(&with("/categories/0/isthing", Value::Null), &["category 2 `sky`", "isthing"]);
    let twice = json!([sound["annotations"][0], sound["annotations"][0]]);
    check(&with("/annotations", twice), &["image 7", "two annotations"]);
    check(&with("/annotations", json!([])), &["no image has an annotation"]);

    let mut extra = sound["annotations"][0]["segments_info"].clone();
    extra.as_array_mut().unwrap().push(json!({"id": 1234, "category_id": 3}));
    let set = Dataset::open(&with("/annotations/0/segments_info", extra), true).unwrap();
    assert!(set.warnings()[0].to_string().contains("without a pixel"), "{:?}", set.warnings());

    data::panoptic_text(root, &sound.to_string());
    data::ramp(47, 32).save(root.join("masks/a.png")).unwrap();
    check(&config, &["masks/a.png", "47 x 32", "48 x 32"]);
    fs::write(root.join("masks/a.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    check(&config, &["masks/a.png"]);
}

#[test]
fn semantic_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = data::semantic(root);
    assert_eq!(Dataset::open(&config, true).unwrap().len(), 2);
    data::grey(&root.join("masks/b.png"), 48, 32, |x, y| if (x, y) == (5, 6) { 3 } else { 0 });
    check(&config, &["masks/b.png", "pixel (5, 6)", "index 3", "3 classes (0 to 2)"]);
    // Unverified, the same fault is found when the image is loaded.
    let set = Dataset::open(&config, false).unwrap();
    assert!(set.load(0).is_ok());
    assert!(set.load(1).unwrap_err().to_string().contains("pixel (5, 6)"));
    data::ramp(48, 32).save(root.join("masks/b.png")).unwrap();
    check(&config, &["masks/b.png", "Rgb", "one grey or palette byte"]);
    data::grey(&root.join("masks/b.png"), 32, 48, |_, _| 0);
    check(&config, &["masks/b.png", "32 x 48", "48 x 32"]);
    fs::write(root.join("masks/b.png"), b"\x89PNG\r\n\x1a\nrest").unwrap();
    check(&config, &["masks/b.png", "not a readable PNG"]);
    data::grey(&root.join("masks/c.png"), 48, 32, |_, _| 0);
    check(&config, &["image `c`", "no file of this stem"]);
    for (text, wanted) in [
        (r#"{"classes": []}"#, "no list `classes`"),
        (r#"{"classes": [{"index": 1, "name": "a"}]}"#, "index 1 where 0"),
        (r#"{"classes": [{"index": 0, "name": "a"}, {"index": 1, "name": "a"}]}"#, "`a` occurs twice"),
        (r#"{"ignore_index": 700, "classes": [{"index": 0, "name": "a"}]}"#, "ignore_index 700"),
    ] {
        fs::write(root.join("classes.json"), text).unwrap();
        check(&config, &["classes.json", wanted]);
    }
}
