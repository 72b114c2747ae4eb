//! The `knet` program: exit codes, messages, and the files it writes or does not write.

mod evaluation;
mod gpu;
mod outputs;
mod quantize;
mod semantic;
mod shards;

use image::{ImageFormat, RgbImage};
use knet::checkpoint::Checkpoint;
use serde_json::Value;
use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use testkit::model::{photo, seeded_entries, small_config};
use testkit::pth_writer::{cat, dict, global, pickle, text, tuple, write_checkpoint, zip_of};
use zip::CompressionMethod;

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// What was printed, as JSON.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in: {}", self.stdout))
    }
}

/// Runs the program in `folder`. It must never panic, whatever it is given.
#[track_caller]
fn knet(folder: &Path, arguments: &[&str]) -> Outcome {
    let output =
        Command::new(env!("CARGO_BIN_EXE_knet")).args(arguments).current_dir(folder).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    let code = output.status.code().unwrap_or_else(|| panic!("{arguments:?} was killed: {stderr}"));
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    Outcome { code, stdout, stderr }
}

/// Runs it and expects success.
#[track_caller]
fn succeed(folder: &Path, arguments: &[&str]) -> Outcome {
    let outcome = knet(folder, arguments);
    assert_eq!(outcome.code, 0, "{arguments:?}: {}{}", outcome.stdout, outcome.stderr);
    outcome
}

/// Every file and folder below `folder`, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(folder).unwrap().to_string_lossy().into_owned());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

fn inputs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/inputs")
}

fn folder_with_photo() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(inputs().join("a.png"), folder.path().join("a.png")).unwrap();
    folder
}

/// A PNG whose header promises a large picture, with no pixels behind it.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"IDAT", &[]), (b"IEND", &[])] {
        let body = [kind.as_slice(), data].concat();
        let crc = !body.iter().fold(!0u32, |crc, &b| {
            (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
        });
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(body);
        png.extend(crc.to_be_bytes());
    }
    png
}

fn truncated_jpeg() -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    photo(80, 100).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    let mut bytes = bytes.into_inner();
    bytes.truncate(bytes.len() * 2 / 3);
    bytes
}

/// A `.pth` file that would run a command if it were unpickled.
fn hostile_pth() -> Vec<u8> {
    let attack = cat(&[global("posix", "system"), tuple(&[text("echo owned")]), b"R".to_vec()]);
    let root = pickle(dict(&[("state_dict", dict(&[("w", attack)]))]));
    zip_of(&[("archive/data.pkl", &root)], CompressionMethod::Stored)
}

fn truncated_safetensors() -> Vec<u8> {
    let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    [&(header.len() as u64).to_le_bytes(), &header[..], &[0; 5]].concat()
}

