//! `knet-train` from end to end on small pictures: learns them, survives being killed, and says clearly what
//! is wrong.

mod data;
mod going_on;
mod goldens;
#[cfg(unix)]
mod gpus;
#[cfg(unix)]
mod launches;
mod losses;
mod metrics;
mod ranks;
mod readme;
#[cfg(unix)]
mod recompute;
mod scene;
mod semantic;
mod starting;

use knet::Engine;
use knet::checkpoint::Checkpoint;
use knet::engine::WeightSource;
use knet::train::data::{DataConfig, Mix, Reading};
use knet::train::run::RunConfig;
use knet::train::run::log::read;
use scene::{SIDE, Scene, assert_same, stderr};
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

#[test]
fn learns_two_pictures_by_heart() {
    let scene = Scene::new(&["red", "blue"]);
    let val = format!(
        "data.val=[{{format=\"coco_instance\", annotations={:?}, images={:?}}}]",
        scene.path("data.json"),
        scene.folder.path()
    );
    let settings = [
        "--overfit",
        "2",
        "--set",
        "frozen=[]",
        "--set",
        "batch_norm=train",
        "--set",
        "optimizer.ema=0",
        "--set",
        "schedule.iterations=400",
        "--set",
        "schedule.warmup=20",
        "--set",
        "optimizer.lr=3e-3",
        "--set",
        "run.save_iterations=0",
        "--set",
        "run.log_iterations=20",
        "--set",
        "run.overlay_minutes=60",
        "--set",
        &val,
    ];
    scene.train("run", &settings);
    let losses = scene.losses("run");
    let (first, last) = (losses[0].1, losses[losses.len() - 1].1);
    assert!(last < 0.05 * first && last < 0.8, "loss {first} -> {last}");

    let weights = WeightSource::File(scene.path("run/last.safetensors"));
    let mut engine = Engine::builder().weights(weights).threads(2).build().unwrap();
    let data = DataConfig::CocoInstance {
        annotations: scene.path("data.json"),
        images: scene.folder.path().into(),
        classes: None,
        repeat: 1.0,
    };
    let mix = Mix::open(&[data], &Reading::default()).unwrap();
    for image in 0..2 {
        let sample = mix.load(image).unwrap();
        let found = engine.segment(&sample.image).unwrap();
        for object in &sample.objects {
            let iou = |instance: &knet::image::instance::Instance| {
                let mask = found.mask(instance);
                let pixels = (0..SIDE as usize).flat_map(|y| (0..SIDE as usize).map(move |x| (x, y)));
                let (mut both, mut either) = (0, 0);
                for (x, y) in pixels {
                    let (a, b) = (mask.get(y, x), object.mask.contains(x, y));
                    both += usize::from(a && b);
                    either += usize::from(a || b);
                }
                both as f64 / either.max(1) as f64
            };
            let of_class = found.instances().iter().filter(|i| i.label == object.class && i.score > 0.5);
            let best = of_class.map(iou).fold(0.0, f64::max);
            assert!(best > 0.95, "image {image}, class {}: IoU {best}", object.class);
        }
    }

    let lines = read(&scene.path("run/log.jsonl")).unwrap();
    let val = lines.iter().rfind(|line| line["kind"] == "val").expect("a validation at the end");
    assert_eq!(val["iteration"], 400);
    // What it starts from is validated too, before the first step.
    let start = &lines[0];
    assert_eq!((&start["kind"], &start["iteration"]), (&json!("val"), &json!(0)), "{start}");
    assert!(start["judged"].as_f64().unwrap() < 0.1, "{start}");
    assert!(val["judged"].as_f64().unwrap() > 0.5, "{val}");
    for file in ["best.safetensors", "curves.png", "overlays/0000400.png"] {
        assert!(scene.path("run").join(file).metadata().unwrap().len() > 1000, "{file}");
    }
    // Three photos, each as annotated and as the model sees it, two of them a row.
    let sheet = image::open(scene.path("run/overlays/0000400.png")).unwrap().into_rgb8();
    assert_eq!(sheet.dimensions(), (4 * 320, 24 + 2 * 320));
    // Masks learnt by heart are drawn alike: of a photo's two places few pixels differ by more than a
    // label's.
    let differs = |x: u32, y: u32| {
        let [a, b] = [sheet.get_pixel(x, y), sheet.get_pixel(x + 320, y)];
        a.0.iter().zip(b.0).any(|(a, b)| a.abs_diff(b) > 40)
    };
    let pixels = (24..24 + 320).flat_map(|y| (0..320).map(move |x| (x, y)));
    let different = pixels.filter(|&(x, y)| differs(x, y)).count();
    assert!(different < 320 * 320 / 5, "{different} pixels differ");
    let picture = image::open(scene.path("run/curves.png")).unwrap().into_rgb8();
    assert!(picture.pixels().filter(|p| p.0 == [0, 114, 178]).count() > 100, "no curve in curves.png");
}

