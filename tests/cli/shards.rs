//! A corpus split over processes: `knet segment --shard`, `--skip-existing` and `--manifest`.

use crate::{folder_with_photo, knet, listing, succeed};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SHARDS: usize = 4;
/// What every run has in common.
const SEGMENT: [&str; 6] = ["segment", "photos", "--recursive", "--size", "64x96", "--out"];

/// A folder `photos` with thirteen of them in two folders; one cannot be read.
fn corpus() -> TempDir {
    let folder = folder_with_photo();
    let photos = folder.path().join("photos");
    std::fs::create_dir_all(photos.join("night")).unwrap();
    for number in 0..12 {
        let name = if number % 3 == 0 { format!("night/{number}.png") } else { format!("{number}.png") };
        std::fs::copy(folder.path().join("a.png"), photos.join(name)).unwrap();
    }
    std::fs::write(photos.join("torn.jpg"), b"no JPEG").unwrap();
    folder
}

fn shard(number: usize) -> String {
    format!("{number}/{SHARDS}")
}

/// What a manifest says of each photo.
fn manifest(path: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = lines.len();
    let lines: BTreeMap<_, _> =
        lines.into_iter().map(|line| (line["name"].as_str().unwrap().to_string(), line)).collect();
    assert_eq!(lines.len(), count, "a photo has two lines in {}", path.display());
    lines
}

fn start(folder: &Path, number: usize) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
    command.args(SEGMENT).args(["shards", "--shard", &shard(number), "--skip-existing", "--threads", "1"]);
    command.args(["--manifest", &format!("{number}.jsonl")]).current_dir(folder);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a file has a line; a shard may end before it is killed, which takes nothing from what is tested.
