//! `knet eval`.

use crate::{folder_with_photo, knet, listing, photo, read_json, succeed};
use image::RgbImage;
use serde_json::{Value, json};
use std::path::Path;

/// A data set of one photo with instances, panoptic segments and class indices; classes are the model's first
/// two.
fn write_data_set(path: &Path) {
    let json = |name: &str, value: Value| std::fs::write(path.join(name), value.to_string()).unwrap();
    let images = serde_json::json!([{"id": 4, "file_name": "a.png", "height": 128, "width": 192}]);
    let categories = serde_json::json!([
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 9, "name": "sky-other-merged", "isthing": 0},
    ]);
    let outline = serde_json::json!([[10, 10, 90, 10, 90, 90]]);
    json(
        "instances.json",
        serde_json::json!({"images": images, "categories": categories, "annotations": [
            {"id": 1, "image_id": 4, "category_id": 1, "iscrowd": 0, "segmentation": outline},
        ]}),
    );
    json(
        "panoptic.json",
        serde_json::json!({"images": images, "categories": categories, "annotations": [
            {"image_id": 4, "file_name": "a.png", "segments_info": [{"id": 7, "category_id": 9, "iscrowd": 0}]},
        ]}),
    );
    json("classes.json", serde_json::json!({"classes": [{"index": 3, "name": "person"}]}));
    json("none.json", serde_json::json!({"images": images, "categories": categories, "annotations": []}));
    std::fs::create_dir(path.join("panoptic")).unwrap();
    std::fs::create_dir(path.join("masks")).unwrap();
    std::fs::create_dir(path.join("empty")).unwrap();
    RgbImage::from_pixel(192, 128, image::Rgb([7, 0, 0])).save(path.join("panoptic/a.png")).unwrap();
    image::GrayImage::from_pixel(192, 128, image::Luma([3])).save(path.join("masks/a.png")).unwrap();
}

#[test]
fn evaluation() {
    let folder = folder_with_photo();
    let path = folder.path();
    write_data_set(path);
    let before = listing(path);
    let common = ["eval", "--images", ".", "--size", "64,96"];
    let panoptic = [
        "--model",
        "knet_s3_r50_fpn_panoptic",
        "--annotations",
        "panoptic.json",
        "--panoptic-dir",
        "panoptic",
    ];
    let masks = ["--masks", "masks", "--classes", "classes.json"];
    let cases: [(&[&str], i32, &[&str]); 12] = [
        (&[], 2, &["--annotations"]),
        (&["--masks", "masks"], 2, &["--classes"]),
        (&["--panoptic-dir", "panoptic"], 2, &["--annotations"]),
        (&["--annotations", "gone.json"], 3, &["gone.json", "No such file"]),
        (
            &["--annotations", "none.json", "--common-classes"],
            8,
            &["none.json", "no annotation (other than crowds)"],
        ),
        (
            &["--annotations", "instances.json"],
            8,
            &[
                "instances.json",
                "1 names agree",
                "only in the data set: sky-other-merged",
                "--common-classes",
            ],
        ),
        (
            &["--annotations", "instances.json", "--common-classes", "--images", "empty"],
            8,
            &["image 4", "empty/a.png does not exist", "1 files of 1 images"],
        ),
        (&["--annotations", "panoptic.json", "--common-classes"], 8, &["panoptic.json", "--panoptic-dir"]),
        (
            &["--annotations", "instances.json", "--masks", "masks", "--classes", "classes.json"],
            2,
            &["different results"],
        ),
        (&["--annotations", "instances.json", "--panoptic-dir", "panoptic"], 2, &["gives instance results"]),
        (
            &["--masks", "empty", "--classes", "classes.json", "--model", "knet_s3_r50_fpn_panoptic"],
            8,
            &["empty", "names no mask"],
        ),
        (
            &[
                "--masks",
                "masks",
                "--classes",
                "classes.json",
                "--model",
                "knet_s3_r50_fpn_panoptic",
                "--images",
                "masks/..",
            ],
            8,
            &["classes.json", "132 only in the model"],
        ),
    ];
    for (arguments, code, fragments) in cases {
        // A folder of images that a case names stands for the common one.
        let common =
            if arguments.contains(&"--images") { &["eval", "--size", "64,96"][..] } else { &common[..] };
        let outcome = knet(path, &[common, arguments].concat());
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
        for fragment in fragments {
            assert!(
                outcome.stderr.contains(fragment),
                "{arguments:?}: no `{fragment}` in: {}",
                outcome.stderr
            );
        }
    }
    assert_eq!(listing(path), before);

    let run = |arguments: &[&str]| {
        let outcome =
            succeed(path, &[&common[..], &["--common-classes", "--json", "out.json"], arguments].concat());
        (outcome.stdout, read_json(&path.join("out.json")))
    };
    let (table, report) = run(&["--model", "knet_s3_r50_fpn", "--annotations", "instances.json"]);
    assert!(table.contains("knet_s3_r50_fpn on 1 images") && table.contains("AP50"), "{table}");
    assert_eq!(report["instances"]["objects"], 1);
    assert_eq!(report["only_in_data"], serde_json::json!(["sky-other-merged"]));
    let (table, report) = run(&panoptic);
    assert!(table.contains("Panoptic quality") && table.contains("mIoU"), "{table}");
    assert_eq!(report["panoptic"]["images"], 1);
    assert_eq!(report["semantic"]["pixels"], 128 * 192);
    assert_eq!(report["semantic"]["per_class"][1]["pixels"], 128 * 192);
    let (_, report) = run(&[&panoptic[..], &masks].concat());
    assert_eq!(report["semantic"]["per_class"][0]["name"], "person");
    let (table, report) = run(&[&masks[..], &panoptic[..2]].concat());
    assert!(!table.contains("Panoptic quality") && report["panoptic"].is_null(), "{table}");
    assert_eq!(report["semantic"]["pixels"], 128 * 192);

    // A photo of another size than the annotations say.
    photo(100, 100).save(path.join("a.png")).unwrap();
    let outcome =
        knet(path, &[&common[..], &["--common-classes", "--annotations", "instances.json"]].concat());
    assert_eq!(outcome.code, 8, "{}", outcome.stderr);
    for fragment in ["a.png", "image 4", "100 x 100", "192 x 128"] {
        assert!(outcome.stderr.contains(fragment), "{}", outcome.stderr);
    }
}

