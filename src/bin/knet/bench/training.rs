//! `knet bench --train`

use super::{Arguments, percentiles, steps_json, steps_table, synthetic};
use crate::size::Size;
use crate::training::Setup;
use crate::{PrecisionArgument, print};
use knet::cpu::thread_count;
use knet::engine::{Compute, Device, TrainingPrecision, source};
use knet::isa::Isa;
use knet::model::{Config, Task};
use knet::train::data::Batch;
use knet::train::network::objects::TARGET_STRIDE;
use knet::train::step::TrainStep;
use knet::{Error, Result};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub fn run(arguments: &Arguments) -> Result<()> {
    let source::Opened { config, load, .. } =
        source::open(&arguments.model.source(), arguments.model.model.as_deref())?;
    let size = arguments.size.unwrap_or(Size::of(&config)).padded(&config);
    let batch = batch(&config, arguments, size)?;
    let setup = Setup::new(&config);
    let spec = setup.spec(arguments.batch as usize, size, batch.slots());
    let device = arguments.model.device.unwrap_or(Device::Cpu);
    let precision = match (device, arguments.model.precision) {
        (Device::Cuda(_), None | Some(PrecisionArgument::Bf16)) => TrainingPrecision::Bf16,
        (Device::Cuda(_), Some(PrecisionArgument::F16)) => TrainingPrecision::F16,
        (_, None | Some(PrecisionArgument::F32)) => TrainingPrecision::F32,
        (device, Some(_)) => {
            return Err(Error::usage(format!(
                "--device {device} trains in f32{}",
                if matches!(device, Device::Cuda(_)) { ", bf16 or f16" } else { "" }
            )));
        }
    };
    let threads = thread_count(arguments.model.threads.map_or(0, usize::from));
    let compute = Compute { device, precision, threads };
    let mut step = TrainStep::new(&spec, load, compute)?;
    let lr = setup.optimizer.lr;
    let learnt = step.learn(&batch, lr)?;
    let (losses, grad_norm) = (learnt.losses.clone(), learnt.norm);
    let mut times = Vec::new();
    for _ in 0..arguments.runs {
        let start = Instant::now();
        // As in a run: a GPU has the next batch before the host asks what came of this one.
        step.begin(&batch, Some(lr), None)?;
        step.load(&batch)?;
        step.finish()?;
        times.push(start.elapsed());
    }
    let step_ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    let memory = peak_memory_mb();
    let p = percentiles(times);
    let plan = step.executor().described();
    let mut medians = Vec::new();
    if !arguments.no_steps {
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); plan.steps.len()];
        for _ in 0..arguments.runs.min(5) {
            let mut report = |index: usize, time| times[index].push(time);
            step.learn_timed(&batch, lr, &mut report)?;
        }
        medians = times.into_iter().map(|times| percentiles(times).p50).collect();
    }
    if arguments.json {
        let terms: serde_json::Map<String, Value> =
            losses.terms.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let report = json!({
            "model": config.name,
            "batch": arguments.batch,
            "size": size,
            "objects": arguments.objects,
            "threads": threads,
            "device": compute.device.to_string(),
            "precision": compute.precision.to_string(),
            "isa": Isa::detect().to_string(),
            "step_ms": step_ms,
            "peak_memory_mb": memory,
            "arena_mb": plan.arena_bytes as f64 / 1e6,
            "gflop": plan.flops() as f64 / 1e9,
            "losses": terms,
            "grad_norm": grad_norm,
            "steps": steps_json(&plan, &medians, None),
        });
        return print(&format!("{report:#}\n"));
    }
    let rate = f64::from(arguments.batch) / p.p50 * 1e3;
    let mut text = format!(
        "{} training step on {compute}, {} images of {}x{}, {} objects each, {threads} threads, {}, {} runs\n\n",
        config.name,
        arguments.batch,
        size[0],
        size[1],
        arguments.objects,
        Isa::detect(),
        arguments.runs
    );
    text += &format!("{:<10} {:>9} {:>9} {:>9} {:>9}   ms\n", "part", "p50", "p90", "p99", "max");
    text += &format!("{:<10} {:>9.1} {:>9.1} {:>9.1} {:>9.1}\n", "step", p.p50, p.p90, p.p99, p.max);
    let (arena, gflop) = (plan.arena_bytes as f64 / 1e6, plan.flops() as f64 / 1e9);
    text += &format!("\n{rate:.2} images/s; {gflop:.0} GFLOP; arena {arena:.0} MB");
    text += &memory.map_or("\n".to_string(), |mb| format!(", peak memory {mb:.0} MB\n"));
    text += &steps_table(&plan, &medians, None);
    print(&text)
}

/// Synthetic images with ellipses of random place, size and class as objects, or with classes in squares; the
/// same on every machine.
fn batch(config: &Config, arguments: &Arguments, size: [usize; 2]) -> Result<Batch> {
    let [images, objects] = [arguments.batch, arguments.objects].map(|n| n as usize);
    let picture = synthetic(size[0], size[1])?;
    let pixels: Vec<f32> = picture.as_raw().iter().map(|&v| (f32::from(v) - 120.0) / 58.0).collect();
    let empty =
        Batch { size, images: pixels.repeat(images), ids: (0..images as u64).collect(), ..Batch::default() };
    if config.task == Task::Semantic {
        let [height, width] = size;
        let class = |at: usize| (at / width % height / 32 * 7 + at % width / 32) % config.classes.count();
        let classes = (0..images * height * width).map(|at| class(at) as i32).collect();
        return Ok(Batch { classes, ..empty });
    }
    let slots = (objects + config.classes.stuff.min(4)).max(1);
    let [height, width] = size.map(|side| side / TARGET_STRIDE);
    let mut batch = Batch {
        masks: vec![0.0; images * slots * height * width],
        labels: vec![-1; images * slots],
        things: vec![objects; images],
        objects: vec![slots.min(objects + config.classes.stuff.min(4)); images],
        ..empty
    };
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    for slot in 0..images * slots {
        let within = slot % slots;
        let stuff = within >= objects;
        if stuff && within - objects >= config.classes.stuff {
            continue;
        }
        batch.labels[slot] = match stuff {
            true => (config.classes.things + within - objects) as i32,
            false => (draw() * config.classes.things as f32) as i32,
        };
        let [cy, cx, ry, rx] = [draw(), draw(), 0.05 + 0.2 * draw(), 0.05 + 0.2 * draw()];
        let plane = &mut batch.masks[slot * height * width..][..height * width];
        for (index, value) in plane.iter_mut().enumerate() {
            let (y, x) = ((index / width) as f32 / height as f32, (index % width) as f32 / width as f32);
            let inside = ((y - cy) / ry).powi(2) + ((x - cx) / rx).powi(2) < 1.0;
            *value = f32::from(u8::from(inside));
        }
    }
    Ok(batch)
}

/// Peak resident memory of this process in MB, where the system tells.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