fn wait_for_line(path: &Path) {
    let start = Instant::now();
    while !std::fs::read(path).is_ok_and(|bytes| bytes.contains(&b'\n')) {
        assert!(start.elapsed() < Duration::from_secs(120), "no line in {}", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn shards_together_write_what_one_process_writes() {
    let folder = corpus();
    let path = folder.path();
    let whole = knet(path, &[&SEGMENT[..], &["whole", "--manifest", "whole.jsonl"]].concat());
    assert_eq!(whole.code, 1, "{}", whole.stderr);
    let mut shards: Vec<Child> = (1..=SHARDS).map(|number| start(path, number)).collect();
    wait_for_line(&path.join("2.jsonl"));
    shards[1].kill().unwrap();
    let codes: Vec<_> = shards.iter_mut().map(|shard| shard.wait().unwrap().code()).collect();
    // What a killed process may leave: a file that was not finished, and a photo that lacks a result.
    let second: Vec<String> = manifest(&path.join("whole.jsonl"))
        .into_keys()
        .filter(|name| manifest_of_shard(path, 2).contains(name))
        .collect();
    let stem = second[0].trim_end_matches(".png").to_string();
    let _ = std::fs::remove_file(path.join(format!("shards/{stem}.json")));
    let [parent, name] = [Path::new(&stem).parent(), Path::new(&stem).file_name().map(Path::new)]
        .map(|part| part.unwrap().display().to_string());
    std::fs::write(path.join("shards").join(parent).join(format!(".{name}.json.4294967-3.tmp")), b"{")
        .unwrap();
    let again = knet(
        path,
        &[&SEGMENT[..], &["shards", "--shard", "2/4", "--skip-existing", "--manifest", "2.jsonl"]].concat(),
    );

    let [one, four] = ["whole", "shards"].map(|out| path.join(out));
    assert_eq!(listing(&one), listing(&four), "{codes:?}");
    for name in listing(&one).iter().filter(|name| one.join(name).is_file()) {
        assert!(std::fs::read(one.join(name)).unwrap() == std::fs::read(four.join(name)).unwrap(), "{name}");
    }
    let lines = manifest(&path.join("whole.jsonl"));
    assert_eq!(lines.len(), 13);
    let mut union = BTreeMap::new();
    for number in 1..=SHARDS {
        for (name, line) in manifest(&path.join(format!("{number}.jsonl"))) {
            assert!(union.insert(name.clone(), line).is_none(), "{name} is in two shards");
        }
    }
    assert_eq!(lines.keys().collect::<Vec<_>>(), union.keys().collect::<Vec<_>>());
    for (name, line) in &lines {
        let failed = name == "torn.jpg";
        assert_eq!(line["status"], if failed { "failed" } else { "done" }, "{line}");
        assert_eq!(union[name]["status"] == "failed", failed, "{}", union[name]);
        assert_eq!(line["found"].is_u64() && line["ms"]["network"].is_f64(), !failed, "{line}");
    }
    let torn = &lines["torn.jpg"];
    assert_eq!(torn["exit_code"], 4, "{torn}");
    assert!(torn["error"].as_str().unwrap().contains("torn.jpg"), "{torn}");
    let mine = manifest(&path.join("2.jsonl"));
    assert_eq!(mine.keys().cloned().collect::<Vec<_>>(), second);
    assert_eq!(mine[&second[0]]["status"], "done", "{}{}", again.stdout, again.stderr);
}

/// The names of a shard's photos: what a run of it alone has in its manifest.
fn manifest_of_shard(path: &Path, number: usize) -> Vec<String> {
    let file = format!("alone-{number}.jsonl");
    knet(path, &[&SEGMENT[..], &["alone", "--shard", &shard(number), "--manifest", &file]].concat());
    manifest(&path.join(file)).into_keys().collect()
}

/// The recipe of docs/scale.md.
#[test]
fn gnu_parallel_runs_the_shards() {
    let version = Command::new("parallel").arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with("GNU parallel")) {
        eprintln!("not run: GNU parallel is not installed");
        return;
    }
    let folder = corpus();
    let path = folder.path();
    std::fs::remove_file(path.join("photos/torn.jpg")).unwrap();
    succeed(path, &[&SEGMENT[..], &["whole"]].concat());
    let mut command = Command::new("parallel");
    command.args(["--retries", "3", env!("CARGO_BIN_EXE_knet")]).args(SEGMENT).args([
        "shards",
        "--threads",
        "1",
    ]);
    command.args([
        "--shard",
        "{}/4",
        "--skip-existing",
        "--manifest",
        "shards/{}.jsonl",
        ":::",
        "1",
        "2",
        "3",
        "4",
    ]);
    let output = command.current_dir(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let photos: usize =
        (1..=SHARDS).map(|number| manifest(&path.join(format!("shards/{number}.jsonl"))).len()).sum();
    assert_eq!(photos, 12);
    for name in listing(&path.join("whole")).iter().filter(|name| path.join("whole").join(name).is_file()) {
        let [one, four] = ["whole", "shards"].map(|out| std::fs::read(path.join(out).join(name)).unwrap());
        assert!(one == four, "{name}");
    }
}

#[test]
fn what_is_done_is_passed_over() {
    let folder = folder_with_photo();
    let path = folder.path();
    let segment = ["segment", "a.png", "--size", "64x96", "--skip-existing", "--out", "out"];
    succeed(path, &segment);
    let before = std::fs::metadata(path.join("out/a.json")).unwrap().modified().unwrap();
    let outcome = succeed(path, &segment);
    assert_eq!(outcome.stdout, "passed over 1 of 1 photos, whose results are there\n");
    assert_eq!(std::fs::metadata(path.join("out/a.json")).unwrap().modified().unwrap(), before);
    // Another kind of result is not there.
    let outcome = succeed(path, &[&segment[..], &["--format", "png"]].concat());
    assert!(outcome.stdout.contains("wrote out/a.instances.png"), "{}", outcome.stdout);

    // One photo falls to one of two shards; the other is no failure.
    let shards = ["1/2", "2/2"].map(|shard| {
        let outcome = succeed(
            path,
            &[
                "segment",
                "a.png",
                "--size",
                "64x96",
                "--shard",
                shard,
                "--out",
                "halves",
                "--manifest",
                "m.jsonl",
            ],
        );
        let lines = std::fs::read_to_string(path.join("m.jsonl")).unwrap().lines().count();
        assert_eq!(lines == 0, outcome.stdout == format!("shard {shard} has none of the 1 photos\n"));
        lines
    });
    assert_eq!(shards.iter().sum::<usize>(), 1);

    for (wrong, message) in [
        (&["--shard", "0/4"][..], "from 1/N to N/N"),
        (&["--shard", "5/4"], "from 1/N to N/N"),
        (&["--shard", "1/0"], "from 1/N to N/N"),
        (&["--shard", "half"], "2/8"),
        (&["--manifest", "a.png"], "is an input"),
        (&["--manifest", "out/a.json"], "did not make it"),
        (&["--skip-existing", "--coco", "c.json", "--annotations", "x.json"], "cannot be used with"),
    ] {
        let outcome = knet(path, &[&["segment", "a.png", "--size", "64x96"], wrong].concat());
        assert_eq!(outcome.code, 2, "{wrong:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(message), "{wrong:?}: {}", outcome.stderr);
    }
}
