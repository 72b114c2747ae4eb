//! `knet bench`

use crate::size::{self, Size};
use crate::{ModelArguments, StageArguments, print};
use clap::Args;
use knet::cuda::gpu::{Target, roofline};
use knet::engine::{Segmentation, Timings};
use knet::plan::{Plan, Step};
use knet::{Engine, Error, Result};
use serde_json::{Value, json};
use single_stream::SingleStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

mod single_stream;
mod training;

/// Time a model on this machine: percentiles of every part, and a table of steps
///
/// The image is synthetic and of the given size, so pre-processing resizes nothing; results hold for any
/// photo of that size except for the number of instances found. Times on a machine that does other work vary:
/// read the spread.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,

    /// Size of the image, that of a photo after its resize [default: the model's own, 800x1333 for COCO]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = size::parse)]
    size: Option<Size>,

    /// Time a training step instead: forward, matching, losses, backward, clipping and AdamW
    ///
    /// The batch is synthetic too: noise with ellipses as objects.
    #[arg(long)]
    train: bool,

    /// Images of a training step
    #[arg(long, value_name = "N", default_value_t = 2, requires = "train", value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,

    /// Objects of an image of a training step
    #[arg(long, value_name = "N", default_value_t = 7, requires = "train", value_parser = clap::value_parser!(u32).range(0..=1000))]
    objects: u32,

    /// Timed runs, after one that is not
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,

    #[command(flatten)]
    stages: StageArguments,

    #[command(flatten)]
    stream: SingleStream,

    /// Leave out the table of steps
    #[arg(long)]
    no_steps: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.stream.single_stream {
        return single_stream::run(arguments);
    }
    let run = if arguments.train { training::run } else { by_part };
    run(arguments).map(|()| ExitCode::SUCCESS)
}

/// Times the parts of a call, and the steps of its network.
fn by_part(arguments: &Arguments) -> Result<()> {
    let builder = arguments.stages.apply(arguments.model.engine()).size(None);
    let mut engine = arguments.model.build(builder)?;
    engine.model().check_clock()?;
    let size = arguments.size.unwrap_or(Size::of(engine.config()));
    let (Size { height, width }, padded) = (size, size.padded(engine.config()));
    let image = synthetic(height, width)?;
    let input = (padded[0], padded[1]);
    let parts = time_parts(&mut engine, &image, input, arguments.runs as usize)?;
    let runs = (arguments.runs as usize).min(10);
    let (plan, steps) = if arguments.no_steps {
        (engine.session().plan(input, knet::model::TapMode::Off)?.0, Vec::new())
    } else {
        engine.session_mut().profile(input, runs)?
    };
    let medians: Vec<f64> = steps.into_iter().map(|times| percentiles(times).p50).collect();
    let config = engine.config();
    if arguments.json {
        let mut report = json!({
            "model": config.name,
            "weights": arguments.model.source().to_string(),
            "task": engine.task().name(),
            "size": [height, width],
            "threads": engine.threads(),
            "device": engine.device(),
            "runs": arguments.runs,
            "gflop": plan.flops() as f64 / 1e9,
        });
        for part in &parts {
            report[part.key] = part.times.to_json();
            report["meaning"][part.key] = part.meaning.into();
        }
        if let Some(target) = engine.model().target() {
            let [least, operations] = least_times(&plan, &target);
            (report["roofline_ms"], report["operations_ms"]) = (least.into(), operations.into());
        }
        report["steps"] = steps_json(&plan, &medians, engine.model().target().as_ref());
        return print(&format!("{report:#}\n"));
    }
    let mut text = format!(
        "{} {}, {height}x{width} (padded {}x{}), {} threads, {}, {} runs\n\n",
        config.name,
        engine.task().name(),
        padded[0],
        padded[1],
        engine.threads(),
        engine.device(),
        arguments.runs
    );
    let title = ["p50", "p90", "p99", "p99.9", "max"].map(|name| format!("{name:>9}")).join(" ");
    text += &format!("{:<10} {title}   ms\n", "part");
    for part in &parts {
        let p = &part.times;
        let row = [p.p50, p.p90, p.p99, p.p999, p.max].map(|ms| format!("{ms:>9.3}")).join(" ");
        text += &format!("{:<10} {row}   {}\n", part.name, part.meaning);
    }
    let network = parts.iter().find(|part| part.key == "network").map_or(0.0, |part| part.times.p50);
    let (gflop, rate) = (plan.flops() as f64 / 1e9, gflops(plan.flops(), network));
    text += &format!("\nnetwork: {gflop:.1} GFLOP, {rate:.1} GFLOP/s (direct-convolution operations)\n");
    if let Some(target) = engine.model().target() {
        let [least, operations] = least_times(&plan, &target);
        let share = |ms: f64| 100.0 * ms / network;
        text += &format!("roofline: {least:.3} ms, step by step, {:.1} % reached; ", share(least));
        text += &format!("operations alone: {operations:.3} ms, {:.1} %\n", share(operations));
    }
    text += &steps_table(&plan, &medians, engine.model().target().as_ref());
    print(&text)
}

/// A row of the table.
struct Part {
    /// Its field in JSON.
    key: &'static str,
    name: &'static str,
    /// What was timed, and by which clock.
    meaning: &'static str,
    times: Percentiles,
}

