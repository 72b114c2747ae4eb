//! What is done otherwise for sets of many images and objects, and has to come to the same.

use std::fs;

use knet::ErrorKind;
use knet::train::data::{DataConfig, Dataset, Reading};
use serde_json::{Value, json};

use testkit::data;

/// More annotations than are parsed at a time.
const MANY: usize = 20_000;

#[test]
fn one_bad_record_among_many_is_named() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let mut annotations: Vec<Value> = (0..MANY).map(|i| data::square(i, 7, 9)).collect();
    // The second of them alone would do; the first is the one that is told, whichever is parsed first.
    annotations[MANY - 1]["category_id"] = 10.into();
    annotations[MANY - 2000]["segmentation"] = json!([[1, 1, 5]]);
    let config = data::coco_file(folder.path(), &annotations);
    let error = Dataset::open(&config, &Reading::default()).unwrap_err().to_string();
    let name = format!("annotation {} (image 7): `segmentation`: polygon 0 has 3 coordinates", MANY - 2000);
    assert!(error.contains(&name), "{error}");

    annotations.truncate(MANY - 2000);
    annotations[MANY - 3000]["id"] = 5.into();
    let set = Dataset::open(&data::coco_file(folder.path(), &annotations), &Reading::default()).unwrap();
    assert_eq!(set.objects(0), MANY - 2000);
    let told = set.warnings()[0].to_string();
    assert_eq!(
        told,
        "ids of annotations occur twice, and are not used (1 times; first: annotation 5 (image 7))"
    );
}

#[test]
fn coordinates_of_any_precision_give_the_pixels_of_their_text() {
    // Two photos' worth of the same outlines: the coordinates are kept in different ways, the pixels are those of
    // the reference either way.
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let near = [4.3, 3.7, 40.1, 6.5, 44.9, 28.3, 20.5, 30.1, 2.2, 17.7];
    let exact: Vec<f64> = near.iter().map(|v| v + 1.0 / 3.0).collect();
    for polygon in [near.to_vec(), exact] {
        let object = json!({"id": 1, "image_id": 7, "category_id": 9, "segmentation": [polygon]});
        let set = Dataset::open(&data::coco_file(folder.path(), &[object]), &Reading::default()).unwrap();
        let mask = &set.load(0).unwrap().objects[0].mask;
        let wanted = hotcoco::mask::fr_poly(&polygon, 32, 48).unwrap();
        let wanted = hotcoco::mask::decode(&wanted);
        for x in 0..48 {
            for y in 0..32 {
                assert_eq!(mask.contains(x, y), wanted[x * 32 + y] != 0, "{x}, {y} of {polygon:?}");
            }
        }
    }
}

/// Two photos, and how a set of more than one is read.
fn two(root: &std::path::Path) -> (DataConfig, Reading) {
    (data::two_photos(root), Reading { verify_whole: 1, ..Reading::default() })
}

#[test]
fn of_large_sets_sizes_and_ends_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (config, reading) = two(root);
    let set = Dataset::open(&config, &reading).unwrap();
    let told = set.warnings().last().unwrap().to_string();
    assert!(
        told.contains("sizes and ends of the files of 2 images") && told.contains("more than 1"),
        "{told}"
    );
    assert!(Dataset::open(&config, &Reading::default()).unwrap().warnings().is_empty());

    let photo = root.join("images/b.png");
    let whole = fs::read(&photo).unwrap();
    let refused = |bytes: &[u8], parts: &[&str]| {
        fs::write(&photo, bytes).unwrap();
        let error = Dataset::open(&config, &reading).unwrap_err();
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        error.kind()
    };
    assert_eq!(refused(&whole[..whole.len() / 2], &["images/b.png", "damaged"]), ErrorKind::Image);
    assert_eq!(refused(b"no picture", &["images/b.png"]), ErrorKind::Image);
    let mut other = Vec::new();
    data::ramp(47, 32).write_to(&mut std::io::Cursor::new(&mut other), image::ImageFormat::Jpeg).unwrap();
    assert_eq!(refused(&other, &["image 8", "48 x 32", "47 x 32"]), ErrorKind::Data);

    // Damage in between is found when the photo is loaded, or at once if damaged photos are to be left out.
    let mut middle = whole.clone();
    let half = whole.len() / 2;
    middle[half..half + 8].fill(0x5a);
    fs::write(&photo, &middle).unwrap();
    let set = Dataset::open(&config, &reading).unwrap();
    assert!(set.load(1).unwrap_err().to_string().contains("b.png"));
    let skipped = Dataset::open(&config, &Reading { skip_damaged: true, ..reading }).unwrap();
    assert_eq!((skipped.len(), skipped.load(0).unwrap().id), (1, 7));
}

#[test]
fn label_images_of_large_sets_are_as_large_as_their_photos() {
    let reading = Reading { verify_whole: 0, ..Reading::default() };
    for mask in ["masks/a.png", "masks/b.png"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let config = if mask == "masks/a.png" { data::panoptic(root).0 } else { data::semantic(root) };
        let set = Dataset::open(&config, &reading).unwrap();
        assert!(
            set.warnings().iter().any(|w| w.to_string().contains("sizes and ends")),
            "{:?}",
            set.warnings()
        );
        data::grey(&root.join(mask), 47, 32, |_, _| 0);
        let error = Dataset::open(&config, &reading).unwrap_err().to_string();
        assert!(error.contains(mask) && error.contains("47 x 32"), "{error}");
        let mut jpeg = Vec::new();
        data::ramp(48, 32).write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
        fs::write(root.join(mask), jpeg).unwrap();
        let error = Dataset::open(&config, &reading).unwrap_err().to_string();
        assert!(error.contains(mask) && error.contains("JPEG"), "{error}");
    }
}