#[test]
fn a_single_stream_is_timed_and_allocates_nothing() {
    let folder = folder_with_photo();
    let stream = [
        "bench",
        "--single-stream",
        "--queries",
        "30",
        "--size",
        "64,96",
        "--threads",
        "2",
        "--check-allocations",
    ];
    let drawn = ["--image", "a.png", "--histogram", "h.svg", "--json"];
    // The second run replaces its own drawing.
    for _ in 0..2 {
        let report = succeed(folder.path(), &[&stream[..], &drawn].concat()).json();
        assert_eq!(
            (&report["queries"], &report["warm_up"], &report["allocations"]),
            (&30.into(), &20.into(), &0.into())
        );
        assert_eq!(report["image"], serde_json::json!([128, 192]));
        let ms =
            ["p50", "p90", "p99", "p99.9", "max"].map(|name| report["latency_ms"][name].as_f64().unwrap());
        assert!(ms[0] > 0.0 && ms.is_sorted(), "{report}");
        assert!(report["latency_ms"]["mean"].as_f64().unwrap() <= ms[4]);
        let bars = &report["histogram_ms"];
        let frames = bars["frames"].as_array().unwrap();
        assert_eq!(frames.iter().map(|bar| bar.as_u64().unwrap()).sum::<u64>(), 30, "{report}");
        let end = bars["from"].as_f64().unwrap() + bars["width"].as_f64().unwrap() * frames.len() as f64;
        assert!((end - ms[4]).abs() < 1e-3, "{report}");
    }
    // No time: one stage. It allocates as little.
    for (deadline, stages) in [("0", 1), ("100000", 3)] {
        let report =
            succeed(folder.path(), &[&stream[..], &["--deadline", deadline, "--json"]].concat()).json();
        let mut frames = vec![0; 4];
        frames[stages] = 30;
        assert_eq!(report["frames_by_stages"], serde_json::json!(frames), "{report}");
    }
    let drawing = std::fs::read_to_string(folder.path().join("h.svg")).unwrap();
    assert!(
        drawing.starts_with("<svg") && drawing.contains("p99.9") && drawing.contains("30 frames"),
        "{drawing}"
    );
    let timed = succeed(folder.path(), &["bench", "--single-stream", "--seconds", "1", "--size", "64x96"]);
    assert!(
        timed.stdout.contains("after 20 that do not count") && timed.stdout.contains("p99.9"),
        "{}",
        timed.stdout
    );
    std::fs::write(folder.path().join("mine.svg"), "<svg/>").unwrap();
    let refused = knet(folder.path(), &[&stream[..], &["--histogram", "mine.svg"]].concat());
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert_eq!(std::fs::read(folder.path().join("mine.svg")).unwrap(), b"<svg/>");
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = folder_with_photo();
    let path = folder.path();
    std::fs::create_dir(path.join("none")).unwrap();
    std::fs::write(path.join("none/notes.txt"), "no photo").unwrap();
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("empty.png", vec![]),
        ("text.jpg", b"Dear diary, today I drew nothing.".to_vec()),
        ("cut.jpg", truncated_jpeg()),
        ("vast.png", png_header(40_000, 40_000)),
        ("cut.safetensors", truncated_safetensors()),
        ("empty.safetensors", vec![]),
        ("text.safetensors", b"weights, honestly, all of them in here".to_vec()),
        ("hostile.pth", hostile_pth()),
        ("legacy.pth", std::fs::read(inputs().join("../pth/legacy.pth")).unwrap()),
        ("words.pth", b"hello".to_vec()),
    ];
    for (name, bytes) in files {
        std::fs::write(path.join(name), bytes).unwrap();
    }
    let before = listing(path);
    // Arguments, exit code, what the message has to name.
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[], 2, &["Usage: knet", "segment", "convert"]),
        (&["segmnt", "a.png"], 2, &["segmnt", "segment"]),
        (&["segment"], 2, &["IMAGE"]),
        (&["segment", "a.png", "--szie", "1,2"], 2, &["--szie", "--size"]),
        (&["segment", "a.png", "--size", "0,5"], 2, &["SHORT,LONG", "0,5"]),
        (&["segment", "a.png", "--min-area", "0"], 2, &["--min-area"]),
        (&["segment", "a.png", "--max-overlap", "2"], 2, &["--max-overlap", "`2`", "from 0 to 1"]),
        (
            &["segment", "a.png", "--model", "knet_s3_r50_fpn_panoptic", "--size", "64,96", "--largest-part"],
            2,
            &["--largest-part", "--task instance"],
        ),
        (&["segment", "-", "-"], 2, &["standard input", "once"]),
        (&["segment", "a.png", "-q", "-v"], 2, &["--quiet", "--verbose"]),
        (&["segment", "a.png", "--size", "200,100"], 2, &["200,100"]),
        (&["segment", "a.png", "--score", "NaN"], 2, &["NaN", "score"]),
        (&["segment", "a.png", "--threads", "0"], 2, &["--threads"]),
        (&["segment", "a.png", "--device", "gpu"], 2, &["gpu", "auto, cpu, cuda or cuda:N"]),
        (&["segment", "a.png", "--precision", "int4"], 2, &["int4", "f32, tf32x3, f16, bf16, int8"]),
        (
            &["bench", "--train", "--device", "cuda", "--precision", "tf32x3"],
            2,
            &["cuda:0 trains in f32, bf16 or f16"],
        ),
        (&["segment", "a.png", "--weights", "seeded:x"], 2, &["seed", "`x`"]),
        (&["segment", "a.png", "--task", "boxes"], 2, &["boxes", "instance, panoptic, semantic"]),
        (&["segment", "a.png", "--task", "panoptic"], 2, &["knet_s3_lite0_person", "instances only"]),
        (
            &["segment", "a.png", "--model", "knet_s3_r50_fnp"],
            2,
            &["unknown model `knet_s3_r50_fnp`", "did you mean `knet_s3_r50_fpn`?"],
        ),
        (
            &["segment", "a.png", "--weights", "missing.safetensors"],
            3,
            &["missing.safetensors", "No such file"],
        ),
        (&["segment", "a.png", "--weights", "none"], 3, &["none"]),
        (
            &["segment", "a.png", "--weights", "cut.safetensors"],
            5,
            &["cut.safetensors", "tensor `a`", "truncated"],
        ),
        (&["segment", "a.png", "--weights", "empty.safetensors"], 5, &["empty.safetensors", "empty file"]),
        (&["segment", "a.png", "--weights", "text.safetensors"], 5, &["text.safetensors", "limit"]),
        (
            &["segment", "a.png", "--weights", "hostile.pth"],
            5,
            &["hostile.pth", "PyTorch", "knet convert hostile.pth"],
        ),
        (&["inspect", "legacy.pth"], 5, &["PyTorch", "knet convert legacy.pth"]),
        (&["inspect", "cut.safetensors", "--model", "knet_s3_r50_fpn"], 5, &["truncated"]),
        (&["inspect", "seeded:0", "--size", "12"], 2, &["HEIGHTxWIDTH"]),
        (
            &["convert", "hostile.pth"],
            5,
            &["hostile.pth", "`posix.system` is not allowed", "archive/data.pkl", "at byte"],
        ),
        (&["convert", "legacy.pth"], 2, &["legacy.pth", "not a K-Net"]),
        (&["convert", "words.pth"], 5, &["words.pth", "neither the zip nor the legacy format"]),
        (&["convert", "missing.pth"], 3, &["missing.pth", "No such file"]),
        (&["convert", "words.pth", "--model", "knet"], 2, &["did you mean"]),
        (&["segment", "empty.png"], 4, &["empty.png", "the file is empty"]),
        (&["segment", "text.jpg"], 4, &["text.jpg", "not a PNG, JPEG"]),
        (&["segment", "cut.jpg"], 4, &["cut.jpg", "truncated JPEG"]),
        (&["segment", "vast.png"], 4, &["vast.png", "40000 x 40000"]),
        (&["segment", "missing.png"], 3, &["missing.png", "No such file"]),
        (&["segment", "none"], 2, &["none", "no photos in this folder", "--recursive"]),
        (&["segment", "a.png", "--out", "text.jpg/out"], 3, &["text.jpg/out"]),
        (&["segment", "a.png", "--out", "text.jpg"], 3, &["text.jpg"]),
        (&["dump", "--image", "cut.jpg", "--out", "x.safetensors"], 4, &["cut.jpg"]),
        (&["bench", "--size", "0x5"], 2, &["0x5"]),
        (&["bench", "--runs", "0"], 2, &["--runs"]),
    ];
    for (arguments, code, fragments) in cases {
        let outcome = knet(path, arguments);
        assert_eq!(outcome.code, *code, "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{arguments:?} printed {}", outcome.stdout);
        for fragment in *fragments {
            assert!(
                outcome.stderr.contains(fragment),
                "{arguments:?}: no `{fragment}` in: {}",
                outcome.stderr
            );
        }
    }
    let mut after = listing(path);
    // The folder for results is made before the first photo is read.
    after.retain(|name| name != "knet-out");
    assert_eq!(after, before);
}

