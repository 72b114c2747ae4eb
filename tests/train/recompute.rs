//! What the backward pass makes again has the bits of what it would have kept: losses, weights, moments and
//! running statistics are those of a run that keeps all.

use crate::gpus::{ON_GPU, on_gpus};
use crate::{Scene, semantic, stderr};
use std::process::Command;

const ON: [&str; 2] = ["--set", "recompute=on"];
const OFF: [&str; 2] = ["--set", "recompute=off"];

/// Trains in both ways, each started by what `prepare` makes of the program's call.
fn check(scene: &Scene, settings: &[&str], prepare: impl Fn(&mut Command)) {
    for (out, way) in [("kept", OFF), ("again", ON)] {
        let mut command = scene.command(out, &[settings, &way].concat());
        prepare(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    scene.check_same("kept", "again");
}

/// Batch norms are trained, so that running statistics follow each batch once.
const WHOLE: [&str; 4] = ["--set", "frozen=[]", "--set", "batch_norm=train"];

#[test]
fn a_detector_learns_the_same() {
    check(&Scene::new(&["red", "blue"]), &WHOLE, |_| {});
}

/// Channels and paths are dropped, of both batches of an update.
#[test]
fn a_semantic_model_learns_the_same() {
    let scene = semantic::scene("fcn", 1);
    let dropped = ["--set", "dropout={channel=0.5, path=0.5}", "--set", "data.accumulate=2"];
    check(&scene, &dropped, |_| {});
    let scene = semantic::scene("fcn", 1);
    let swin = "model.backbone={type=\"swin\", channels=8, depths=[2,2,2,2], heads=[1,1,2,2], window=4}";
    check(&scene, &[&dropped[..], &["--set", swin]].concat(), |_| {});
}

#[test]
fn a_gpu_learns_the_same() {
    let settings = [&WHOLE[..], &ON_GPU, &["--set", "schedule.iterations=2"]].concat();
    check(&Scene::new(&["red", "blue"]), &settings, |command| {
        on_gpus(command, 1);
    });
}
