//! Damaged, inconsistent and incomplete data: each fault gives a typed error that names file and record, none
//! a panic.

use std::fs;

use knet::ErrorKind;
use knet::train::data::{DataConfig, Dataset, Mix, Reading};
use serde_json::{Value, json};

use testkit::data;

/// The error of opening `config`; its class must be data, unless the system refused a file.
fn refused(config: &DataConfig) -> String {
    let error = Dataset::open(config, &Reading::default()).map(|set| set.len()).unwrap_err();
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
    let cases: Vec<(&str, Value, &[&str])> = vec![
        ("image_id", 8.into(), &["annotation 41 (image 8)", "`image_id` is 8", "in the list `images`"]),
        (
            "category_id",
            10.into(),
            &["annotation 41 (image 7)", "`category_id` is 10", "in the list `categories`"],
        ),
        ("image_id", "seven".into(), &["annotation 41", "`image_id` is \"seven\"", "in the list `images`"]),
        ("image_id", 7.5.into(), &["annotations[1]", "`image_id` is 7.5: a whole number"]),
        ("iscrowd", "no".into(), &["annotation 41", "`iscrowd` is \"no\": 0, 1, false or true"]),
        ("id", "x".into(), &["annotations[1] (image 7)", "`id` is \"x\": a whole number"]),
        ("segmentation", Value::Null, &["annotation 41", "has no `segmentation`"]),
        ("segmentation", json!([]), &["annotation 41", "`segmentation` is an empty list"]),
        ("segmentation", json!([[1, 1, 5]]), &["polygon 0 has 3 coordinates", "three points"]),
        (
            "segmentation",
            json!([1, 1, 5, 1, 5, 5]),
            &["annotation 41", "`segmentation` is [1,1,5", "one polygon without the list"],
        ),
        ("segments_info", json!([]), &["annotation 41", "panoptic file"]),
        (
            "segmentation",
            json!([[1, 1, 5, 5, 9, 1], [1, 2, 3, 4, 5, 6, 7]]),
            &["polygon 1 has 7 coordinates"],
        ),
        (
            "segmentation",
            json!([["a", 1, 5, 5, 9, 1]]),
            &["annotation 41", "`segmentation` is [[\"a\"", "a list of polygons"],
        ),
        ("segmentation", json!([[1, 1, 1e12, 5, 9, 1]]), &["annotation 41", "far outside"]),
        // Short to write, long to draw.
        (
            "segmentation",
            json!([vec![[0, 16, 48, 16]; 50_000].concat()]),
            &["annotation 41", "outlines of 4800000 pixels", "48 x 32: at most 4194304"],
        ),
        ("segmentation", rle([48, 32], "0".into()), &["annotation 41", "size [48, 32]", "[32, 48]"]),
        ("segmentation", rle([32, 48], "o".into()), &["annotation 41", "malformed run lengths"]),
        ("segmentation", rle([32, 48], json!([10, 20])), &["annotation 41", "add up to 30", "1536"]),
        (
            "segmentation",
            rle([32, 48], json!([-1, 20])),
            &["annotation 41", "`segmentation` is {", "`size` [height, width]"],
        ),
        (
            "segmentation",
            json!({"size": [32, 48]}),
            &["annotation 41", "`segmentation` is {", "`size` [height, width]"],
        ),
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
    check(
        &with("images", json!([photo(7, "gone.png", 48)])),
        &["image 7", "gone.png does not exist", "1 files of 1 images"],
    );
    check(&with("images", json!([photo(7, "a.png", 0)])), &["image 7", "not accepted"]);
    check(&with("images", json!([photo(7, "a.png", u64::MAX)])), &["image 7", "not accepted"]);
    check(
        &with("images", json!([photo(7, "a.png", 48), photo(7, "a.png", 48)])),
        &["image 7", "occurs twice"],
    );
    check(&with("images", json!([{"id": 7}])), &["image 7", "missing field `file_name`"]);
    // The polygon is fine for 50 columns, but the photo has 48.
    check(&with("images", json!([photo(7, "a.png", 50)])), &["image 7", "50 x 32", "48 x 32"]);
    check(&with("annotations", json!({})), &["instances.json", "not a COCO annotation file"]);
    check(&data::coco_text(root, "[{}]"), &["instances.json", "it is a list, an object is expected"]);
    check(&data::coco_text(root, "{}"), &["instances.json", "no list `categories`"]);
    let text = sound.to_string();
    for cut in [0, 1, text.len() / 2, text.len() - 1] {
        check(&data::coco_text(root, &text[..cut]), &["instances.json", "not a COCO annotation file"]);
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
    let set = Dataset::open(&config, &Reading::default()).unwrap();
    assert_eq!(set.objects(0), 1);
    let found: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[..2].iter().all(|w| w.contains("first: annotation 2 (image 7)")), "{found:?}");
    assert_eq!(found[2], "classes without an object: cat");
    for annotations in [vec![], vec![outside]] {
        let config = data::coco_file(folder.path(), &annotations);
        assert_eq!(Dataset::open(&config, &Reading::default()).unwrap().objects(0), 0);
        let error = Mix::open(&[config], &Reading::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("instances.json: no image has an object"), "{error}");
    }
    assert_eq!(Mix::open(&[], &Reading::default()).unwrap_err().kind(), ErrorKind::Usage);
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
    check(&with("/annotations/0/image_id", 8.into()), &["annotations[0] (image 8)", "in the list `images`"]);
    check(
        &with("/annotations/0/file_name", "gone.png".into()),
        &["image 7", "gone.png does not exist", "1 files of 1 images"],
    );
    let segment = "/annotations/0/segments_info/1";
    check(
        &with(&format!("{segment}/category_id"), 4.into()),
        &["segment 70000", "`category_id` is 4", "in the list `categories`"],
    );
    check(&with(&format!("{segment}/id"), 300.into()), &["segment 300", "occurs twice"]);
    check(
        &with(&format!("{segment}/id"), 0.into()),
        &["image 7", "segments_info[1]", "`id` is 0: a number from 1 to"],
    );
    check(&with(&format!("{segment}/id"), 71_000.into()), &["a.png", "pixel (4, 10)", "segment id 70000"]);
    check(
        &with(&format!("{segment}/iscrowd"), "no".into()),
        &["segment 70000", "`iscrowd` is \"no\"", "false or true"],
    );
    check(&with("/categories/0/isthing", Value::Null), &["category 2 `sky`", "isthing"]);
    let twice = json!([sound["annotations"][0], sound["annotations"][0]]);
    check(&with("/annotations", twice), &["image 7", "two annotations"]);
    check(&with("/annotations", json!([])), &["no image has an annotation"]);

    let mut extra = sound["annotations"][0]["segments_info"].clone();
    extra.as_array_mut().unwrap().push(json!({"id": 1234, "category_id": 3}));
    let set = Dataset::open(&with("/annotations/0/segments_info", extra), &Reading::default()).unwrap();
    let told = |w: &knet::train::data::Warning| {
        w.to_string().contains("segments without a pixel") && w.first.ends_with("segment 1234")
    };
    assert!(set.warnings().iter().any(told), "{:?}", set.warnings());

    // A set in which nothing is labelled never trains.
    image::RgbImage::new(48, 32).save(root.join("masks/a.png")).unwrap();
    check(&data::panoptic_text(root, &sound.to_string()), &["panoptic.json", "no pixel of any label image"]);

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
    assert_eq!(Dataset::open(&config, &Reading::default()).unwrap().len(), 2);
    data::grey(&root.join("masks/b.png"), 48, 32, |x, y| if (x, y) == (5, 6) { 3 } else { 0 });
    check(&config, &["masks/b.png", "pixel (5, 6)", "index 3", "lists 0, 1, 2 and ignores 99"]);
    // Unverified, the same fault is found when the image is loaded.
    let set = Dataset::open(&config, &Reading { verify: false, ..Reading::default() }).unwrap();
    assert!(set.load(0).is_ok());
    assert!(set.load(1).unwrap_err().to_string().contains("pixel (5, 6)"));
    data::ramp(48, 32).save(root.join("masks/b.png")).unwrap();
    check(&config, &["masks/b.png", "Rgb", "one grey or palette sample"]);
    data::grey(&root.join("masks/b.png"), 32, 48, |_, _| 0);
    check(&config, &["masks/b.png", "32 x 48", "48 x 32"]);
    fs::write(root.join("masks/b.png"), b"\x89PNG\r\n\x1a\nrest").unwrap();
    check(&config, &["masks/b.png", "not a readable PNG"]);
    data::grey(&root.join("masks/c.png"), 48, 32, |_, _| 0);
    check(&config, &["image `c`", "no photo of this stem"]);
    for (text, wanted) in [
        (r#"{"classes": []}"#, "`classes` is empty"),
        (r#"{"classes": 3}"#, "`classes` is no list"),
        (r#"[]"#, "it is a list, an object is expected"),
        (r#"{"classes": [{"index": 70000, "name": "a"}]}"#, "classes[0]: `index` is 70000: a number from 0"),
        (r#"{"classes": [{"index": 0}]}"#, "classes[0]: missing field `name`"),
        (
            r#"{"classes": [{"index": 0, "name": "a"}, {"index": 1, "name": "a"}]}"#,
            "classes[1] (`a`): the index 1 or the name occurs twice",
        ),
        (r#"{"ignore_index": -7, "classes": [{"index": 0, "name": "a"}]}"#, "`ignore_index` is -7"),
    ] {
        fs::write(root.join("classes.json"), text).unwrap();
        check(&config, &["classes.json", wanted]);
    }
}

#[test]
fn damaged_photos_are_found_at_the_start_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = data::two_photos(root);
    let photo = root.join("images/b.png");
    let bytes = fs::read(&photo).unwrap();
    // The header is whole: only decoding tells.
    fs::write(&photo, &bytes[..bytes.len() / 2]).unwrap();
    check(&config, &["images/b.png", "damaged"]);
    let skip = Reading { skip_damaged: true, ..Reading::default() };
    let set = Dataset::open(&config, &skip).unwrap();
    assert_eq!((set.len(), set.load(0).unwrap().id), (1, 7));
    let left_out = set.warnings()[0].to_string();
    assert!(left_out.contains("left out (1 times; first: ") && left_out.contains("b.png"), "{left_out}");
    // A JPEG, whatever its name, half of whose data are gone though it has its end marker.
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&data::ramp(48, 32)).unwrap();
    jpeg.truncate(jpeg.len() - 40);
    fs::write(root.join("images/a.png"), [&jpeg[..], &[0xff, 0xd9]].concat()).unwrap();
    let grey = Dataset::open(&config, &skip).unwrap().warnings()[0].to_string();
    assert!(grey.contains("filled with grey (1 times; first: ") && grey.contains("a.png"), "{grey}");
    fs::write(root.join("images/a.png"), b"no picture").unwrap();
    let error = Dataset::open(&config, &skip).unwrap_err().to_string();
    assert!(error.contains("no photo can be decoded"), "{error}");
}