#[test]
fn one_bad_photo_does_not_stop_the_others() {
    let folder = folder_with_photo();
    let path = folder.path();
    std::fs::create_dir_all(path.join("photos")).unwrap();
    std::fs::rename(path.join("a.png"), path.join("photos/a.PNG")).unwrap();
    std::fs::write(path.join("photos/0-cut.jpg"), truncated_jpeg()).unwrap();
    std::fs::write(path.join("photos/notes.txt"), "not taken for a photo").unwrap();
    let outcome = knet(path, &["segment", "photos", "--size", "64,96", "--out", "deep/out"]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    for fragment in ["0-cut.jpg", "truncated JPEG", "1 of 2 images failed"] {
        assert!(outcome.stderr.contains(fragment), "{}", outcome.stderr);
    }
    assert!(outcome.stdout.contains("a.PNG: ") && !outcome.stdout.contains("cut"), "{}", outcome.stdout);
    assert_eq!(listing(&path.join("deep/out")), ["a.json", "a.overlay.png"]);
}

#[test]
fn a_result_that_cannot_be_written_leaves_no_part() {
    let folder = folder_with_photo();
    let path = folder.path();
    // A folder where the file belongs: even root cannot write there.
    std::fs::create_dir_all(path.join("out/a.overlay.png")).unwrap();
    let outcome = knet(path, &["segment", "a.png", "--size", "64,96", "--out", "out"]);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("a.overlay.png"), "{}", outcome.stderr);
    assert_eq!(listing(&path.join("out")), ["a.overlay.png"]);
    let dump = ["dump", "--image", "a.png", "--no-resize", "--out", "a.png/x.safetensors"];
    let outcome = knet(path, &dump);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("a.png/x.safetensors"), "{}", outcome.stderr);
    assert_eq!(listing(path), ["a.png", "out", "out/a.overlay.png"]);
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read_png(path: &Path) -> RgbImage {
    image::open(path).unwrap().to_rgb8()
}

