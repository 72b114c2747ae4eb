//! `knet-train` on the device: the same bits twice, and after being killed; and runs that change the device.

use crate::beside;
use crate::scene::{Scene, assert_same, stderr};
use knet::engine::{Device, TrainingPrecision};
use libtest_mimic::{Failed, Trial};
use std::time::{Duration, Instant};

/// Updates of a run; its state is saved after half of them.
const UPDATES: usize = 4;

/// Two runs in one go, and one that SIGKILL ended between the save in its middle and its end, and that went on.
fn check_same_bits(ordinal: usize, precision: TrainingPrecision) -> Result<(), Failed> {
    let scene = Scene::new(&["red", "blue"]);
    let (device, precision) = (Device::Cuda(ordinal).to_string(), precision.to_string());
    let length = format!("schedule.iterations={UPDATES}");
    let saves = format!("run.save_iterations={}", UPDATES / 2);
    let settings = ["--device", &device, "--precision", &precision, "--set", &length, "--set", &saves];
    let resume = [&settings[..], &["--resume"]].concat();
    scene.train("whole", &settings);
    scene.train("again", &settings);
    let mut child = scene.command("killed", &resume).spawn()?;
    let begun = Instant::now();
    while !scene.path("killed/last.state").exists() {
        let alive = child.try_wait()?.is_none();
        assert!(alive && begun.elapsed() < Duration::from_secs(300), "no state is saved");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    let half = iteration(&scene, "killed");
    assert_eq!(half, UPDATES as u64 / 2, "the run was to be killed on its way");
    let notes = stderr(&scene.train("killed", &resume));
    assert!(notes.contains(&format!("going on after iteration {half}")), "{notes}");
    for other in ["again", "killed"] {
        assert_same(&scene.state("whole"), &scene.state(other));
        assert_eq!(scene.losses("whole"), scene.losses(other));
    }
    assert_eq!(iteration(&scene, "killed"), UPDATES as u64);
    assert_eq!(scene.losses("killed").len(), UPDATES);
    Ok(())
}

/// Updates that a run's state lies behind.
fn iteration(scene: &Scene, out: &str) -> u64 {
    let state = scene.state(out);
    let progress: serde_json::Value = serde_json::from_str(&state.metadata()["knet.progress"]).unwrap();
    progress["iteration"].as_u64().unwrap()
}

/// A run that begins on the CPU, goes on on the device and ends on the CPU again: it says so, and learns what
/// it would have learnt on the CPU, but for rounding.
fn check_changing_device(ordinal: usize) -> Result<(), Failed> {
    let scene = Scene::new(&["red", "blue"]);
    // Without warm-up and decay, a shorter run is the beginning of a longer one.
    let text = scene.text().replace("warmup = 3", "warmup = 0");
    let text = text.replace("[run]", "decay = { policy = \"constant\" }\n[run]");
    std::fs::write(scene.config(), text)?;
    let device = Device::Cuda(ordinal).to_string();
    let up_to = |updates: usize| format!("schedule.iterations={updates}");
    scene.train("cpu", &["--set", &up_to(4)]);
    scene.train("mixed", &["--device", "cpu", "--set", &up_to(2)]);
    for (on, from, updates) in [(device.as_str(), "cpu", 3), ("cpu", &device, 4)] {
        let output = scene.train("mixed", &["--resume", "--device", on, "--set", &up_to(updates)]);
        let notes = stderr(&output);
        let said = format!("changed since: device: \"{from}\" -> \"{on}\" (sums round otherwise");
        assert!(notes.contains(&said), "{notes}");
    }
    let (wanted, found) = (scene.losses("cpu"), scene.losses("mixed"));
    println!("on the CPU {wanted:?}, in turn {found:?}");
    assert_eq!(wanted[..2], found[..2]);
    assert_eq!((wanted.len(), found.len()), (4, 4));
    for ((iteration, wanted), (_, found)) in wanted.iter().zip(&found) {
        let off = (found / wanted - 1.0).abs();
        // As `training.rs` allows after an update, in which AdamW makes much of gradients that are noise.
        assert!(off < 1e-3, "loss of iteration {iteration}: {found}, {wanted} on the CPU");
    }
    Ok(())
}

/// Trials of this file.
pub fn trials(ordinal: usize) -> Vec<Trial> {
    let mut trials: Vec<Trial> = [TrainingPrecision::F32, TrainingPrecision::Bf16]
        .into_iter()
        .map(|precision| {
            let name = format!("program/same_bits_twice_and_after_a_kill/{precision}");
            beside(name, move || check_same_bits(ordinal, precision))
        })
        .collect();
    trials.push(beside("program/the_device_changes", move || check_changing_device(ordinal)));
    trials
}
