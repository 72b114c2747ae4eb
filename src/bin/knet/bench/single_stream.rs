//! `knet bench --single-stream`: one frame after the other, as MLPerf's scenario of that name has it.

use super::{Percentiles, percentiles, synthetic};
use crate::size::Size;
use crate::{allocations, guard, picture, print};
use clap::Args;
use knet::Engine;
use knet::engine::Segmentation;
use knet::error::say;
use knet::fsio::atomic_write;
use knet::image::RgbImage;
use knet::image::decode::{Limits, decode_checked};
use knet::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What MLPerf asks for where the 99th percentile is to be known.
const QUERIES: u32 = 6636;
/// Frames before those that count.
const WARM_UP: usize = 20;
/// Bars of the histogram.
const BARS: usize = 80;

/// What ends a drawing of ours.
const MARK: &str = "<!-- knet bench -->";

#[derive(Args)]
pub struct SingleStream {
    /// Time one frame after the other instead, as MLPerf's single stream: from an image in host memory to
    /// masks in the caller's, after 20 frames that do not count
    #[arg(long, conflicts_with = "train")]
    pub single_stream: bool,

    /// Frames of the single stream [default: 6636, or as many as --seconds takes]
    #[arg(long, value_name = "N", requires = "single_stream", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    queries: Option<u32>,

    /// Time that the single stream takes
    #[arg(long, value_name = "T", requires = "single_stream", conflicts_with = "queries", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,

    /// Photo of the single stream, resized as `knet segment` does [default: a synthetic picture of --size]
    #[arg(long, value_name = "IMAGE", requires = "single_stream")]
    image: Option<PathBuf>,

    /// Draw the latencies of the single stream to this file
    #[arg(long, value_name = "SVG", requires = "single_stream")]
    histogram: Option<PathBuf>,

    /// Count what the program allocates during the single stream, and fail (exit code 1) if it is anything
    #[arg(long, requires = "single_stream")]
    check_allocations: bool,
}

