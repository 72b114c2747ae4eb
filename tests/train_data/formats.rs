//! Sound data sets of each format.

use std::path::Path;

use knet::image::bitmask::BitMask;
use knet::train::data::{DataConfig, Dataset, Mix, Sample};
use serde_json::{Value, json};

use crate::data;

fn coco(root: &Path, split: &str, classes: Option<&[&str]>) -> DataConfig {
    DataConfig::CocoInstance {
        annotations: root.join(format!("annotations/instances_{split}.json")),
        images: root.join("images"),
        classes: classes.map(|names| names.iter().map(|n| n.to_string()).collect()),
        repeat: 1.0,
    }
}

fn rle(sample: &Sample, object: usize) -> String {
    let (width, height) = sample.image.dimensions();
    let mask = &sample.objects[object].mask;
    BitMask::from_fn(height as usize, width as usize, |y, x| mask.contains(x, y)).to_rle()
}

/// A polygon segmentation of a 48 x 32 image and the RLE that pycocotools 2.0 makes of it (`frPyObjects`, `merge`).
const POLYGONS: [(&str, &str, &str); 7] = [
    (
        "triangle",
        "[[5.2, 3.1, 40.7, 8.9, 20.3, 28.4]]",
        "S51o0101N2N1O2N2N101N2N1O2N1O2O1N1OO1O1O1O1O2O0O1O1O1O1O2N1O1O1O1O1O2N1Oh7",
    ),
    ("whole pixels", "[[4, 4, 20, 4, 20, 12, 4, 12]]", "T48h000000000000000000000000000000lk0"),
    (
        "two parts that overlap",
        "[[2, 2, 20, 3, 18, 18, 3, 16], [15.5, 10.2, 44.1, 12.7, 30.9, 30.0]]",
        "R27i07I0000001O000001O000001O000000L4I_O0h01O2N1O1O2N1O1O1O2N100O00O1O1N2O1O1N2O1O1O2M2O1Od3",
    ),
    (
        "partly outside",
        "[[-10.5, -4, 30.2, 10.1, 60.7, 40.3, 12, 36.6]]",
        "0`0`02O0O2N2O1N2N101N2N01O00001O00001O00001O001O00001O00001O00001O1O1O1O1O1O1O1O1O1O1O1O1O1O1O1O1O",
    ),
    (
        "self-crossing",
        "[[5, 5, 40, 25, 40, 5, 5, 25]]",
        "U5d0=N101N2N101N101N101N2N101N101N10P10PO0O2O0O2O0O2N2O0O2O0O2O0O2N2O0O2j7",
    ),
    (
        "repeated points",
        "[[10, 10, 10, 10, 30, 10.4, 30, 10.4, 22.2, 27.9, 10, 10]]",
        "Z:1o01O2N1O2N1O1O2N1O2N1O2N00N2N2M3N2N2N2Mia0",
    ),
    ("thin diagonal", "[[1, 1, 46.2, 30.1, 46.6, 30.9]]", "T61Q3000U80kG000000000oN0PO0P10PO0R2"),
];

#[test]
fn polygons_are_rasterised_as_pycocotools_does() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let annotations: Vec<Value> = POLYGONS
        .iter()
        .enumerate()
        .map(|(i, (_, polygons, _))| {
            let polygons: Value = serde_json::from_str(polygons).unwrap();
            json!({"id": i, "image_id": 7, "category_id": 3, "segmentation": polygons})
        })
        .collect();
    let file = data::coco_file(folder.path(), &annotations);
    let set = Dataset::open(&file, true).unwrap();
    let sample = set.load(0).unwrap();
    assert_eq!((sample.id, sample.objects.len()), (7, POLYGONS.len()));
    for (i, (name, _, wanted)) in POLYGONS.iter().enumerate() {
        assert_eq!(rle(&sample, i), *wanted, "{name}");
    }
    let warnings = set.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].count == 1 && warnings[0].first == "annotation 3 (image 7)", "{warnings:?}");
}

#[test]
fn run_lengths_of_both_kinds_and_crowds() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let rect = BitMask::from_fn(32, 48, |y, x| (5..9).contains(&y) && (10..30).contains(&x));
    let runs = knet::image::rle::run_lengths(&rect);
    let object = |id: u64, crowd: u8, counts: Value| {
        json!({"id": id, "image_id": 7, "category_id": 9, "iscrowd": crowd,
               "segmentation": {"size": [32, 48], "counts": counts}})
    };
    let annotations =
        [object(1, 0, rect.to_rle().into()), object(2, 0, runs.clone().into()), object(3, 1, runs.into())];
    let set = Dataset::open(&data::coco_file(folder.path(), &annotations), true).unwrap();
    let names: Vec<&str> = set.classes().iter().map(|c| c.name.as_ref()).collect();
    assert_eq!(names, ["cat", "dog"], "by ascending id");
    let sample = set.load(0).unwrap();
    assert_eq!(sample.objects.len(), 2, "the crowd is dropped");
    assert_eq!(sample.objects[0], sample.objects[1]);
    assert_eq!((sample.objects[0].class, rle(&sample, 0)), (1, rect.to_rle()));
}

