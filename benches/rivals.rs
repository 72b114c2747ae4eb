//! The race: K-Net and other detectors on one engine, with seeded weights, photo in and masks out.
//!
//! `race/SIZE/MODEL` are criterion's benches, one model after the other. The table at the end is the race:
//! all models in turn, round by round, so that whatever else the machine does meets all of them; with the
//! parts of each and the ratio to K-Net, of which its paper says 1.7 for Cascade Mask R-CNN R50 on a GPU (16.2
//! frames a second against 9.5). It is written to `target/race.json`, in the form of
//! `benches/results/README.md`; `cargo bench --bench rivals -- table` makes it alone.
//!
//! Seeded weights find what they find: the two-stage detectors hold a thousand proposals and a hundred
//! detections each, as on a busy photo; so many masks are pasted. SOLOv2 makes masks of five hundred kernels
//! (those of seeded weights are made to differ: see `src/checkpoint/seeded.rs`), CondInst of a hundred boxes.
//! What chooses among them counts as what comes after the heads. `KNET_THREADS` sets the number of threads
//! (2).

mod common;
#[path = "common/results.rs"]
mod results;

use criterion::{BenchmarkId, Criterion, SamplingMode};
use image::{Rgb, RgbImage};
use knet::engine::{Device, WeightSource};
use knet::{Engine, Result, Segmentation};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Models over one backbone: K-Net, then the others.
const FAMILIES: [&[(&str, &str)]; 2] = [
    &[
        ("knet_s3_r50_fpn", "K-Net R50"),
        ("mask_rcnn_r50_fpn", "Mask R-CNN R50"),
        ("cascade_mask_rcnn_r50_fpn", "Cascade Mask R-CNN R50"),
        ("solov2_r50_fpn", "SOLOv2 R50"),
        ("condinst_r50_fpn", "CondInst R50"),
    ],
    &[
        ("knet_s3_r101_fpn", "K-Net R101"),
        ("mask_rcnn_r101_fpn", "Mask R-CNN R101"),
        ("cascade_mask_rcnn_r101_fpn", "Cascade Mask R-CNN R101"),
    ],
];
const SIZES: [(usize, usize); 3] = [(320, 320), (512, 512), (800, 1333)];
const ROUNDS: usize = 7;
/// What a frame is divided into.
const PARTS: [&str; 5] = ["before", "backbone", "neck", "heads", "after"];

fn photo((height, width): (usize, usize)) -> RgbImage {
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let wave = |c: f32| (100.0 + 50.0 * ((x as f32 / 37.0 + c).sin() + (y as f32 / 23.0).cos())) as u8;
        Rgb([0.0, 1.0, 2.0].map(wave))
    })
}

/// A model that is ready for photos of a size.
struct Racer {
    engine: Engine,
    photo: RgbImage,
    found: Segmentation,
    /// Seconds of each round, and of its parts.
    rounds: Vec<f64>,
    parts: [Vec<f64>; PARTS.len()],
}

impl Racer {
    fn new(model: &str, size: (usize, usize)) -> Result<Racer> {
        let builder = Engine::builder().weights(WeightSource::Seeded(0)).model(model);
        let mut engine = builder.threads(common::threads()).device(Device::Cpu).size(None).build()?;
        let (photo, mut found) = (photo(size), Segmentation::default());
        engine.segment_into(&photo, &mut found)?;
        Ok(Racer { engine, photo, found, rounds: Vec::new(), parts: Default::default() })
    }

    fn run(&mut self) -> Duration {
        let start = Instant::now();
        self.engine.segment_into(&self.photo, &mut self.found).expect("a result");
        start.elapsed()
    }

