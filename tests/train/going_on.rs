//! What is kept when something goes wrong, and what may change when a run goes on.

use crate::{Scene, assert_same, names_in, stderr, wait_for_log};
use knet::train::run::RunConfig;
use std::process::{Command, Output, Stdio};

fn epochs_and_iterations(scene: &Scene, out: &str) -> (u64, u64) {
    let state = scene.state(out);
    let progress: serde_json::Value = serde_json::from_str(&state.metadata()["knet.progress"]).unwrap();
    (progress["position"]["epoch"].as_u64().unwrap(), progress["iteration"].as_u64().unwrap())
}

/// Three photos: an epoch is three updates of one, and one and a half of two.
fn epochs(scene: &Scene, out: &str, batch: usize, epochs: usize, more: &[&str]) -> Output {
    let text = scene.text().replace("iterations = 6", &format!("epochs = {epochs}"));
    std::fs::write(scene.config(), text.replace("batch = 2", &format!("batch = {batch}"))).unwrap();
    scene.train(out, more)
}

#[test]
fn epochs_are_epochs_whatever_the_batch_was() {
    let scene = Scene::new(&["red", "blue"]);
    epochs(&scene, "small", 1, 2, &[]);
    assert_eq!(epochs_and_iterations(&scene, "small"), (2, 6));
    let notes = stderr(&epochs(&scene, "small", 2, 4, &["--resume"]));
    assert!(notes.contains("changed since: data.batch: 1 -> 2"), "{notes}");
    assert!(notes.contains("changed since: schedule.epochs: 2 -> 4"), "{notes}");
    assert_eq!(epochs_and_iterations(&scene, "small"), (4, 9));
    let before = scene.losses("small");
    // All four epochs are done: a smaller batch makes no more of them.
    epochs(&scene, "small", 1, 4, &["--resume"]);
    assert_eq!(scene.losses("small"), before);
    assert_eq!(epochs_and_iterations(&scene, "small"), (4, 9));

    let output = scene
        .run("small", &["--resume", "--set", "data.sampling.several_weight=2", "--set", "data.strict=true"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    for part in ["data.sampling.several_weight: 1.0 -> 2.0", "data.strict: false -> true", "start.weights"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    let output = scene.run("hopeless", &["--set", "schedule.epochs=1000000000000"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("more than any run can see"), "{}", stderr(&output));
}

fn val(scene: &Scene, file: &str, images: &str) -> String {
    let (file, images) = (scene.path(file), scene.path(images));
    format!("data.val=[{{format=\"coco_instance\", annotations={file:?}, images={images:?}}}]")
}

#[test]
fn a_validation_that_fails_does_not_cost_the_run() {
    let scene = Scene::new(&["red", "blue"]);
    std::fs::create_dir(scene.path("val")).unwrap();
    for id in 1..4 {
        std::fs::copy(scene.path(&format!("{id}.png")), scene.path(&format!("val/{id}.png"))).unwrap();
    }
    // What is wrong with the files is said before the run begins.
    let text = std::fs::read_to_string(scene.path("data.json")).unwrap();
    std::fs::write(scene.path("bad.json"), text.replacen("\"iscrowd\":0", "\"iscrowd\":\"no\"", 1)).unwrap();
    let output = scene.run("run", &["--set", &val(&scene, "bad.json", "val")]);
    assert_eq!(output.status.code(), Some(8), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("bad.json: annotation 1 (image 1): `iscrowd` is \"no\""),
        "{}",
        stderr(&output)
    );
    assert!(!scene.path("run").exists());

    let set = val(&scene, "data.json", "val");
    let long = [
        "--set",
        &set,
        "--set",
        "schedule.iterations=60",
        "--set",
        "run.validate_epochs=8",
        "--set",
        "run.save_iterations=0",
    ];
    let mut child = scene.command("run", &long).spawn().unwrap();
    wait_for_log(&scene, "run", &mut child);
    std::fs::remove_file(scene.path("val/2.png")).unwrap();
    let output = child.wait_with_output().unwrap();
    let notes = stderr(&output);
    // The run went on past the validations on its way; the one at its end is its result.
    assert_eq!(output.status.code(), Some(8), "{notes}");
    assert!(
        notes.contains("not validated: ") && notes.contains("val/2.png") && notes.contains("the run goes on"),
        "{notes}"
    );
    assert_eq!(epochs_and_iterations(&scene, "run").1, 60);
    assert_eq!(scene.losses("run").len(), 60);
    std::fs::copy(scene.path("2.png"), scene.path("val/2.png")).unwrap();
    scene.train("run", &[&long[..], &["--resume"]].concat());
    assert!(scene.path("run/best.safetensors").exists());
}

#[test]
fn a_folder_has_one_run_and_is_swept() {
    let scene = Scene::new(&["red", "blue"]);
    let long = ["--set", "schedule.iterations=100000", "--set", "run.save_iterations=0"];
    let mut child = scene.command("run", &long).spawn().unwrap();
    wait_for_log(&scene, "run", &mut child);
    for more in [&[][..], &["--resume"]] {
        let output = scene.run("run", &[&long[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let pid = format!("process {} on ", child.id());
        assert!(
            stderr(&output).contains("in use by another run") && stderr(&output).contains(&pid),
            "{}",
            stderr(&output)
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::write(scene.path("run/.last.state.77-3.tmp"), b"half a state").unwrap();
    let notes = stderr(&scene.train("run", &["--resume"]));
    assert!(notes.contains("taken over from a dead run"), "{notes}");
    let names = names_in(&scene.path("run"));
    assert!(!names.iter().any(|name| name.ends_with(".tmp") || name == "run.lock"), "{names:?}");
}

/// `nohup knet-train ... 2>&1 | tee log` whose terminal goes away, and `tee` with it.
#[test]
#[cfg(unix)]
fn a_run_outlives_its_terminal_and_its_log() {
    let scene = Scene::new(&["red", "blue"]);
    let run = scene.command("run", &["--set", "schedule.iterations=60", "--set", "run.save_iterations=0"]);
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    let mut child = nohup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_log(&scene, "run", &mut child);
    drop((child.stdout.take(), child.stderr.take()));
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(epochs_and_iterations(&scene, "run").1, 60);
    // A full disk behind standard error: the error's code is its own.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = scene.command("none", &["--set", "no.such=1"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn what_is_for_people_alone_never_ends_a_run() {
    let scene = Scene::new(&["red", "blue"]);
    // Folders where the pictures belong.
    std::fs::create_dir_all(scene.path("run/curves.png")).unwrap();
    std::fs::write(scene.path("run/overlays"), b"in the way").unwrap();
    let notes = stderr(&scene.train("run", &["--set", "run.overlay_minutes=60"]));
    assert!(notes.contains("not drawn: ") && notes.contains("curves.png"), "{notes}");
    assert_eq!(epochs_and_iterations(&scene, "run").1, 6);
}

#[test]
fn a_run_says_as_much_as_was_asked_for() {
    let scene = Scene::new(&["red", "blue"]);
    let quiet = scene.train("quiet", &["-q"]);
    assert!(quiet.stderr.is_empty(), "{}", stderr(&quiet));
    assert!(String::from_utf8_lossy(&quiet.stdout).starts_with("done: 6 iterations"));
    let verbose = stderr(&scene.train("verbose", &["--verbose"]));
    let updates = verbose.lines().filter_map(|line| line.split_once("/6 epoch ")).map(|(number, _)| number);
    assert_eq!(updates.collect::<Vec<_>>(), ["1", "2", "3", "4", "5", "6"], "{verbose}");
    assert_same(&scene.state("quiet"), &scene.state("verbose"));
}

#[test]
fn a_folder_is_all_that_going_on_needs() {
    let scene = Scene::new(&["red", "blue"]);
    // A shorter run is the beginning of a longer one without a warm-up and a decay.
    let text = scene.text().replace("warmup = 3", "warmup = 0");
    let text = text.replace("[run]", "decay = { policy = \"constant\" }\n[run]");
    std::fs::write(scene.config(), text).unwrap();
    scene.train("whole", &[]);
    scene.train("part", &["--set", "schedule.iterations=2", "--overfit", "3"]);
    scene.train("other", &["--overfit", "3"]);
    std::fs::remove_file(scene.config()).unwrap();
    let resume = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet-train"));
        command.arg(scene.path("part")).args(more).output().unwrap()
    };
    let output = resume(&["--resume", "--set", "schedule.iterations=6"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // With what the command line said when the run began, too.
    assert_same(&scene.state("other"), &scene.state("part"));
    assert_eq!(scene.losses("other"), scene.losses("part"));
    assert_ne!(scene.losses("whole"), scene.losses("part"));

    // The file for people is a configuration, and says what the run was.
    let file = scene.path("part/config.toml");
    let kept = RunConfig::load(&file, &[]).unwrap();
    assert_eq!((kept.schedule.iterations, kept.data.sampling.overfit), (Some(6), Some(3)));
    // Before the first save it is all there is.
    std::fs::remove_file(scene.path("part/last.state")).unwrap();
    let output = resume(&["--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same(&scene.state("other"), &scene.state("part"));
    // A file of this name that is someone's own stays.
    std::fs::write(&file, "# mine").unwrap();
    assert!(resume(&["--resume"]).status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "# mine");

    for (more, said) in [(&[][..], "add --resume"), (&["--resume", "--out", "x"], "leave out --out")] {
        let output = resume(more);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
    for name in ["last.state", "config.toml"] {
        std::fs::remove_file(scene.path("part").join(name)).unwrap();
    }
    let output = resume(&["--resume"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("neither last.state nor config.toml"), "{}", stderr(&output));
}

#[test]
fn counters_that_no_run_can_reach_are_damage() {
    let scene = Scene::new(&["red", "blue"]);
    scene.train("run", &[]);
    let path = scene.path("run/last.state");
    let sound = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&sound[8..8 + length]).unwrap();
    let progress = header["__metadata__"]["knet.progress"].as_str().unwrap();
    let progress: serde_json::Value = serde_json::from_str(progress).unwrap();
    let largest = serde_json::json!(u64::MAX);
    for (pointer, value) in [
        ("/iteration", largest.clone()),
        ("/position/epoch", largest.clone()),
        ("/validated/0", largest),
        ("/seconds", (-1.0).into()),
        ("/validated/1", 1e300.into()),
        ("/best", 7.into()),
    ] {
        let (mut header, mut progress) = (header.clone(), progress.clone());
        *progress.pointer_mut(pointer).unwrap() = value;
        header["__metadata__"]["knet.progress"] = progress.to_string().into();
        let text = header.to_string();
        let file = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &sound[8 + length..]].concat();
        std::fs::write(&path, file).unwrap();
        let output = scene.run("run", &["--resume"]);
        assert_eq!(output.status.code(), Some(5), "{pointer}: {}", stderr(&output));
        assert!(stderr(&output).contains("`knet.progress`"), "{pointer}: {}", stderr(&output));
    }
}