/// Times of the parts of `runs` calls. On a GPU one graph does everything between the host's copies, so the
/// network alone is timed in runs of its own.
fn time_parts(
    engine: &mut Engine,
    image: &image::RgbImage,
    input: (usize, usize),
    runs: usize,
) -> Result<Vec<Part>> {
    let mut result = Segmentation::default();
    engine.segment_into(image, &mut result)?;
    let (mut timings, mut whole): (Vec<Timings>, Vec<Duration>) = Default::default();
    for _ in 0..runs {
        let start = Instant::now();
        engine.segment_into(image, &mut result)?;
        whole.push(start.elapsed());
        timings.push(engine.timings());
    }
    let part = |key, name, meaning, times| Part { key, name, meaning, times: percentiles(times) };
    let timed = |get: fn(&Timings) -> Duration| timings.iter().map(get).collect::<Vec<_>>();
    let mut parts = if engine.model().target().is_some() {
        vec![
            part("pre", "pre", "host: the image to page-locked memory", timed(|t| t.pre)),
            part(
                "pipeline",
                "pipeline",
                "host's clock: copy in, resize, network, masks, copies out",
                timed(|t| t.network),
            ),
            part("post", "post", "host: results to the caller's memory", timed(|t| t.post)),
            part(
                "network",
                "network",
                "device's clock: a graph of the network alone",
                engine.session_mut().time_network(input, runs)?,
            ),
        ]
    } else {
        vec![
            part("pre", "pre", "resize, normalise, pad", timed(|t| t.pre)),
            part("network", "network", "the network", timed(|t| t.network)),
            part("post", "post", "masks or map at the image's size", timed(|t| t.post)),
        ]
    };
    parts.push(part("total", "end to end", "image in host memory to masks in the caller's", whole));
    Ok(parts)
}

fn gflops(flops: u64, ms: f64) -> f64 {
    if ms > 0.0 { flops as f64 / ms / 1e6 } else { 0.0 }
}

/// The roofline of a plan, and the time of its operations at the device's peak, in milliseconds.
fn least_times(plan: &Plan, target: &Target) -> [f64; 2] {
    [roofline::plan(plan, target), roofline::compute(plan.flops(), target)]
        .map(|time| time.as_secs_f64() * 1e3)
}

/// Bytes that a step moves at least, on a GPU or the CPU.
fn bytes(step: &Step, target: Option<&Target>) -> u64 {
    target.map_or(step.bytes(), |target| roofline::bytes(step, target))
}

/// Every step with its median milliseconds; nothing if there are none.
fn steps_json(plan: &Plan, medians: &[f64], target: Option<&Target>) -> Value {
    let rows = plan.steps.iter().zip(medians).map(|(step, ms)| {
        let mut row = json!({"name": step.name, "op": step.op.name(), "kernel": step.kernel, "ms": ms, "gflops": gflops(step.flops, *ms), "bytes": bytes(step, target)});
        if let Some(target) = target {
            row["roofline_ms"] = (roofline::step(step, target).as_secs_f64() * 1e3).into();
        }
        row
    });
    rows.collect()
}

/// The same for people. On a GPU the last column is the share of the roofline that a step reaches.
fn steps_table(plan: &Plan, medians: &[f64], target: Option<&Target>) -> String {
    let mut text = String::new();
    if medians.is_empty() {
        return text;
    }
    let title = ["step", "operator", "kernel"];
    text += &format!(
        "\n{:<56} {:<20} {:<24} {:>9} {:>8} {:>9} {:>8}{}\n",
        title[0],
        title[1],
        title[2],
        "µs",
        "share",
        "GFLOP/s",
        "GB/s",
        if target.is_some() { "  roofline" } else { "" }
    );
    let total: f64 = medians.iter().sum();
    for (step, ms) in plan.steps.iter().zip(medians) {
        let (share, rate) = (100.0 * ms / total, gflops(step.flops, *ms));
        let (name, op, kernel) = (&step.name, step.op.name(), &step.kernel);
        let bandwidth = gflops(bytes(step, target), *ms);
        text += &format!(
            "{name:<56} {op:<20} {kernel:<24} {:>9.1} {share:>7.1}% {rate:>9.1} {bandwidth:>8.1}",
            1e3 * ms
        );
        if let Some(target) = target {
            let least = roofline::step(step, target).as_secs_f64() * 1e3;
            text += &format!(" {:>8.1}%", if *ms > 0.0 { 100.0 * least / ms } else { 0.0 });
        }
        text.push('\n');
    }
    text
}

/// Milliseconds.
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn to_json(&self) -> Value {
        json!({"p50": self.p50, "p90": self.p90, "p99": self.p99, "p99.9": self.p999, "max": self.max})
    }
}

/// Nearest-rank percentiles.
fn percentiles(mut times: Vec<Duration>) -> Percentiles {
    times.sort_unstable();
    let rank = |share: f64| {
        let index = ((share * times.len() as f64).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    Percentiles { p50: rank(0.5), p90: rank(0.9), p99: rank(0.99), p999: rank(0.999), max: rank(1.0) }
}

/// A picture with large and small structure, the same on every machine.
fn synthetic(height: usize, width: usize) -> Result<image::RgbImage> {
    let pixel = |i: usize| {
        let (y, x, c) = (i / 3 / width, i / 3 % width, i % 3);
        let wave = ((x as f32 / 37.0 + c as f32).sin() + (y as f32 / 23.0).cos()) * 50.0;
        let noise = (i.wrapping_mul(2_654_435_761) >> 13) % 56;
        (100.0 + wave + noise as f32) as u8
    };
    let data = (0..height * width * 3).map(pixel).collect();
    image::RgbImage::from_raw(width as u32, height as u32, data)
        .ok_or_else(|| Error::usage(format!("no image of {height}x{width}")))
}
