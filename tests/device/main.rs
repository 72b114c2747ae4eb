//! The CUDA back end where `KNET_TEST_DEVICE` names a GPU: a real one (`tools/gpu-suite`) or the emulator's
//! (`tools/with-ptxemu`). Without the variable there is nothing to run. Whole models in f32 on the same
//! device: `--test model goldens::`.
//!
//! An illegal address is the end of its context, and so of every case that follows in the process:
//! `--shard INDEX/COUNT` runs one of COUNT parts, each with whole operators and about as many operations, for
//! as many processes. A case by itself: its name, and `--exact`.

mod ahead;
mod bundle;
mod detectors;
mod half;
mod learning;
mod networks;
mod operators;
mod parts;
mod program;
#[path = "../model/rcnn_golden.rs"]
mod rcnn_golden;
#[path = "../train/scene.rs"]
mod scene;
mod segments;
mod training;

use knet::cuda::Device;
use knet::engine;
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use testkit::device::device;

/// Who works on the device: all trials beside each other, but those that measure how much of its memory is
/// free.
static DEVICE: RwLock<()> = RwLock::new(());

/// A trial that others may run beside.
fn beside(name: impl Into<String>, check: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(name, || {
        let _others = DEVICE.read().unwrap_or_else(PoisonError::into_inner);
        check()
    })
}

/// A trial that has the device to itself.
fn alone(name: impl Into<String>, check: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(name, || {
        let _nobody = DEVICE.write().unwrap_or_else(PoisonError::into_inner);
        check()
    })
}

/// Trials by operator, or what else the first part of their names is, with the operations of each group.
type Groups = BTreeMap<String, (u64, Vec<Trial>)>;

/// Deals groups to as many shards, the largest first and each to the shard that has least: the trials of
/// shard `index`.
fn shard(groups: Groups, (index, count): (usize, usize)) -> Vec<Trial> {
    let mut groups: Vec<(u64, Vec<Trial>)> = groups.into_values().collect();
    groups.sort_by_key(|(flops, _)| std::cmp::Reverse(*flops));
    let mut shards: Vec<(u64, Vec<Trial>)> = (0..count).map(|_| (0, Vec::new())).collect();
    for (flops, trials) in groups {
        let least = shards.iter_mut().min_by_key(|(sum, trials)| (*sum, trials.len()));
        let (sum, all) = least.expect("one shard at least");
        *sum += flops;
        all.extend(trials);
    }
    shards.swap_remove(index).1
}

/// Takes `--shard INDEX/COUNT` out of the command line; by default all is one shard.
fn shard_option(arguments: &mut Vec<String>) -> Result<(usize, usize), String> {
    let Some(at) = arguments.iter().position(|argument| argument == "--shard") else { return Ok((0, 1)) };
    let text = if at + 1 < arguments.len() { arguments.remove(at + 1) } else { String::new() };
    arguments.remove(at);
    let numbers =
        text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
    numbers
        .filter(|(index, count)| index < count)
        .ok_or_else(|| format!("--shard {text}: INDEX/COUNT with an index from 0 to COUNT - 1, such as 0/4"))
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().collect();
    let wanted = shard_option(&mut arguments).unwrap_or_else(|fault| {
        eprintln!("error: {fault}");
        std::process::exit(2)
    });
    let mut trials = Vec::new();
    // Held to the end: a device that nobody holds loses its context, and making one anew for each case takes
    // longer than most cases.
    let mut held = None;
    if let engine::Device::Cuda(ordinal) = device() {
        let device = held.insert(Device::open(ordinal).expect("the device under test"));
        let mut groups = operators::groups(ordinal, device.is_emulated());
        groups.insert("bundle".into(), (0, bundle::trials(ordinal)));
        groups.insert("detectors".into(), (0, detectors::trials(ordinal, device.is_emulated())));
        groups.insert("half".into(), (0, half::trials(device.is_emulated())));
        groups.insert("learning".into(), (0, learning::trials(ordinal)));
        groups.insert("ahead".into(), (0, ahead::trials(ordinal)));
        groups.insert("parts".into(), (0, networks::trials(ordinal, device.is_emulated())));
        groups.insert("program".into(), (0, program::trials(ordinal)));
        groups.insert("segments".into(), (0, segments::trials(ordinal)));
        groups.insert("training".into(), (0, training::trials(ordinal)));
        trials = shard(groups, wanted);
    }
    libtest_mimic::run(&Arguments::from_iter(arguments), trials).exit();
}
