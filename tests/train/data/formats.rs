//! Sound data sets of each format.

use std::path::Path;

use knet::image::bitmask::BitMask;
use knet::train::data::{DataConfig, Dataset, Mix, Reading, Sample, labels};
use serde_json::{Value, json};

use testkit::{data, shared};

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

/// A polygon segmentation of a 48 x 32 image and the RLE that pycocotools 2.0 makes of it (`frPyObjects`,
/// `merge`).
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
    let set = Dataset::open(&file, &Reading::default()).unwrap();
    let sample = set.load(0).unwrap();
    assert_eq!((sample.id, sample.objects.len()), (7, POLYGONS.len()));
    for (i, (name, _, wanted)) in POLYGONS.iter().enumerate() {
        assert_eq!(rle(&sample, i), *wanted, "{name}");
    }
    let warnings: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    let wanted = [
        "masks partly outside their image were clipped (1 times; first: annotation 3 (image 7))",
        "classes without an object: dog",
    ];
    assert_eq!(warnings, wanted);
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
    let set = Dataset::open(&data::coco_file(folder.path(), &annotations), &Reading::default()).unwrap();
    let names: Vec<&str> = set.classes().iter().map(|c| c.name.as_ref()).collect();
    assert_eq!(names, ["cat", "dog"], "by ascending id");
    let sample = set.load(0).unwrap();
    assert_eq!((sample.objects.len(), set.objects(0), set.countable(0)), (2, 2, 2), "the crowd is dropped");
    let warnings: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    assert!(
        warnings[0].starts_with("crowds are not learnt") && warnings[0].contains("annotation 3"),
        "{warnings:?}"
    );
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
        let set = Dataset::open(&file, &Reading::default()).unwrap();
        let found: Vec<usize> = set.load(0).unwrap().objects.iter().map(|o| o.class).collect();
        assert_eq!(found, classes, "{wanted:?}");
    }
    let DataConfig::CocoInstance { classes: names, .. } = &mut file else { unreachable!() };
    *names = Some(vec!["horse".into()]);
    let error = Dataset::open(&file, &Reading::default()).unwrap_err().to_string();
    assert!(error.contains("no category `horse` (there are: cat, dog)"), "{error}");
}

#[test]
fn panoptic_things_come_first_and_crowds_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = data::panoptic(folder.path());
    let set = Dataset::open(&file, &Reading::default()).unwrap();
    let names: Vec<&str> = set.classes().iter().map(|c| c.name.as_ref()).collect();
    assert_eq!((names, set.things()), (vec!["cat", "dog", "sky"], 2));
    let warnings: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    assert!(warnings[0].starts_with("crowds") && warnings[0].contains("segment 5"), "{warnings:?}");
    // Sky has 480 of 1536 pixels, the dog 100.
    assert_eq!(warnings[1..], ["classes without a pixel: cat", "62.2 % of the pixels are void or of crowds"]);
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
    let set = Dataset::open(&file, &Reading::default()).unwrap();
    assert_eq!((set.things(), set.len(), set.classes()[2].name.as_ref()), (0, 2, "road"));
    let first = set.load(0).unwrap().semantic.unwrap();
    assert_eq!([0, 1, 2, 3].map(|x| first.get_pixel(x, 0)[0]), [0, 1, 2, 255]);
    let second = set.load(1).unwrap().semantic.unwrap();
    assert_eq!([0, 1, 2, 3, 4, 5].map(|x| second.get_pixel(x, 9)[0]), [0, 1, 2, 0, 0, 1]);
}

/// A PNG of 8 x 2 samples: `rows` as the encoder takes them.
fn png_of(path: &Path, color: png::ColorType, depth: png::BitDepth, rows: &[u8]) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 8, 2);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette((0..=255u8).flat_map(|v| [v ^ 0x5a, v, 9]).collect::<Vec<u8>>());
    }
    encoder.write_header().unwrap().write_image_data(rows).unwrap();
}

