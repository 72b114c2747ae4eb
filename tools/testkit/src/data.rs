//! Hand-made data sets in temporary folders.

use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};
use knet::train::data::DataConfig;
use serde_json::{Value, json};

/// A photo of which every pixel says where it is: red grows with x, green with y.
pub fn ramp(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, 128]))
}

/// Writes a folder `images` with `names`, 48 wide and 32 high.
pub fn photos(root: &Path, names: &[&str]) {
    std::fs::create_dir_all(root.join("images")).unwrap();
    for name in names {
        ramp(48, 32).save(root.join("images").join(name)).unwrap();
    }
}

/// Writes an index or grey PNG.
pub fn grey(path: &Path, width: u32, height: u32, value: impl Fn(u32, u32) -> u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_fn(width, height, |x, y| Luma([value(x, y)])).save(path).unwrap();
}

/// The two categories of [`coco_file`], out of order.
const CATEGORIES: &str = r#"[{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]"#;

/// Writes `instances.json` for the one photo `images/a.png` (id 7) and says where it is.
pub fn coco_file(root: &Path, annotations: &[Value]) -> DataConfig {
    coco_text(
        root,
        &json!({
            "images": [{"id": 7, "file_name": "a.png", "width": 48, "height": 32}],
            "annotations": annotations,
            "categories": serde_json::from_str::<Value>(CATEGORIES).unwrap(),
        })
        .to_string(),
    )
}

/// Writes `instances.json` with any text.
pub fn coco_text(root: &Path, text: &str) -> DataConfig {
    let annotations = root.join("instances.json");
    std::fs::write(&annotations, text).unwrap();
    DataConfig::CocoInstance { annotations, images: root.join("images"), classes: None, repeat: 1.0 }
}

/// An annotation of 8 x 8 pixels.
pub fn square(id: usize, image: u64, category: u32) -> Value {
    let polygon = [8, 8, 16, 8, 16, 16, 8, 16];
    json!({"id": id, "image_id": image, "category_id": category, "segmentation": [polygon]})
}

/// A panoptic set of one photo: sky on top (rows 0 to 9), a dog of 10 x 10 at (4, 10), a crowd of cats right
/// of column 32, void elsewhere. Returns it with its JSON.
pub fn panoptic(root: &Path) -> (DataConfig, Value) {
    photos(root, &["a.png"]);
    std::fs::create_dir_all(root.join("masks")).unwrap();
    let id = |x: u32, y: u32| match (x, y) {
        (_, 0..10) => 300u32,
        (4..14, 10..20) => 70_000,
        (32.., _) => 5,
        _ => 0,
    };
    let png = RgbImage::from_fn(48, 32, |x, y| {
        let [r, g, b, _] = id(x, y).to_le_bytes();
        Rgb([r, g, b])
    });
    png.save(root.join("masks/a.png")).unwrap();
    let json = json!({
        "images": [{"id": 7, "file_name": "a.png", "width": 48, "height": 32}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [
            {"id": 300, "category_id": 2}, {"id": 70_000, "category_id": 9, "iscrowd": 0},
            {"id": 5, "category_id": 3, "iscrowd": 1}]}],
        "categories": [{"id": 2, "name": "sky", "isthing": 0}, {"id": 9, "name": "dog", "isthing": 1},
                       {"id": 3, "name": "cat", "isthing": 1}],
    });
    (panoptic_text(root, &json.to_string()), json)
}

/// Writes `panoptic.json` with any text.
pub fn panoptic_text(root: &Path, text: &str) -> DataConfig {
    let annotations = root.join("panoptic.json");
    std::fs::write(&annotations, text).unwrap();
    DataConfig::CocoPanoptic {
        annotations,
        images: root.join("images"),
        masks: root.join("masks"),
        repeat: 1.0,
    }
}

/// A semantic set of two photos: columns are 0, 1, 2, ignored, in turn.
pub fn semantic(root: &Path) -> DataConfig {
    photos(root, &["a.png", "b.png"]);
    for name in ["a", "b"] {
        grey(&root.join(format!("masks/{name}.png")), 48, 32, |x, _| [0, 1, 2, 99][x as usize % 4]);
    }
    let classes = root.join("classes.json");
    let text = r#"{"ignore_index": 99, "classes": [{"index": 0, "name": "sky"}, {"index": 1, "name": "tree"},
                   {"index": 2, "name": "road"}]}"#;
    std::fs::write(&classes, text).unwrap();
    DataConfig::Semantic {
        images: root.join("images"),
        masks: root.join("masks"),
        classes,
        field: "classes".into(),
        list: None,
        repeat: 1.0,
    }
}

/// Two photos, `a.png` (7) and `b.png` (8), with a square dog each.
pub fn two_photos(root: &Path) -> DataConfig {
    photos(root, &["a.png", "b.png"]);
    let file = json!({
        "images": [{"id": 7, "file_name": "a.png", "width": 48, "height": 32},
                   {"id": 8, "file_name": "b.png", "width": 48, "height": 32}],
        "annotations": [square(1, 7, 9), square(2, 8, 9)],
        "categories": [{"id": 9, "name": "dog"}],
    });
    coco_text(root, &file.to_string())
}