#[test]
fn instances() {
    let folder = folder_with_photo();
    let path = folder.path();
    let outcome = succeed(
        path,
        &[
            "segment",
            "a.png",
            "a.png",
            "--model",
            "knet_s3_r50_fpn",
            "--precision",
            "f32",
            "--size",
            "128,192",
            "--score",
            "0",
            "--out",
            "out",
        ],
    );
    assert!(outcome.stderr.contains("seeded:0 are random weights"), "{}", outcome.stderr);
    assert_eq!(outcome.stdout.lines().count(), 3);
    // Of the hundred that the official code gives of this photo, 32 have no pixel (golden.safetensors:
    // final.mask_area).
    assert!(outcome.stdout.starts_with("a.png: 68 instances in "), "{}", outcome.stdout);
    assert!(
        outcome.stdout.ends_with("wrote NAME.overlay.png, NAME.json of 2 photos to out\n"),
        "{}",
        outcome.stdout
    );
    let out = path.join("out");
    assert_eq!(listing(&out), ["a-2.json", "a-2.overlay.png", "a.json", "a.overlay.png"]);
    assert_eq!(read_png(&out.join("a.overlay.png")).dimensions(), (192, 128));

    let report = read_json(&out.join("a.json"));
    assert_eq!(report["model"], "knet_s3_r50_fpn");
    assert_eq!(report["image"]["height"], 128);
    assert_eq!(report["image"]["width"], 192);
    let annotations = report["annotations"].as_array().unwrap();
    assert_eq!(annotations.len(), 68);
    for annotation in annotations {
        let rle = &annotation["segmentation"];
        assert_eq!(rle["size"], serde_json::json!([128, 192]));
        let mask = knet::image::rle::decode(rle["counts"].as_str().unwrap(), 128, 192).unwrap();
        assert_eq!(annotation["area"], mask.area());
        assert!((0.0..=1.0).contains(&annotation["score"].as_f64().unwrap()));
        let pixels = (0..128).flat_map(|y| (0..192).map(move |x| (y, x))).filter(|&(y, x)| mask.get(y, x));
        let (mut low, mut high) = ((usize::MAX, usize::MAX), (0, 0));
        for (y, x) in pixels {
            low = (low.0.min(y), low.1.min(x));
            high = (high.0.max(y + 1), high.1.max(x + 1));
        }
        assert!(mask.area() > 0);
        // The box of all pixels, or within it where specks are left out.
        let [x, y, width, height]: [usize; 4] = serde_json::from_value(annotation["bbox"].clone()).unwrap();
        assert!(
            x >= low.1 && y >= low.0 && x + width <= high.1 && y + height <= high.0 && width * height > 0
        );
    }
    assert_eq!(report["annotations"], {
        let mut second = read_json(&out.join("a-2.json"))["annotations"].take();
        second.as_array_mut().unwrap().iter_mut().for_each(|a| a["image_id"] = 1.into());
        second
    });
}