#[test]
fn segment_ids_are_read_at_full_depth() {
    use png::{BitDepth, ColorType};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ids.png");
    let wanted: Vec<u32> = (0..16).map(|v| v * 17).collect();
    for color in [ColorType::Grayscale, ColorType::Indexed] {
        png_of(&path, color, BitDepth::Eight, &wanted.iter().map(|&v| v as u8).collect::<Vec<u8>>());
        assert_eq!(labels::ids(&path).unwrap().values, wanted, "{color:?}");
    }
    let wide: Vec<u32> = (0..16).map(|v| 26_000 + v).collect();
    let rows: Vec<u8> = wide.iter().flat_map(|&v| (v as u16).to_be_bytes()).collect();
    png_of(&path, ColorType::Grayscale, BitDepth::Sixteen, &rows);
    assert_eq!(labels::ids(&path).unwrap().values, wide);
    let colours: Vec<u32> = (0..16).map(|v| 70_000 + 300 * v).collect();
    let rows: Vec<u8> = colours.iter().flat_map(|v| v.to_le_bytes()[..3].to_vec()).collect();
    png_of(&path, ColorType::Rgb, BitDepth::Eight, &rows);
    assert_eq!(labels::ids(&path).unwrap().values, colours);
    png_of(&path, ColorType::Rgb, BitDepth::Sixteen, &[0; 16 * 6]);
    let error = labels::ids(&path).unwrap_err().to_string();
    assert!(error.contains("ids.png") && error.contains("16 bits"), "{error}");
    data::ramp(8, 2).save(folder.path().join("ids.jpg")).unwrap();
    let error = labels::ids(&folder.path().join("ids.jpg")).unwrap_err().to_string();
    assert!(error.contains("JPEG"), "{error}");
}

#[test]
fn photos_are_pictures_and_never_their_own_masks() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let DataConfig::Semantic { classes, field, list, repeat, .. } = data::semantic(root) else {
        unreachable!()
    };
    // Photos and masks of one stem in one folder, with what labelling programs and systems leave beside them.
    let both = root.join("both");
    std::fs::create_dir(&both).unwrap();
    for name in ["a", "b"] {
        data::ramp(48, 32).save(both.join(format!("{name}.jpg"))).unwrap();
        std::fs::copy(root.join(format!("masks/{name}.png")), both.join(format!("{name}.png"))).unwrap();
        std::fs::write(both.join(format!("{name}.txt")), "0 .5 .5 1 1").unwrap();
    }
    std::fs::write(both.join("._a.jpg"), "of another system").unwrap();
    let config =
        DataConfig::Semantic { images: both.clone(), masks: both.clone(), classes, field, list, repeat };
    let set = Dataset::open(&config, &Reading::default()).unwrap();
    let sample = set.load(0).unwrap();
    assert_eq!((set.len(), sample.file.as_path()), (2, both.join("a.jpg").as_path()));
    assert_eq!([0, 1, 2, 3].map(|x| sample.semantic.as_ref().unwrap().get_pixel(x, 0)[0]), [0, 1, 2, 255]);
    let passed_over = set.warnings()[0].to_string();
    assert!(
        passed_over.contains("2 files that are no pictures (first: a.txt), 1 hidden files"),
        "{passed_over}"
    );
    assert_eq!(set.warnings()[1].to_string(), "25.0 % of the pixels are ignored (value 99)");

    data::ramp(48, 32).save(both.join("a.bmp")).unwrap();
    let error = Dataset::open(&config, &Reading::default()).unwrap_err().to_string();
    for part in ["image `a`", "two photos", "a.jpg", "a.bmp"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn class_lists_with_gaps_and_ignored_classes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = data::semantic(root);
    let text = r#"{"ignore_index": 2, "classes": [{"index": 99, "name": "void"}, {"index": 1.0, "name": "tree"},
                   {"index": 0, "name": "sky"}, {"index": 2, "name": "road"}, {"index": 1000, "name": "sea"}]}"#;
    std::fs::write(root.join("classes.json"), format!("\u{feff}{text}")).unwrap();
    let set = Dataset::open(&config, &Reading::default()).unwrap();
    let classes: Vec<(u32, &str)> = set.classes().iter().map(|c| (c.id, &*c.name)).collect();
    assert_eq!(classes, [(99, "void"), (1, "tree"), (0, "sky"), (2, "road"), (1000, "sea")]);
    let map = set.load(0).unwrap().semantic.unwrap();
    assert_eq!([0, 1, 2, 3].map(|x| map.get_pixel(x, 0)[0]), [2, 1, 255, 0]);
    let warnings: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    let wanted = [
        "class `road` is ignored: its index 2 is the `ignore_index`",
        "classes without a pixel: road, sea",
        "25.0 % of the pixels are ignored (value 2)",
    ];
    assert_eq!(warnings, wanted);
}

