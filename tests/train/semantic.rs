//! Semantic models from end to end: each generator learns, what is dropped is dropped again when a run goes on,
//! and what cannot be trained is named.

use crate::{SIDE, Scene, stderr};
use image::{Rgb, RgbImage};
use knet::Engine;
use knet::engine::WeightSource;
use knet::train::run::log::read;
use std::path::PathBuf;
use testkit::data::grey;

/// Sky over ground, a ball on it, and a border without a label.
fn class(image: u32, x: u32, y: u32) -> u8 {
    let (dx, dy) = (x.abs_diff(20 + 12 * image), y.abs_diff(44));
    match (x, y) {
        (_, 0..2) => 255,
        _ if dx * dx + dy * dy < 100 => 2,
        (_, 0..32) => 0,
        _ => 1,
    }
}

/// Two photos with masks, and the configuration of a small model.
pub fn scene(generator: &str, stages: usize) -> Scene {
    let scene = Scene { folder: tempfile::tempdir().unwrap() };
    let (images, masks) = (scene.path("images"), scene.path("masks"));
    std::fs::create_dir(&images).unwrap();
    for image in 0..2 {
        let colour = |x, y| match class(image, x, y) {
            2 => Rgb([220, 40 + (x % 8) as u8, 30]),
            1 => Rgb([60, 150 + (x % 16) as u8, 40]),
            _ => Rgb([90, 130, 220 + (y % 16) as u8]),
        };
        RgbImage::from_fn(SIDE, SIDE, colour).save(images.join(format!("{image}.png"))).unwrap();
        grey(&masks.join(format!("{image}.png")), SIDE, SIDE, |x, y| class(image, x, y));
    }
    let classes = r#"{"classes": [{"index": 0, "name": "sky"}, {"index": 1, "name": "ground"}, {"index": 2, "name": "ball"}]}"#;
    std::fs::write(scene.path("classes.json"), classes).unwrap();
    let set = |path: PathBuf| format!("images = {images:?}\nmasks = {masks:?}\nclasses = {path:?}");
    let set = set(scene.path("classes.json"));
    let text = format!(
        r#"
batch_norm = "train"
[model]
name = "tiny"
base = "knet_s3_upernet_r50"
backbone = {{ type = "efficientnet_lite", variant = 0 }}
decode_head = {{ type = "{generator}", updator_channels = 16, auxiliary_channels = 8 }}
channels = 32
heads = 4
feedforward_channels = 32
stages = {stages}
size = [{SIDE}, {SIDE}]
[data]
batch = 2
[[data.train]]
format = "semantic"
{set}
[[data.val]]
format = "semantic"
{set}
[augment]
size = [{SIDE}, {SIDE}]
[optimizer]
lr = 3e-3
groups = []
[schedule]
iterations = 6
warmup = 2
[run]
save_iterations = 0
log_iterations = 1
overlay_minutes = 0
"#
    );
    std::fs::write(scene.config(), text).unwrap();
    scene
}

#[test]
fn learns_two_photos_by_heart() {
    let scene = scene("uper", 2);
    let length = ["--overfit", "2", "--set", "schedule.iterations=120", "--set", "run.overlay_minutes=60"];
    scene.train("run", &length);
    let losses = scene.losses("run");
    let (first, last) = (losses[0].1, losses[losses.len() - 1].1);
    assert!(last < 0.3 * first, "loss {first} -> {last}");
    let lines = read(&scene.path("run/log.jsonl")).unwrap();
    let validated = lines.iter().rfind(|line| line["kind"] == "val").expect("a validation at the end");
    assert!(validated["judged"].as_f64().unwrap() > 0.8, "{validated}");
    let terms = lines.iter().find(|line| line["kind"] == "train").unwrap()["terms"].as_object().unwrap();
    let names: Vec<&str> = terms.keys().map(String::as_str).collect();
    assert_eq!(names, ["decode.loss_ce.s0", "decode.loss_ce.s1", "decode.loss_ce.s2", "aux.loss_ce"]);

    let weights = WeightSource::File(scene.path("run/last.safetensors"));
    let mut engine = Engine::builder().weights(weights).threads(2).build().unwrap();
    let photo = image::open(scene.path("images/1.png")).unwrap().into_rgb8();
    let found = engine.segment(&photo).unwrap();
    let map = found.semantic().unwrap();
    let pixels = (2..SIDE).flat_map(|y| (0..SIDE).map(move |x| (x, y)));
    let wrong =
        pixels.filter(|&(x, y)| map.map[(y * SIDE + x) as usize] != u16::from(class(1, x, y))).count();
    assert!(wrong < (SIDE * SIDE / 20) as usize, "{wrong} pixels are of another class");
}

