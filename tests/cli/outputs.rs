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
        let [photo, wrote] = outcome.stdout.lines().collect::<Vec<_>>()[..] else {
            panic!("{}", outcome.stdout)
        };
        assert!(photo.starts_with("p/a.png: "), "{photo}");
        assert_eq!(wrote, "wrote p/a.overlay.png, p/a.json");
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
fn instances_are_filtered_as_asked() {
    let folder = folder_with_photo();
    let path = folder.path();
    let found = |more: &[&str]| {
        let segment = ["segment", "a.png", "--model", "knet_s3_r50_fpn", "--size", "128,192", "--score", "0"];
        succeed(path, &[&segment[..], &["--format", "json", "--out", "out"], more].concat());
        read_json(&path.join("out/a.json"))["annotations"].as_array().unwrap().clone()
    };
    let area = |entry: &Value| entry["area"].as_u64().unwrap();
    let all = found(&[]);
    let middle = {
        let mut areas: Vec<u64> = all.iter().map(area).collect();
        areas.sort_unstable();
        areas[areas.len() / 2].to_string()
    };
    let large: Vec<&Value> = all
        .iter()
        .filter(|entry| area(entry).to_string() == middle || area(entry) > middle.parse().unwrap())
        .collect();
    assert_eq!(found(&["--min-area", &middle]).iter().collect::<Vec<_>>(), large);
    // One mask under several classes is one object.
    let apart = found(&["--max-overlap", "0.99"]);
    let mut masks: Vec<String> = all.iter().map(|entry| entry["segmentation"].to_string()).collect();
    masks.sort();
    masks.dedup();
    assert!(apart.len() <= masks.len() && masks.len() < all.len() && apart[0] == all[0]);
    let parts = found(&["--largest-part"]);
    assert_eq!(parts.len(), all.len());
    assert!(parts.iter().zip(&all).all(|(part, whole)| area(part) <= area(whole)));
    assert!(parts.iter().zip(&all).any(|(part, whole)| area(part) < area(whole)));
}

#[test]
fn folders_below_folders_and_standard_input() {
    let folder = folder_with_photo();
    let path = folder.path();
    std::fs::create_dir_all(path.join("p/day/.trash")).unwrap();
    for copy in ["p/b.png", "p/day/a.png", "p/day/.trash/a.png"] {
        std::fs::copy(path.join("a.png"), path.join(copy)).unwrap();
    }
    let segment = ["segment", "--size", "64x96", "--format", "json", "--out"];
    succeed(path, &[&segment[..], &["flat", "p"]].concat());
    assert_eq!(listing(&path.join("flat")), ["b.json"]);
    let outcome = succeed(path, &[&segment[..], &["deep", "--recursive", "p"]].concat());
    assert_eq!(listing(&path.join("deep")), ["b.json", "day", "day/a.json"]);
    assert_eq!(read_json(&path.join("deep/day/a.json"))["image"]["file_name"], "day/a.png");
    assert!(outcome.stdout.ends_with("wrote NAME.json of 2 photos to deep\n"), "{}", outcome.stdout);

    let piped = |input: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
        command.args(segment).args(["piped", "-"]).current_dir(path);
        command.stdin(std::fs::File::open(path.join(input)).unwrap()).output().unwrap()
    };
    let output = piped("a.png");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [mut piped_report, report] =
        ["piped/stdin.json", "flat/b.json"].map(|name| read_json(&path.join(name)));
    assert_eq!(piped_report["image"]["file_name"], "stdin");
    for entry in piped_report["annotations"].as_array_mut().unwrap() {
        entry["file_name"] = "b.png".into();
    }
    assert_eq!(piped_report["annotations"], report["annotations"]);
    let output = piped("deep/b.json");
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard input: not a PNG"));
}

#[test]
fn as_much_is_said_as_was_asked_for() {
    let folder = folder_with_photo();
    let path = folder.path();
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&crate::photo(60, 90)).unwrap();
    jpeg.truncate(jpeg.len() / 2);
    jpeg.extend([0xff, 0xd9]);
    std::fs::write(path.join("grey.jpg"), jpeg).unwrap();
    let segment = ["segment", "a.png", "grey.jpg", "--weights", "seeded:1", "--model", "knet_s3_r50_fpn"];
    let segment = [&segment[..], &["--size", "64,96", "--format", "json", "--out", "out"]].concat();
    let usual = succeed(path, &segment);
    assert!(usual.stdout.lines().count() == 3 && usual.stderr.contains("note: seeded:1 are random"));
    let warning = "warning: grey.jpg: the JPEG's data end before its picture does";
    assert!(usual.stderr.contains(warning) && usual.stderr.lines().count() == 2, "{}", usual.stderr);
    let quiet = succeed(path, &[&segment[..], &["-q"]].concat());
    assert!(quiet.stdout.is_empty() && quiet.stderr.starts_with(warning), "{}{}", quiet.stdout, quiet.stderr);
    assert_eq!(quiet.stderr.lines().count(), 1);
    let verbose = succeed(path, &[&segment[..], &["--verbose"]].concat());
    for fragment in ["knet_s3_r50_fpn (instance) of seeded:1, on ", " threads", "network ", warning] {
        assert!(verbose.stderr.contains(fragment), "{}", verbose.stderr);
    }
    // A result is no chatter.
    let inspected = succeed(path, &["-q", "inspect"]);
    for fragment in ["knet_s3_lite0_person", "384x512"] {
        assert!(inspected.stdout.contains(fragment), "{}", inspected.stdout);
    }
}

#[test]
fn misspelt_variables_are_errors() {
    let folder = folder_with_photo();
    for (name, value, fragment) in [
        ("KNET_CASHE", "/tmp", "KNET_CASHE: did you mean KNET_CACHE?"),
        ("KNET_ISA", "avx", "takes portable, "),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
        let output = command.arg("inspect").env(name, value).current_dir(folder.path()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(fragment) && output.stdout.is_empty(), "{stderr}");
    }
}

#[test]
fn bf16_is_refused_where_nothing_multiplies_it() {
    let folder = folder_with_photo();
    let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
    command.args(["segment", "a.png", "--device", "cpu", "--precision", "bf16", "--out", "out"]);
    let output = command.env("KNET_ISA", "portable").current_dir(folder.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let said =
        ["no instructions that multiply bf16", "KNET_ISA excludes them", "computes by portable in f32"];
    assert!(said.iter().all(|said| stderr.contains(said)), "{stderr}");
    assert!(!folder.path().join("out").exists());
}

#[test]
fn too_large_a_size_is_refused_with_both_numbers() {
    let folder = folder_with_photo();
    let script = format!(
        "ulimit -v 3000000; exec {:?} segment a.png --size 8192,8192 --precision f32 --out out",
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