#[test]
fn what_other_tools_read_without_harm_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    data::photos(root, &["a.png"]);
    let text = r#"{"images": [{"id": "frankfurt_0", "file_name": "a.png", "width": 48.0, "height": 32}],
        "annotations": [
          {"id": 1.0, "image_id": "frankfurt_0", "category_id": 3.0, "iscrowd": false, "bbox": [], "area": NaN,
           "segmentation": [[8, 8, 16, 8, 16, 16, 8, 16], [1, 1, 2, 2]]},
          {"id": 1, "image_id": "frankfurt_0", "category_id": 9, "iscrowd": 0.0, "segmentation": [[1, 1, 2, 2]]}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]}"#;
    let config = data::coco_text(root, &format!("\u{feff}{text}"));
    let set = Dataset::open(&config, &Reading::default()).unwrap();
    let sample = set.load(0).unwrap();
    assert_eq!((sample.objects.len(), sample.objects[0].mask.area()), (1, 64));
    let warnings: Vec<String> = set.warnings().iter().map(|w| w.to_string()).collect();
    let first = "annotation 1 (image frankfurt_0)";
    let wanted = [
        format!("polygons of one or two points were dropped (strict refuses them) (2 times; first: {first})"),
        format!("ids of annotations occur twice, and are not used (1 times; first: {first})"),
        format!("annotations that cover no pixel were dropped (1 times; first: {first})"),
        "classes without an object: dog".to_string(),
    ];
    assert_eq!(warnings, wanted);
    let strict = Reading { strict: true, ..Reading::default() };
    let error = Dataset::open(&config, &strict).unwrap_err().to_string();
    assert!(error.contains(&format!("{first}: `segmentation`: polygon 1 has 4 coordinates")), "{error}");
}

#[test]
fn the_small_real_sets_open_without_a_fault() {
    let test = "the_small_real_sets_open_without_a_fault";
    if let Some(root) = shared::data(test, "coco-open") {
        let set = Dataset::open(&coco(&root, "train", None), &Reading::default()).unwrap();
        let objects: usize = (0..set.len()).map(|i| set.objects(i)).sum();
        assert_eq!((set.len(), set.classes().len(), objects), (124, 80, 1022));
        let told = |w: &knet::train::data::Warning| {
            w.what.starts_with("crowds") || w.what.starts_with("classes without")
        };
        assert!(set.warnings().iter().all(told), "{:?}", set.warnings());
        let people = Dataset::open(&coco(&root, "train", Some(&["person"])), &Reading::default()).unwrap();
        let with = (0..people.len()).filter(|&i| people.objects(i) > 0).count();
        assert_eq!((people.len(), with), (124, 66), "58 of them are negatives");
        let panoptic = DataConfig::CocoPanoptic {
            annotations: root.join("annotations/panoptic_train.json"),
            images: root.join("images"),
            masks: root.join("panoptic_train"),
            repeat: 1.0,
        };
        let set = Dataset::open(&panoptic, &Reading::default()).unwrap();
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
    if let Some(root) = shared::data(test, "dsb2018-nuclei") {
        let set = Dataset::open(&coco(&root, "train", None), &Reading::default()).unwrap();
        let objects: Vec<usize> = (0..set.len()).map(|i| set.objects(i)).collect();
        assert_eq!((set.len(), objects.iter().sum()), (300, 12463));
    }
    if let Some(root) = shared::data(test, "ccp-clothing") {
        let file = DataConfig::Semantic {
            images: root.join("images"),
            masks: root.join("masks10"),
            classes: root.join("classes.json"),
            field: "classes10".into(),
            list: Some(root.join("train.txt")),
            repeat: 1.0,
        };
        let set = Dataset::open(&file, &Reading::default()).unwrap();
        assert_eq!((set.len(), set.classes().len()), (260, 10));
    }
    if let (Some(a), Some(b)) = (shared::data(test, "coco-open"), shared::data(test, "coco-person-open")) {
        let person = Some(&["person"][..]);
        let mix =
            Mix::open(&[coco(&a, "train", person), coco(&b, "train", person)], &Reading::default()).unwrap();
        assert_eq!((mix.len(), mix.classes().len()), (325, 1));
        let error =
            Mix::open(&[coco(&a, "train", None), coco(&b, "train", None)], &Reading::default()).unwrap_err();
        assert!(error.to_string().contains("are not those of"), "{error}");
    }
}