    /// A frame, and a run of the network whose steps are timed for its parts.
    fn round(&mut self) {
        let seconds = self.run().as_secs_f64();
        self.rounds.push(seconds);
        let timings = self.engine.timings();
        let config = self.engine.config();
        let size = [self.photo.height(), self.photo.width()]
            .map(|side| (side as usize).next_multiple_of(config.size_divisor()));
        let (plan, times) = self.engine.session_mut().profile(size.into(), 1).expect("a plan");
        let mut parts = [timings.pre.as_secs_f64(), 0.0, 0.0, 0.0, timings.post.as_secs_f64()];
        for (step, times) in plan.steps.iter().zip(times) {
            let mut name = step.name.split('.');
            let part = match (name.next(), name.next()) {
                (Some("backbone"), _) => 1,
                (Some("neck"), _) => 2,
                // What a one-stage detector chooses, and the masks that it makes of that.
                (Some("mask_head" | "bbox_head"), Some("best" | "masks" | "candidates" | "detections")) => 4,
                _ => 3,
            };
            parts[part] += times[0].as_secs_f64();
        }
        self.parts.iter_mut().zip(parts).for_each(|(all, part)| all.push(part));
    }
}

fn benches(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("race/{}x{}", size.0, size.1));
        group.sampling_mode(SamplingMode::Flat);
        for &(model, _) in FAMILIES.iter().copied().flatten() {
            let mut racer = None;
            group.bench_function(BenchmarkId::from_parameter(model), |bencher| {
                let racer = racer.get_or_insert_with(|| Racer::new(model, size).expect("a model"));
                bencher.iter_custom(|runs| (0..runs).map(|_| racer.run()).sum());
            });
        }
    }
}

/// Runs the race and gives it in the form of the results.
fn race() -> Result<Vec<Value>> {
    let mut races = Vec::new();
    for size in SIZES {
        for family in FAMILIES {
            let made = family.iter().map(|(model, _)| Racer::new(model, size));
            let mut racers = made.collect::<Result<Vec<_>>>()?;
            for _ in 0..ROUNDS {
                racers.iter_mut().for_each(Racer::round);
            }
            let first = results::median(&racers[0].rounds);
            println!("{}x{}: seconds of a frame, ratio to {}; parts", size.0, size.1, family[0].1);
            let mut entries = Vec::new();
            for ((model, label), racer) in family.iter().zip(&racers) {
                let seconds = results::median(&racer.rounds);
                let parts = racer.parts.each_ref().map(|part| results::median(part));
                let shown = PARTS.iter().zip(parts).map(|(name, part)| format!("{name} {part:.3}"));
                let shown = shown.collect::<Vec<_>>().join("  ");
                println!("  {label:<24} {seconds:.3}  {:.2}  {shown}", seconds / first);
                let parts: serde_json::Map<_, _> =
                    PARTS.iter().zip(parts).map(|(name, part)| (name.to_string(), json!(part))).collect();
                entries.push(json!({
                    "program": "knet", "model": model, "label": label, "precision": "f32",
                    "seconds": seconds, "rounds": racer.rounds, "parts": parts,
                }));
            }
            races.push(json!({
                "title": format!("Instance masks, {}x{}", size.0, size.1),
                "size": [size.0, size.1], "part": "end to end", "threads": common::threads(),
                "marks": [{
                    "of": family[2].0, "ratio": [1.6, 1.9],
                    "words": "the paper's mark: K-Net 60 to 90 % faster",
                    "source": "Zhang et al., K-Net: Towards Unified Image Segmentation, NeurIPS 2021",
                }],
                "entries": entries,
            }));
        }
    }
    Ok(races)
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    benches(&mut criterion);
    criterion.final_summary();
    // A filter asks for benches, `table` for this alone.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let all = has("--bench") && arguments.iter().all(|argument| argument.starts_with('-'));
    if (all || results::table_alone()) && !has("--list") {
        let file = json!({
            "form": "knet race 1",
            "subject": "detectors",
            "title": "K-Net beside other detectors, all on knet",
            "note": "Seeded weights: equal work for every photo, no meaning in the masks.",
            "races": race().expect("a race"),
        });
        results::write("race.json", "cargo bench --bench rivals -- table", file);
    }
}