#[test]
fn wanted_classes_are_taken_in_the_order_given() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let annotations: Vec<Value> = [3, 9, 9].iter().enumerate().map(|(i, &c)| data::square(i, 7, c)).collect();
    let mut file = data::coco_file(folder.path(), &annotations);
    for (wanted, classes) in [(vec!["dog"], vec![0, 0]), (vec!["dog", "cat"], vec![1, 0, 0])] {
        let DataConfig::CocoInstance { classes: names, .. } = &mut file else { unreachable!() };
        *names = Some(wanted.iter().map(|n| n.to_string()).collect());
        let set = Dataset::open(&file, true).unwrap();
        let found: Vec<usize> = set.load(0).unwrap().objects.iter().map(|o| o.class).collect();
        assert_eq!(found, classes, "{wanted:?}");
    }
    let DataConfig::CocoInstance { classes: names, .. } = &mut file else { unreachable!() };
    *names = Some(vec!["horse".into()]);
    let error = Dataset::open(&file, true).unwrap_err().to_string();
    assert!(error.contains("no category `horse` (there are: cat, dog)"), "{error}");
}

#[test]
fn panoptic_things_come_first_and_crowds_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = data::panoptic(folder.path());
    let set = Dataset::open(&file, true).unwrap();
    let names: Vec<&str> = set.classes().iter().map(|c| c.name.as_ref()).collect();
    assert_eq!((names, set.things()), (vec!["cat", "dog", "sky"], 2));
    let sample = set.load(0).unwrap();
    assert_eq!(sample.objects.len(), 1);
    let dog = &sample.objects[0];
    assert_eq!((dog.class, dog.mask.area(), dog.mask.x, dog.mask.y), (1, 100, 4, 10));
    let map = sample.semantic.unwrap();
    assert_eq!([(0, 0), (5, 12), (40, 20), (20, 20)].map(|(x, y)| map.get_pixel(x, y)[0]), [2, 1, 255, 255]);
}

#[test]
fn semantic_maps_keep_indices_of_grey_and_palette_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = data::semantic(folder.path());
    // The second mask as a palette file of 2 bits a pixel.
    let out = std::fs::File::create(folder.path().join("masks/b.png")).unwrap();
    let mut encoder = png::Encoder::new(out, 48, 32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Two);
    encoder.set_palette(vec![9; 12]);
    encoder.write_header().unwrap().write_image_data(&[0b0001_1000; 12 * 32]).unwrap();
    let set = Dataset::open(&file, true).unwrap();
    assert_eq!((set.things(), set.len(), set.classes()[2].name.as_ref()), (0, 2, "road"));
    let first = set.load(0).unwrap().semantic.unwrap();
    assert_eq!([0, 1, 2, 3].map(|x| first.get_pixel(x, 0)[0]), [0, 1, 2, 255]);
    let second = set.load(1).unwrap().semantic.unwrap();
    assert_eq!([0, 1, 2, 3, 4, 5].map(|x| second.get_pixel(x, 9)[0]), [0, 1, 2, 0, 0, 1]);
}

#[test]
fn the_small_real_sets_open_without_a_fault() {
    let test = "the_small_real_sets_open_without_a_fault";
    if let Some(root) = data::shared(test, "coco-open") {
        let set = Dataset::open(&coco(&root, "train", None), true).unwrap();
        let objects: usize = (0..set.len()).map(|i| set.objects(i)).sum();
        assert_eq!((set.len(), set.classes().len(), objects, set.warnings().len()), (124, 80, 1022, 0));
        let people = Dataset::open(&coco(&root, "train", Some(&["person"])), true).unwrap();
        let with = (0..people.len()).filter(|&i| people.objects(i) > 0).count();
        assert_eq!((people.len(), with), (124, 66), "58 of them are negatives");
        let panoptic = DataConfig::CocoPanoptic {
            annotations: root.join("annotations/panoptic_train.json"),
            images: root.join("images"),
            masks: root.join("panoptic_train"),
            repeat: 1.0,
        };
        let set = Dataset::open(&panoptic, true).unwrap();
        assert_eq!((set.len(), set.things(), set.classes().len()), (33, 80, 133));
        // Each pixel's class agrees with the semantic masks that came with the set, unless a crowd covers it.
        for i in 0..set.len() {
            let sample = set.load(i).unwrap();
            let png = root.join(format!("semantic_train/{:012}.png", sample.id));
            let wanted = image::open(&png).unwrap().to_luma8();
            let map = sample.semantic.unwrap();
            let differ = map.pixels().zip(wanted.pixels()).filter(|(a, b)| a != b && a[0] != 255).count();
            assert_eq!(differ, 0, "{}", png.display());
        }
    }
    if let Some(root) = data::shared(test, "dsb2018-nuclei") {
        let set = Dataset::open(&coco(&root, "train", None), true).unwrap();
        let objects: Vec<usize> = (0..set.len()).map(|i| set.objects(i)).collect();
        assert_eq!((set.len(), objects.iter().sum()), (300, 12463));
    }
    if let Some(root) = data::shared(test, "ccp-clothing") {
        let file = DataConfig::Semantic {
            images: root.join("images"),
            masks: root.join("masks10"),
            classes: root.join("classes.json"),
            field: "classes10".into(),
            list: Some(root.join("train.txt")),
            repeat: 1.0,
        };
        let set = Dataset::open(&file, true).unwrap();
        assert_eq!((set.len(), set.classes().len()), (260, 10));
    }
    if let (Some(a), Some(b)) = (data::shared(test, "coco-open"), data::shared(test, "coco-person-open")) {
        let person = Some(&["person"][..]);
        let mix = Mix::open(&[coco(&a, "train", person), coco(&b, "train", person)], true).unwrap();
        assert_eq!((mix.len(), mix.classes().len()), (325, 1));
        let error = Mix::open(&[coco(&a, "train", None), coco(&b, "train", None)], true).unwrap_err();
        assert!(error.to_string().contains("are not those of"), "{error}");
    }
}
