//! What is written where, and what never is.

use crate::{folder_with_photo, knet, listing, read_json, succeed};
use image::RgbImage;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn photos_and_files_of_others_are_never_replaced() {
    let folder = folder_with_photo();
    let path = folder.path();
    std::fs::create_dir(path.join("p")).unwrap();
    std::fs::copy(path.join("a.png"), path.join("p/a.png")).unwrap();
    let own = RgbImage::from_pixel(20, 16, image::Rgb([9, 8, 7]));
    own.save(path.join("p/a.overlay.png")).unwrap();
    let segment = ["segment", "p", "--size", "64,96", "--out", "p"];
    let outcome = knet(path, &segment);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("p/a.overlay.png: is an input"), "{}", outcome.stderr);
    let outcome = knet(path, &["segment", "p/a.png", "--size", "64,96", "--out", "p"]);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("did not make it") && outcome.stderr.contains("--overwrite"),
        "{}",
        outcome.stderr
    );
    assert_eq!(image::open(path.join("p/a.overlay.png")).unwrap().to_rgb8(), own);
    assert_eq!(listing(&path.join("p")), ["a.overlay.png", "a.png"]);
    succeed(path, &["segment", "p/a.png", "--size", "64,96", "--out", "p", "--overwrite"]);
    // Now it is ours: no photo of the next run, and replaced by it.
    for _ in 0..2 {
        let outcome = succeed(path, &segment);
        assert_eq!(outcome.stdout.lines().count(), 1, "{}", outcome.stdout);
        assert!(outcome.stderr.contains("1 results of knet segment"), "{}", outcome.stderr);
        assert_eq!(listing(&path.join("p")), ["a.json", "a.overlay.png", "a.png"]);
    }
    std::fs::write(path.join("mine.safetensors"), b"weights of my own").unwrap();
    let dump = ["dump", "--image", "a.png", "--no-resize", "--out", "mine.safetensors"];
    let outcome = knet(path, &dump);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert_eq!(std::fs::read(path.join("mine.safetensors")).unwrap(), b"weights of my own");
}

#[test]
fn instances_as_numbers() {
    let folder = folder_with_photo();
    let path = folder.path();
    let segment =
        ["segment", "a.png", "--size", "64,96", "--score", "0", "--out", "out", "--format", "png,json"];
    succeed(path, &segment);
    assert_eq!(listing(&path.join("out")), ["a.instances.png", "a.json"]);
    let numbers = image::open(path.join("out/a.instances.png")).unwrap();
    assert_eq!(numbers.color(), image::ColorType::L16);
    let numbers = numbers.to_luma16();
    let report = read_json(&path.join("out/a.json"));
    let masks: Vec<_> = report["annotations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| knet::image::rle::decode(a["segmentation"]["counts"].as_str().unwrap(), 128, 192).unwrap())
        .collect();
    assert!(masks.iter().any(|mask| mask.area() > 0));
    for (x, y, number) in numbers.enumerate_pixels() {
        let first = masks.iter().position(|mask| mask.get(y as usize, x as usize));
        assert_eq!(usize::from(number[0]), first.map_or(0, |first| first + 1), "({x}, {y})");
    }
}

#[test]
fn too_large_a_size_is_refused_with_both_numbers() {
    let folder = folder_with_photo();
    let script = format!(
        "ulimit -v 3000000; exec {:?} segment a.png --size 8192,8192 --out out",
        env!("CARGO_BIN_EXE_knet")
    );
    let output = Command::new("bash").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(11), "{stderr}");
    assert!(stderr.contains("GiB of memory") && stderr.contains("GiB are available"), "{stderr}");
}

#[test]
#[cfg(unix)]
fn an_error_keeps_its_code_where_nobody_hears_it() {
    let folder = folder_with_photo();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
    command.args(["inspect", "missing.safetensors"]).current_dir(folder.path()).stderr(full);
    assert_eq!(command.status().unwrap().code(), Some(3));
}

#[test]
#[cfg(unix)]
fn devices_and_links_are_written_into() {
    let folder = folder_with_photo();
    let path = folder.path();
    let dump = |out: &str| {
        succeed(path, &["dump", "--image", "a.png", "--no-resize", "--out", out]);
    };
    dump("taps.safetensors");
    let size = path.join("taps.safetensors").metadata().unwrap().len();
    std::os::unix::fs::symlink("/dev/null", path.join("null")).unwrap();
    dump("null");
    std::os::unix::fs::symlink("kept.safetensors", path.join("link")).unwrap();
    dump("link");
    assert!(path.join("link").symlink_metadata().unwrap().is_symlink());
    assert_eq!(path.join("kept.safetensors").metadata().unwrap().len(), size);
}

#[test]
fn metadata_cannot_ask_for_more_than_a_model_has() {
    let folder = folder_with_photo();
    let cases = [
        ("stages", "65536", "stages"),
        ("thing_classes", "18446744073709551615", "thing_classes"),
        // What a model may have, but not this file's tensors.
        ("stages", "256", "says 256 stages, the tensors are of 3"),
        ("proposals", "65536", "tensor `rpn_head.init_kernels.weight`: `knet.config` says 65536 kernels"),
        ("channels", "65536", "says 65536 channels, the tensors are of 96"),
        ("feedforward_channels", "65536", "says 65536 feed-forward channels"),
        ("thing_classes", "50000", "says 50000 classes, the tensors are of 1"),
    ];
    for (field, value, message) in cases {
        let path = folder.path().join("model.safetensors");
        let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/knet_s3_lite0_person.safetensors");
        let text = std::fs::read(weights).unwrap();
        let length = u64::from_le_bytes(text[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&text[8..8 + length]).unwrap();
        let config = header["__metadata__"]["knet.config"].as_str().unwrap();
        let mut config: Value = serde_json::from_str(config).unwrap();
        config[field] = serde_json::from_str(value).unwrap();
        if field == "thing_classes" {
            for list in ["class_names", "class_ids"] {
                config.as_object_mut().unwrap().remove(list);
            }
        }
        header["__metadata__"]["knet.config"] = config.to_string().into();
        let header = header.to_string().into_bytes();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(&text[8 + length..]);
        std::fs::write(&path, bytes).unwrap();
        let outcome = knet(folder.path(), &["inspect", "model.safetensors"]);
        assert_eq!(outcome.code, 5, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(message) && outcome.stderr.len() < 1000, "{}", outcome.stderr);
    }
}