pub fn run(arguments: &super::Arguments) -> Result<ExitCode> {
    let stream = &arguments.stream;
    if let Some(path) = &stream.histogram {
        let inputs: guard::Inputs =
            stream.image.iter().cloned().chain(arguments.model.weights_file()).collect();
        guard::check(path, &inputs, is_histogram, false)?;
    }
    let sides = arguments.size.filter(|_| stream.image.is_some()).map(Size::sides);
    let builder = arguments.stages.apply(arguments.model.engine()).size(sides);
    let mut engine = arguments.model.build(builder)?;
    let image = match &stream.image {
        Some(path) => picture(&path.to_string_lossy(), decode_checked(path, &Limits::default())?),
        None => {
            let size = arguments.size.unwrap_or(Size::of(engine.config()));
            synthetic(size.height, size.width)?
        }
    };
    let Measured { latencies, elapsed, allocations, found, stages } = measure(&mut engine, &image, stream)?;
    let (frames, mean) = (latencies.len(), latencies.iter().sum::<Duration>().as_secs_f64() * 1e3);
    let mean = mean / frames as f64;
    if let Some(path) = &stream.histogram {
        let title =
            format!("{}, {}x{}, {}", engine.config().name, image.height(), image.width(), engine.device());
        draw(path, &title, &latencies)?;
    }
    let p = percentiles(latencies.clone());
    let rate = frames as f64 / elapsed.as_secs_f64();
    if arguments.json {
        let mut latency = p.to_json();
        latency["mean"] = mean.into();
        let report = json!({
            "scenario": "single stream",
            "model": engine.config().name,
            "weights": arguments.model.source().to_string(),
            "task": engine.task().name(),
            "image": [image.height(), image.width()],
            "threads": engine.threads(),
            "device": engine.device(),
            "warm_up": WARM_UP,
            "queries": frames,
            "seconds": elapsed.as_secs_f64(),
            "queries_per_second": rate,
            "latency_ms": latency,
            "histogram_ms": Histogram::of(&latencies).to_json(),
            "found": found,
            "deadline_ms": arguments.stages.deadline.map(|deadline| deadline.as_secs_f64() * 1e3),
            "frames_by_stages": stages,
            "allocations": stream.check_allocations.then_some(allocations),
        });
        print(&format!("{report:#}\n"))?;
    } else {
        let (config, image) = (engine.config(), format!("{}x{}", image.height(), image.width()));
        let (task, threads) = (engine.task().name(), engine.threads());
        let mut text = format!("{} {task}, {image}, {threads} threads, {}\n", config.name, engine.device());
        text += &format!(
            "single stream: {frames} frames in {:.1} s after {WARM_UP} that do not count, ",
            elapsed.as_secs_f64()
        );
        text += &format!("{rate:.1} frames/s, {found} found in the last\n");
        if let Some(deadline) = arguments.stages.deadline {
            let late = latencies.iter().filter(|latency| **latency > deadline).count();
            text += &format!("deadline {:.1} ms: {late} frames were late; ", deadline.as_secs_f64() * 1e3);
            let counts = stages.iter().enumerate().filter(|(_, frames)| **frames > 0).rev();
            let counts: Vec<String> =
                counts.map(|(count, frames)| format!("{frames} of {count} stages")).collect();
            text += &format!("{}\n", counts.join(", "));
        }
        text.push('\n');
        let title = ["mean", "p50", "p90", "p99", "p99.9", "max"].map(|name| format!("{name:>9}")).join(" ");
        let row = [mean, p.p50, p.p90, p.p99, p.p999, p.max].map(|ms| format!("{ms:>9.3}")).join(" ");
        text += &format!(
            "{:<10} {title}   ms\n{:<10} {row}   image in host memory to masks in the caller's\n",
            "", "latency"
        );
        if stream.check_allocations {
            text += &format!("\nallocations: {allocations}\n");
        }
        print(&text)?;
    }
    if stream.check_allocations && allocations > 0 {
        say(format_args!("error: {allocations} allocations in {frames} frames, where none was to be"));
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

struct Measured {
    latencies: Vec<Duration>,
    /// Of all frames, one after the other.
    elapsed: Duration,
    allocations: u64,
    /// Objects, segments or classes in the last frame.
    found: usize,
    /// Frames by the number of stages that made them, from 0.
    stages: Vec<u64>,
}

fn measure(engine: &mut Engine, image: &RgbImage, stream: &SingleStream) -> Result<Measured> {
    let mut result = Segmentation::default();
    let warm = Instant::now();
    for _ in 0..WARM_UP {
        engine.segment_into(image, &mut result)?;
    }
    let frame = warm.elapsed() / WARM_UP as u32;
    let limit = stream.seconds.map(|seconds| Duration::from_secs(seconds.into()));
    // Room for every latency is made before the first: twice what a time holds if frames take what they took.
    let queries = match limit {
        Some(limit) => (2.0 * limit.as_secs_f64() / frame.as_secs_f64().max(1e-6)) as usize + 1000,
        None => stream.queries.unwrap_or(QUERIES) as usize,
    };
    let mut latencies = Vec::with_capacity(queries);
    let mut stages = vec![0; engine.config().head.stages + 1];
    let before = allocations::count();
    let start = Instant::now();
    while latencies.len() < queries && limit.is_none_or(|limit| start.elapsed() < limit) {
        let start = Instant::now();
        engine.segment_into(image, &mut result)?;
        latencies.push(start.elapsed());
        stages[result.stages()] += 1;
    }
    let (elapsed, allocations) = (start.elapsed(), allocations::count() - before);
    Ok(Measured { latencies, elapsed, allocations, found: result.found().count(), stages })
}

/// Frames by latency, in bars of one width.
struct Histogram {
    low: f64,
    high: f64,
    /// Of a bar, ms.
    width: f64,
    bars: [u32; BARS],
}

impl Histogram {
    fn of(latencies: &[Duration]) -> Self {
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        let (low, high) =
            latencies.iter().map(ms).fold((f64::MAX, 0.0), |(low, high), t| (t.min(low), t.max(high)));
        let width = ((high - low) / BARS as f64).max(1e-6);
        let mut bars = [0u32; BARS];
        for time in latencies {
            bars[(((ms(time) - low) / width) as usize).min(BARS - 1)] += 1;
        }
        Self { low, high, width, bars }
    }

    fn to_json(&self) -> Value {
        json!({ "from": self.low, "width": self.width, "frames": self.bars.as_slice() })
    }
}

/// Frames by latency, on a logarithmic scale, so that single late ones are seen; percentiles as lines.
fn draw(path: &Path, title: &str, latencies: &[Duration]) -> Result<()> {
    let mut svg = String::new();
    chart(&mut svg, title, latencies).map_err(|e| Error::io(path, std::io::Error::other(e.to_string())))?;
    atomic_write(path, |out| writeln!(out, "{svg}{MARK}"))
}

fn chart(
    svg: &mut String,
    title: &str,
    latencies: &[Duration],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let Histogram { low, high, width, bars } = Histogram::of(latencies);
    // Half a frame is the floor of a logarithmic scale on which one frame is to be seen.
    let (floor, top) = (0.5, 2.0 * f64::from(bars.into_iter().max().unwrap_or(1)));
    let area = SVGBackend::with_string(svg, (960, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let caption = format!("{title}: {} frames", latencies.len());
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(low..low + width * BARS as f64, (floor..top).log_scale())?;
    let mut mesh = chart.configure_mesh();
    let whole = |frames: &f64| format!("{frames:.0}");
    mesh.disable_x_mesh().max_light_lines(0).y_label_formatter(&whole);
    mesh.x_desc("latency, ms").y_desc("frames").draw()?;
    let bar = |(index, &count): (usize, &u32)| {
        let left = low + width * index as f64;
        Rectangle::new([(left, floor), (left + width, f64::from(count))], RGBColor(0, 114, 178).filled())
    };
    chart.draw_series(bars.iter().enumerate().filter(|(_, count)| **count > 0).map(bar))?;
    let Percentiles { p50, p90, p99, p999, .. } = percentiles(latencies.to_vec());
    let red = RGBColor(213, 94, 0);
    for (row, (name, at)) in
        [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999)].into_iter().enumerate()
    {
        chart.draw_series([PathElement::new([(at, floor), (at, top)], red)])?;
        // One below the other, as they lie close together, and on the side where there is room.
        let height = top / 1.6f64.powi(row as i32 + 1);
        let is_right = at > low + 0.8 * (high - low);
        let side = if is_right { HPos::Right } else { HPos::Left };
        let style = ("sans-serif", 13).into_font().color(&red).pos(Pos::new(side, VPos::Center));
        chart.draw_series([Text::new(format!(" {name} {at:.2} "), (at, height), style)])?;
    }
    area.present()?;
    drop(chart);
    drop(area);
    Ok(())
}

/// Whether this program drew the file.
fn is_histogram(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim_end().ends_with(MARK))
}