#[test]
fn results_carry_the_ids_of_the_data_set() {
    let folder = folder_with_photo();
    let path = folder.path();
    let images = json!([
        {"id": "later", "file_name": "gone.png", "height": 128, "width": 192},
        {"id": "first", "file_name": "a.png", "height": 128, "width": 192},
    ]);
    let outline = json!([[10, 10, 90, 10, 90, 90]]);
    let file = json!({
        "images": [images[1]],
        "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "person"}],
        "annotations": [{"id": 1, "image_id": "first", "category_id": 90, "iscrowd": 0, "segmentation": outline}],
    });
    std::fs::write(path.join("gt.json"), file.to_string()).unwrap();
    let eval = ["eval", "--images", ".", "--annotations", "gt.json", "--common-classes", "--size", "64,96"];
    let outcome = succeed(path, &[&eval[..], &["--coco", "eval.json"]].concat());
    assert!(outcome.stderr.contains("classes without an object: cat"), "{}", outcome.stderr);
    // A file without annotations, as test sets have, is enough to know the ids.
    let test = json!({"images": images, "categories": file["categories"]});
    std::fs::write(path.join("test.json"), test.to_string()).unwrap();
    let segment = ["segment", "a.png", "--size", "64,96", "--score", "0", "--out", "out"];
    succeed(path, &[&segment[..], &["--coco", "segment.json", "--annotations", "test.json"]].concat());
    let [eval_list, segment_list] = ["eval.json", "segment.json"].map(|name| read_json(&path.join(name)));
    // The evaluation counts, as the official one does, objects without a pixel; users get none.
    let has_pixels = |entry: &&Value| {
        let counts = entry["segmentation"]["counts"].as_str().unwrap();
        knet::image::rle::decode(counts, 128, 192).unwrap().area() > 0
    };
    let seen: Vec<&Value> = eval_list.as_array().unwrap().iter().filter(has_pixels).collect();
    assert_eq!(seen, segment_list.as_array().unwrap().iter().collect::<Vec<_>>());
    let entries = eval_list.as_array().unwrap();
    assert!(!entries.is_empty());
    for entry in entries {
        let keys: Vec<&String> = entry.as_object().unwrap().keys().collect();
        // No box: pycocotools would take its area for the mask's.
        assert_eq!(keys, ["image_id", "category_id", "segmentation", "score"]);
        assert_eq!((&entry["image_id"], &entry["category_id"]), (&json!("first"), &json!(90)));
        assert_eq!(entry["segmentation"]["size"], json!([128, 192]));
        assert!(entry["segmentation"]["counts"].is_string() && entry["score"].is_f64());
    }
    for (arguments, code, fragment) in [
        (vec!["segment", "a.png", "--coco", "x.json"], 2, "--annotations"),
        (
            vec!["segment", "out/a.overlay.png", "--coco", "x.json", "--annotations", "test.json"],
            8,
            "no entry",
        ),
        ([&eval[..], &["--coco", "eval.json"]].concat(), 2, "--overwrite"),
        ([&eval[..], &["--json", "gt.json", "--overwrite"]].concat(), 2, "is an input"),
    ] {
        let outcome = knet(path, &arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(fragment), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn files_are_looked_at_before_anything_is_computed() {
    let folder = folder_with_photo();
    let path = folder.path();
    std::fs::copy(path.join("a.png"), path.join("b.png")).unwrap();
    let image = |id: u32, name: &str| json!({"id": id, "file_name": name, "height": 128, "width": 192});
    let object = |id: u32| json!({"id": id, "image_id": id, "category_id": 1, "segmentation": [[9, 9, 90, 9, 90, 90]]});
    let file = json!({
        "images": [image(1, "a.png"), image(2, "b.png")],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [object(1), object(2)],
    });
    std::fs::write(path.join("gt.json"), file.to_string()).unwrap();
    let whole = std::fs::read(path.join("b.png")).unwrap();
    std::fs::write(path.join("b.png"), &whole[..whole.len() / 2]).unwrap();
    let eval = ["eval", "--images", ".", "--annotations", "gt.json", "--size", "64,96"];
    let outcome = knet(path, &eval);
    assert_eq!(outcome.code, 4, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("b.png") && outcome.stdout.is_empty(), "{}", outcome.stderr);
    let outcome = succeed(path, &[&eval[..], &["--skip-damaged"]].concat());
    assert!(
        outcome.stdout.contains("on 1 images") && outcome.stderr.contains("left out (1 times"),
        "{}",
        outcome.stderr
    );
    // The result is printed though it cannot be written.
    let outcome = knet(path, &[&eval[..], &["--skip-damaged", "--json", "a.png/x.json"]].concat());
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(outcome.stdout.contains("on 1 images"), "{}", outcome.stdout);
}