#[test]
fn every_generator_learns() {
    for (generator, stages, loss) in
        [("fcn", 0, "decode.loss_ce"), ("psp", 1, "decode.loss_ce.s1"), ("aspp", 0, "decode.loss_ce")]
    {
        let scene = scene(generator, stages);
        scene.train("run", &["--overfit", "2", "--set", "schedule.iterations=12"]);
        let lines = read(&scene.path("run/log.jsonl")).unwrap();
        let terms: Vec<f64> = lines.iter().filter_map(|line| line["terms"][loss].as_f64()).collect();
        assert_eq!(terms.len(), 12, "{generator}");
        assert!(terms[11] < terms[0], "{generator}: {terms:?}");
    }
}

#[test]
fn what_is_dropped_is_dropped_again_when_a_run_goes_on() {
    let scene = scene("fcn", 1);
    // The backbone's branches, too: the smallest Swin.
    let settings = [
        "--set",
        "model.backbone={type=\"swin\", channels=8, depths=[1,1,1,1], heads=[1,1,2,2], window=4}",
        "--set",
        "dropout={channel=0.5, path=0.5}",
        "--set",
        "data.accumulate=2",
        "--set",
        "schedule.warmup=0",
        "--set",
        "schedule.decay={policy=\"constant\"}",
    ];
    scene.train("whole", &settings);
    scene.train("halves", &[&settings[..], &["--set", "schedule.iterations=3"]].concat());
    scene.train("halves", &[&settings[..], &["--resume"]].concat());
    let [whole, halves] = ["whole", "halves"].map(|out| scene.state(out));
    let names: Vec<&str> = whole.names().collect();
    assert!(names.contains(&"first.decode_head.kernel_update_head.0.fc_mask.weight"), "{names:?}");
    for name in names {
        assert_eq!(whole.bytes(name), halves.bytes(name), "{name}");
    }
    // Another thread count changes nothing; no dropping, or another seed of it, does.
    scene.train("one", &[&settings[..], &["--threads", "1"]].concat());
    assert_eq!(scene.losses("one"), scene.losses("whole"));
    scene.train("none", &[&settings[..], &["--set", "dropout={channel=0, path=0}"]].concat());
    assert_ne!(scene.losses("none"), scene.losses("whole"));
}

#[test]
fn what_cannot_be_trained_is_named() {
    let scene = scene("psp", 1);
    for (setting, code, parts) in [
        (
            "data.batch=1",
            2,
            &["batch norm `decode_head.kernel_generate_head.psp_modules.0.1.bn`", "data.batch of 2"][..],
        ),
        ("dropout.channel=1", 2, &["dropout: rates must be at least 0 and below 1"]),
        ("dropout.chanel=0.1", 2, &["unknown field `chanel`"]),
        ("loss.auxiliary=-1", 2, &["loss: weights must not be negative"]),
        ("model.proposals=4", 2, &["0 thing classes and 4 proposals"]),
        ("model.decode_head={type=\"segformer\"}", 2, &["unknown variant `segformer`"]),
    ] {
        let output = scene.run("run", &["--set", setting]);
        assert_eq!(output.status.code(), Some(code), "{setting}: {}", stderr(&output));
        for part in parts {
            assert!(stderr(&output).contains(part), "{setting}: {}", stderr(&output));
        }
        assert!(!scene.path("run/last.state").exists());
    }
    // With its statistics as they are, a single image will do.
    scene.train(
        "frozen",
        &["--set", "data.batch=1", "--set", "batch_norm=frozen", "--set", "schedule.iterations=1"],
    );
}