#[test]
fn panoptic_maps() {
    let folder = folder_with_photo();
    let path = folder.path();
    let arguments = ["segment", "a.png", "--model", "knet_s3_r50_fpn_panoptic", "--size", "128,192"];
    succeed(path, &[&arguments[..], &["--out", "out"]].concat());
    let out = path.join("out");
    assert_eq!(listing(&out), ["a.json", "a.overlay.png", "a.panoptic.colour.png", "a.panoptic.png"]);
    let report = read_json(&out.join("a.json"));
    assert_eq!(report["file_name"], "a.panoptic.png");
    assert_eq!(report["image_file_name"], "a.png");
    let map = read_png(&out.join("a.panoptic.png"));
    assert_eq!(map.dimensions(), (192, 128));
    let mut areas: HashMap<u64, u64> = HashMap::new();
    for pixel in map.pixels() {
        let [r, g, b] = pixel.0.map(u64::from);
        *areas.entry(r + 256 * g + 65_536 * b).or_default() += 1;
    }
    // The twin for the eye: black where there is nothing, and one colour a segment.
    let twin = read_png(&out.join("a.panoptic.colour.png"));
    assert_eq!(twin.dimensions(), map.dimensions());
    let mut colour_of = HashMap::new();
    for (pixel, colour) in map.pixels().zip(twin.pixels()) {
        assert_eq!(pixel.0 == [0; 3], colour.0 == [0; 3]);
        assert_eq!(colour_of.entry(pixel.0).or_insert(colour.0), &colour.0);
    }
    areas.remove(&0);
    let segments = report["segments_info"].as_array().unwrap();
    assert!(!segments.is_empty());
    assert_eq!(areas.len(), segments.len());
    for segment in segments {
        assert_eq!(Some(&segment["area"].as_u64().unwrap()), areas.get(&segment["id"].as_u64().unwrap()));
    }
    succeed(path, &[&arguments[..], &["--task", "instance", "--format", "json", "--out", "things"]].concat());
    assert_eq!(listing(&path.join("things")), ["a.json"]);
    assert!(read_json(&path.join("things/a.json"))["annotations"].is_array());
}