/// Waits until the log has a line, so that the signal handler and the loop are there.
fn wait_for_log(scene: &Scene, out: &str, child: &mut Child) {
    let begun = Instant::now();
    while scene.path(out).join("log.jsonl").metadata().map_or(0, |m| m.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_run_goes_on_with_the_same_bits() {
    let scene = Scene::new(&["red", "blue"]);
    let length = [
        "--set",
        "schedule.iterations=14",
        "--set",
        "data.accumulate=2",
        "--set",
        "batch_norm=train",
        "--set",
        "frozen=[\"backbone._conv_stem\", \"backbone._bn0\", \"backbone._blocks.0.\", \"backbone._blocks.1\"]",
    ];
    let resume = [&length[..], &["--resume", "--set", "run.save_iterations=2"]].concat();
    scene.train("whole", &length);
    let mut random = std::process::id() as u64;
    let mut killed = 0;
    for _ in 0..4 {
        let mut child = scene.command("killed", &resume).spawn().unwrap();
        wait_for_log(&scene, "killed", &mut child);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((random >> 33) % 700));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    scene.train("killed", &resume);
    assert!(killed > 0);
    assert_same(&scene.state("whole"), &scene.state("killed"));
    assert_eq!(scene.losses("whole"), scene.losses("killed"));
    assert_eq!(scene.losses("whole").len(), 14);
    assert!(scene.losses("whole").windows(2).all(|pair| pair[0].1 != pair[1].1), "the batches vary");
}

#[test]
fn one_seed_gives_the_same_bits_on_any_number_of_threads() {
    let scene = Scene::new(&["red", "blue"]);
    scene.train("one", &["--threads", "1"]);
    scene.train("three", &["--threads", "3", "--set", "data.loader_threads=3"]);
    assert_same(&scene.state("one"), &scene.state("three"));
    scene.train("other", &["--set", "seed=1"]);
    let name = "param.neck.lateral_convs.0.conv.weight";
    assert_ne!(scene.state("one").bytes(name), scene.state("other").bytes(name));
}

#[test]
fn numbers_that_explode_stop_the_run() {
    let scene = Scene::new(&["red", "blue"]);
    let output = scene.run("run", &["--set", "optimizer.lr=1e25", "--set", "schedule.warmup=0"]);
    let notes = stderr(&output);
    assert_eq!(output.status.code(), Some(9), "{notes}");
    assert!(notes.contains("is NaN or infinite; images of the batch: ["), "{notes}");
    let state = Checkpoint::open(scene.path("run/diverged.state")).unwrap();
    assert!(state.metadata()["knet.progress"].contains("\"iteration\":"));
    assert!(state.names().any(|name| name.starts_with("first.")));
}

/// Of a GPU, too, which is at the next batch when it shows: the same iteration and images are named as on the
/// CPU, the state is that before it, and the log has no line of it.
#[cfg(unix)]
#[test]
fn numbers_that_explode_on_a_gpu_are_those_of_their_own_iteration() {
    let scene = Scene::new(&["red", "blue"]);
    let settings =
        ["--set", "optimizer.lr=1e25", "--set", "schedule.warmup=0", "--set", "run.log_iterations=1"];
    let on_cpu = scene.run("cpu", &settings);
    let mut command = scene.command("gpu", &[&gpus::ON_GPU[..], &settings].concat());
    let on_gpu = gpus::on_gpus(&mut command, 1).output().unwrap();
    let after = |text: &str, part: &str, end: char| {
        let (_, rest) = text.split_once(part).unwrap_or_else(|| panic!("{text}"));
        rest.split(end).next().unwrap().to_string()
    };
    let told = [on_cpu, on_gpu].map(|output| {
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(9), "{text}");
        [after(&text, "images of the batch: [", ']'), after(&text, "stopped in iteration ", ';')]
    });
    assert_eq!(told[0], told[1]);
    let state = Checkpoint::open(scene.path("gpu/diverged.state")).unwrap();
    let before = told[1][1].parse::<usize>().unwrap() - 1;
    assert_eq!(after(&state.metadata()["knet.progress"], "\"iteration\":", ','), before.to_string());
    assert_eq!(scene.losses("gpu").len(), before);
}

#[test]
fn a_full_disk_keeps_the_last_good_checkpoint() {
    let scene = Scene::new(&["red", "blue"]);
    // Without a warm-up, of which a run's length sets the most, and a decay the shorter run is the beginning
    // of the longer one.
    let text = scene.text().replace("warmup = 3", "warmup = 0");
    let text = text.replace("[run]", "decay = { policy = \"constant\" }\n[run]");
    std::fs::write(scene.config(), text).unwrap();
    scene.train("run", &["--set", "schedule.iterations=2"]);
    let files = ["last.state", "last.safetensors"].map(|name| scene.path("run").join(name));
    let before = files.each_ref().map(|path| std::fs::read(path).unwrap());
    // No file may grow beyond 2 MiB; ignoring the signal turns that into a failing write.
    let script = format!(
        "trap '' XFSZ; ulimit -f 2048; exec {:?} {:?} --out {:?} --resume",
        env!("CARGO_BIN_EXE_knet-train"),
        scene.config(),
        scene.path("run")
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("last.state"), "{}", stderr(&output));
    assert_eq!(files.each_ref().map(|path| std::fs::read(path).unwrap()), before);
    let names: Vec<String> = names_in(&scene.path("run"));
    assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
    scene.train("run", &["--resume"]);
    scene.train("whole", &[]);
    assert_eq!(scene.losses("run"), scene.losses("whole"));
}

fn names_in(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_interrupt_saves_and_tells_how_to_go_on() {
    let scene = Scene::new(&["red", "blue"]);
    let long = ["--set", "schedule.iterations=100000", "--set", "run.save_iterations=0"];
    let mut child = scene.command("run", &long).spawn().unwrap();
    wait_for_log(&scene, "run", &mut child);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("--resume"));
    let done = scene.losses("run").len() as u64;
    assert!(scene.state("run").metadata()["knet.progress"].contains(&format!("\"iteration\":{done},")));
    let output =
        scene.train("run", &["--resume", "--time-limit", "0.02", "--set", "schedule.iterations=100000"]);
    assert!(stderr(&output).contains(&format!("going on after iteration {done}")));
    assert!(scene.losses("run").len() as u64 > done);
}

#[test]
fn what_does_not_fit_is_named() {
    let scene = Scene::new(&["red", "blue"]);
    scene.train("run", &["--set", "schedule.iterations=1"]);
    let weights = format!("start.weights={:?}", scene.path("run/last.safetensors"));
    let missing = format!("start.weights={:?}", scene.path("nothing.safetensors"));
    let cases: &[(&str, &[&str], i32, &[&str])] = &[
        ("run", &[], 2, &["holds a run already", "--resume", "--out"]),
        (
            "run",
            &["--resume", "--set", "model.channels=24"],
            6,
            &["last.state", "neck.lateral_convs.0.conv.weight", "24"],
        ),
        ("run", &["--resume", "--set", "seed=5"], 2, &["seed: 0 -> 5", "start.weights"]),
        (
            "new",
            &["--set", &weights, "--set", "model.feedforward_channels=64"],
            6,
            &["last.safetensors", "ffn.layers.0.0.weight", "expected [64, 16], found [32, 16]"],
        ),
        ("new", &["--set", &missing], 3, &["nothing.safetensors"]),
        ("run", &["--set", "optimizer.lr=fast"], 2, &["--set", "lr"]),
        ("run", &["--set", "schedule.epochs=1"], 2, &["either epochs or iterations"]),
        ("new", &["--set", "model.base=knet_s3_lite0_fpm"], 2, &["did you mean `knet_s3_lite0_fpn`"]),
        (
            "new",
            &["--set", "model.base=knet_s3_fcn_r50-d8"],
            2,
            &["is semantic", "class of each pixel", "data.json has masks of objects alone"],
        ),
        (
            "new",
            &["--set", "frozen=[\"backbone\", \"neck\", \"rpn_head\", \"roi_head\"]"],
            2,
            &["leave nothing to train"],
        ),
        ("run", &["--set", "augment.flip=2"], 2, &["flip = 2"]),
        // As they stand these would do nothing.
        (
            "new",
            &["--set", "frozen=[\"backbon._conv_stem.\"]"],
            2,
            &["frozen: `backbon._conv_stem.` fits no parameter", "did you mean `backbone._conv_stem.`?"],
        ),
        ("new", &["--set", "start.reset=[\"roi_haed\"]"], 2, &["start.reset: `roi_haed`", "`roi_head.`?"]),
        (
            "new",
            &["--set", "optimizer.groups=[{contains=\"nek\", lr=0.1, weight_decay=1.0}]"],
            2,
            &["optimizer.groups: `nek`", "`neck.`?"],
        ),
        (
            "new",
            &["--set", "model.channels=65536"],
            11,
            &["the model with all its parameters", "GiB of memory"],
        ),
    ];
    for (out, arguments, code, words) in cases {
        let output = scene.run(out, arguments);
        let notes = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {notes}");
        assert!(words.iter().all(|word| notes.contains(word)), "{arguments:?}: {notes}");
    }
    // A field of the file is named with its line.
    std::fs::write(scene.config(), scene.text().replace("copy_paste", "copy_pasta")).unwrap();
    let line = 1 + scene.text().lines().position(|line| line.starts_with("copy_paste")).unwrap();
    let output = scene.run("new", &[]);
    assert_eq!(output.status.code(), Some(2));
    let notes = stderr(&output);
    assert!(
        notes.contains("run.toml") && notes.contains(&format!("line {line}: unknown field `copy_pasta`")),
        "{notes}"
    );
}

#[test]
fn configurations_of_the_repository_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let config = RunConfig::load(&path, &[]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!config.data.val.is_empty(), "{}: no validation", path.display());
        count += 1;
    }
    assert!(count >= 3, "{count} configurations");
}
