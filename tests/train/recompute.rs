//! What the backward pass makes again has the bits of what it would have kept: losses, weights, moments and
//! running statistics are those of a run that keeps all.

use crate::gpus::{ON_GPU, on_gpus};
use crate::{SIDE, Scene, semantic, stderr};
use knet::checkpoint::seeded;
use knet::dist::Share;
use knet::engine::Compute;
use knet::graph::Param;
use knet::train::data::{Batch, Mix, Reading};
use knet::train::network::build_training;
use knet::train::run::RunConfig;
use knet::train::run::forecast::{ALL, Fit};
use knet::train::step::TrainStep;
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
fn every_head_learns_the_same() {
    for generator in ["uper", "psp", "aspp"] {
        check(&semantic::scene(generator, 1), &["--set", "schedule.iterations=3"], |_| {});
    }
}

/// However many of the stretches are made again: those of the backbone, the head, its stages and its losses.
#[test]
fn any_number_of_stretches_gives_the_same() {
    let scene = semantic::scene("uper", 2);
    let config = RunConfig::load(&scene.config(), &[]).unwrap();
    let mix = Mix::open(&config.data.train, &Reading::default()).unwrap();
    let model = config.model(&mix, None).unwrap();
    let side = SIDE as usize;
    let pixels = 2 * side * side;
    let batch = Batch {
        size: [side; 2],
        images: (0..3 * pixels).map(|i| ((i * 7919) % 255) as f32 / 128.0 - 1.0).collect(),
        classes: (0..pixels).map(|i| (i / 11 % 3) as i32).collect(),
        ids: vec![1, 2],
        ..Batch::default()
    };
    let spec = |recompute| config.step(&model, Fit { images: 2, recompute }, Share::ALONE);
    let stretches = build_training(&spec(0)).unwrap().stretches;
    let names: Vec<&str> = stretches.iter().map(|stretch| stretch.name.as_str()).collect();
    for part in [
        "decode_head.kernel_generate_head",
        "decode_head.kernel_update_head.1",
        "auxiliary_head",
        "decode.loss_ce.s2",
        "aux.loss_ce",
    ] {
        assert!(names.contains(&part), "no {part} in {names:?}");
    }
    let learn = |recompute| {
        let load = |param: &Param| seeded::tensor(&param.key, &param.upstream_shape, 0);
        let mut step = TrainStep::new(&spec(recompute), Box::new(load), Compute::cpu(2)).unwrap();
        let learnt = step.learn(&batch, 1e-3).unwrap();
        let mut told: Vec<u32> = learnt.losses.terms.iter().map(|(_, value)| value.to_bits()).collect();
        let values = step.parameters().unwrap().into_iter().flat_map(|(_, value)| value.into_data());
        told.extend(values.map(f32::to_bits));
        (told, step.executor().described())
    };
    let (wanted, kept) = learn(0);
    for count in (1..stretches.len()).step_by(3).chain([ALL]) {
        let (found, plan) = learn(count);
        assert!(found == wanted, "{count} of {names:?}");
        assert!(plan.steps.len() > kept.steps.len() && plan.arena_bytes <= kept.arena_bytes, "{count}");
    }
}

#[test]
fn a_gpu_learns_the_same() {
    let settings = [&WHOLE[..], &ON_GPU, &["--set", "schedule.iterations=2"]].concat();
    check(&Scene::new(&["red", "blue"]), &settings, |command| {
        on_gpus(command, 1);
    });
    let settings = [&ON_GPU[..], &["--set", "schedule.iterations=2", "--set", "data.val=[]"]].concat();
    check(&semantic::scene("uper", 1), &settings, |command| {
        on_gpus(command, 1);
    });
}