#[test]
fn inspect() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["inspect", "seeded:0", "--size", "100x192", "--threads", "2"];
    let table = succeed(folder.path(), &arguments).stdout;
    for fragment in
        ["knet_s3_r50_fpn (instance)", "80 things, 0 stuff", "37.", "128x192", "GFLOP", "arena", "conv2d"]
    {
        assert!(table.contains(fragment), "no `{fragment}` in: {table}");
    }
    let report = succeed(folder.path(), &[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(report["config"]["name"], "knet_s3_r50_fpn");
    assert_eq!(report["size"], serde_json::json!([128, 192]));
    let steps = report["steps"].as_array().unwrap();
    let sum = |field: &str| steps.iter().map(|step| step[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(report["flops"].as_u64().unwrap(), sum("flops"));
    let arena = report["arena_bytes"].as_u64().unwrap();
    assert!(steps.iter().all(|step| step["offset"].as_u64().unwrap() < arena));
    assert_eq!(
        steps.len(),
        table.lines().filter(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit())).count()
    );
}

#[test]
fn a_bundle_segments_as_its_checkpoint() {
    let folder = folder_with_photo();
    let path = folder.path();
    let weights = ["--model", "knet_s3_lite0_fpn"];
    let sizes = ["--size", "64x96,96x64", "--size", "32,64", "--out", "a.knet"];
    let said = succeed(path, &[&["compile"], &weights[..], &sizes].concat()).stdout;
    assert!(said.contains("a.knet: knet_s3_lite0_fpn at 32x64, 64x96, 96x64 for CPUs with"), "{said}");
    let segment = ["segment", "a.png", "--size", "32,64", "--score", "0", "--format", "json"];
    succeed(path, &[&segment, &weights[..], &["--out", "checkpoint"]].concat());
    succeed(path, &[&segment[..], &["--weights", "a.knet", "--out", "bundle"]].concat());
    let json = |name: &str| read_json(&path.join(name).join("a.json"));
    assert_eq!(json("checkpoint")["annotations"], json("bundle")["annotations"]);

    let table = succeed(path, &["inspect", "a.knet"]).stdout;
    assert!(table.contains("32x64, 64x96, 96x64") && table.contains("checksum     right over"), "{table}");
    let report = succeed(path, &["inspect", "a.knet", "--json"]).json();
    assert_eq!(report["manifest"]["sizes"][0], serde_json::json!([32, 64]));
    // Another one may take its place, a checkpoint never does, and no bundle is made of it.
    succeed(path, &[&["compile"], &weights[..], &["--size", "32x64", "--out", "a.knet"]].concat());
    for (arguments, code, words) in [
        (&["compile", "--weights", "a.knet", "--out", "a.knet"][..], 2, "is an input"),
        (&["compile", "--weights", "a.knet", "--out", "b.knet"], 2, "not of a bundle"),
        (&["compile", "--out", "a.png"], 2, "did not make it"),
        (&["compile", "--target", "cpu,gpu"], 2, "--target gpu: takes cpu, cuda"),
        (&["segment", "a.png", "--weights", "a.knet", "--size", "64x96"], 2, "the bundle is for 32x64"),
        (&["segment", "a.png", "--weights", "a.knet", "--device", "cuda"], 10, "is for CPUs with"),
    ] {
        let outcome = knet(path, arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{arguments:?}: {}", outcome.stderr);
    }
    assert!(!path.join("b.knet").exists());
}

#[test]
fn bench() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["bench", "--model", "knet_s3_r50_fpn", "--size", "64x96", "--runs", "3", "--threads", "2"];
    let report = succeed(folder.path(), &[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(report["model"], "knet_s3_r50_fpn");
    assert_eq!(report["size"], serde_json::json!([64, 96]));
    assert_eq!((&report["threads"], &report["runs"]), (&2.into(), &3.into()));
    for part in ["pre", "network", "post", "total"] {
        let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"]
            .map(|p| report[part][p].as_f64().unwrap_or_else(|| panic!("{part}.{p}")));
        assert!(0.0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{part}: {}", report[part]);
    }
    let steps = report["steps"].as_array().unwrap();
    assert!(steps.len() > 100 && steps.iter().all(|s| s["ms"].is_f64() && s["kernel"].is_string()));
    let table = succeed(folder.path(), &[&arguments[..], &["--no-steps"]].concat()).stdout;
    assert!(table.contains("p99") && table.contains("GFLOP/s") && !table.contains("backbone."), "{table}");
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn dump() {
    let folder = folder_with_photo();
    let path = folder.path();
    succeed(
        path,
        &[
            "dump",
            "--model",
            "knet_s3_r50_fpn",
            "--image",
            "a.png",
            "--no-resize",
            "--out",
            "taps.safetensors",
        ],
    );
    let file = Checkpoint::open(path.join("taps.safetensors")).unwrap();
    let meta = read_json(&inputs().join("../knet_s3_r50_fpn/meta.json"));
    let wanted = meta["cases"]["a"]["tensors"].as_object().unwrap();
    assert!(wanted.len() > 40);
    for (name, tensor) in wanted {
        let shape = file.shape(name).unwrap_or_else(|| panic!("no `{name}`"));
        assert_eq!(serde_json::json!(shape), tensor["shape"], "{name}");
    }
    assert_eq!(listing(path), ["a.png", "taps.safetensors"]);
}

#[test]
fn from_pth_to_masks() {
    let folder = folder_with_photo();
    let path = folder.path();
    let entries = seeded_entries(&small_config(), 2);
    let tensors: Vec<_> =
        entries.iter().map(|e| (e.name.as_str(), e.shape.as_slice(), e.values.as_slice())).collect();
    write_checkpoint(&path.join("mine.pth"), "module.", &["ant", "bee", "cow", "dog", "eel"], &tensors);
    let outcome = succeed(path, &["convert", "mine.pth", "--precision", "f16"]);
    assert!(outcome.stdout.contains("mine.safetensors: knet_s2_r50_fpn ("), "{}", outcome.stdout);
    let segment = ["segment", "a.png", "--weights", "mine.safetensors", "--size", "64,96", "--score", "0"];
    let outcome = succeed(path, &[&segment[..], &["--format", "json", "--out", "."]].concat());
    assert!(outcome.stderr.is_empty(), "{}", outcome.stderr);
    assert_eq!(listing(path), ["a.json", "a.png", "mine.pth", "mine.safetensors"]);
    let report = read_json(&path.join("a.json"));
    let names =
        report["annotations"].as_array().unwrap().iter().map(|a| a["category_name"].as_str().unwrap());
    // Twelve objects in five classes each, less those without a pixel.
    let count = names.clone().count();
    assert!(count > 0 && count <= 60 && count % 5 == 0, "{count}");
    assert!(names.clone().any(|n| n == "ant") && names.clone().any(|n| n == "eel"));

    let outcome =
        knet(path, &["segment", "a.png", "--weights", "mine.safetensors", "--model", "knet_s3_r50_fpn"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("holds model `knet_s2_r50_fpn`"), "{}", outcome.stderr);
    let outcome =
        knet(path, &["convert", "mine.pth", "--model", "knet_s3_r50_fpn", "--out", "x.safetensors"]);
    assert_eq!(outcome.code, 6);
    assert!(outcome.stderr.contains("missing: ") && outcome.stderr.contains("of the wrong shape: "));
    assert!(!path.join("x.safetensors").exists());
}
