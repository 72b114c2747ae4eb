//! What `knet` does with semantic models, and the list of all models.

use crate::{folder_with_photo, knet, listing, read_json, succeed};
use knet::model::config::MODEL_NAMES;
use serde_json::Value;

const MODEL: [&str; 4] = ["--model", "upernet_r50", "--size", "64,96"];

#[test]
fn semantic_maps() {
    let folder = folder_with_photo();
    let path = folder.path();
    let segment = |more: &[&'static str]| [&["segment", "a.png", "--out", "out"][..], &MODEL, more].concat();
    let outcome = succeed(path, &segment(&[]));
    assert!(outcome.stdout.contains(" classes in "), "{}", outcome.stdout);
    assert_eq!(listing(&path.join("out")), ["a.json", "a.overlay.png", "a.semantic.png"]);
    let report = read_json(&path.join("out/a.json"));
    assert_eq!((&report["model"], &report["image"]["width"]), (&"upernet_r50".into(), &192.into()));
    let classes = report["classes"].as_array().unwrap();
    let field = |class: &Value, name: &str| class[name].as_u64().unwrap() as usize;
    assert_eq!(classes.iter().map(|class| field(class, "area")).sum::<usize>(), 128 * 192);
    let shares: f64 = classes.iter().map(|class| class["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    // The indices of the PNG, not its colours, are the classes.
    let file = std::io::BufReader::new(std::fs::File::open(path.join("out/a.semantic.png")).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    assert_eq!(reader.info().color_type, png::ColorType::Indexed);
    let mut indices = vec![0; 128 * 192];
    reader.next_frame(&mut indices).unwrap();
    for class in classes {
        let index = field(class, "index");
        let area = indices.iter().filter(|&&value| usize::from(value) == index).count();
        assert_eq!(area, field(class, "area"), "{class}");
        assert_ne!(class["category_name"].as_str(), Some(&*format!("class {index}")), "ADE20K has names");
    }
    // The legend lies beside the photo.
    let overlay = image::open(path.join("out/a.overlay.png")).unwrap();
    assert!(overlay.width() > 192 && overlay.height() == 128);
    succeed(path, &segment(&["--no-labels", "--format", "overlay,colour"]));
    let overlay = image::open(path.join("out/a.overlay.png")).unwrap();
    assert_eq!((overlay.width(), overlay.height()), (192, 128));
    assert!(path.join("out/a.semantic.colour.png").is_file());

    for (task, said) in [("instance", "gives no instances"), ("panoptic", "gives no panoptic map")] {
        let outcome = knet(path, &segment(&["--task", task]));
        assert_eq!(outcome.code, 2);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    }
    let outcome = knet(path, &segment(&["--min-area", "9"]));
    assert!(outcome.code == 2 && outcome.stderr.contains("of instances"), "{}", outcome.stderr);
}

#[test]
fn models_are_listed_with_what_they_cost() {
    let folder = folder_with_photo();
    let list: Value = serde_json::from_str(&succeed(folder.path(), &["models", "--json"]).stdout).unwrap();
    let list = list.as_array().unwrap();
    assert_eq!(list.iter().map(|line| line["model"].as_str().unwrap()).collect::<Vec<_>>(), MODEL_NAMES);
    let of = |name: &str| list.iter().find(|line| line["model"] == name).unwrap();
    let first = of("knet_s3_r50_fpn");
    assert_eq!((&first["task"], &first["input"]), (&"instance".into(), &serde_json::json!([800, 1344])));
    let semantic = of("knet_s3_fcn_r50-d8");
    assert_eq!(
        (&semantic["task"], &semantic["input"]),
        (&"semantic".into(), &serde_json::json!([512, 2048]))
    );
    for line in list {
        let number = |field: &str| line[field].as_u64().unwrap();
        assert!(number("parameters") > 1_000_000 && number("flops") > 1_000_000_000, "{line}");
        assert!(number("cpu_bytes") > 1 << 20, "{line}");
    }
    let table = succeed(folder.path(), &["models"]).stdout;
    assert_eq!(table.lines().count(), MODEL_NAMES.len() + 1);
}
