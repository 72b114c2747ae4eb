//! Segmenting allocates nothing after the first image of a size, and a training step nothing after the first:
//! not in the caller, not in any other thread of the process. The trials run one after the other on the main
//! thread: the threads of a test harness allocate whenever they like. And sessions of one model share its
//! weights.
//!
//! `KNET_ALLOC_TRACE=1` prints where each offending allocation comes from.

mod image;

use ::image::{Rgb, RgbImage};
use knet::checkpoint::seeded;
use knet::dist::Share;
use knet::engine::{Compute, Device, InputSize, ModelOptions, SessionOptions};
use knet::graph::Param;
use knet::graph::passes::DropRates;
use knet::model::{Classes, Config, EfficientNetLite, Fpn, Head};
use knet::tensor::Precision;
use knet::train::data::Batch;
use knet::train::network::{LossWeights, TrainSpec};
use knet::train::optimizer::AdamWConfig;
use knet::train::step::TrainStep;
use knet::{Engine, Model, Segmentation, Session};
use libtest_mimic::{Arguments, Trial};
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static TRACE: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Capturing a backtrace allocates.
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

fn count(layout: Layout) {
    COUNT.fetch_add(1, SeqCst);
    if TRACE.load(SeqCst) && !TRACING.replace(true) {
        eprintln!("{} bytes allocated at\n{}", layout.size(), Backtrace::force_capture());
        TRACING.set(false);
    }
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's sizes are sound.
        count(unsafe { Layout::from_size_align_unchecked(size, layout.align()) });
        // SAFETY: the caller keeps the contract of `realloc`; the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A picture with structure, so that masks have edges.
fn photo(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * y / 7) as u8, (x * 3) as u8, (y * 5) as u8]))
}

/// Allocations of the whole process while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    TRACE.store(std::env::var_os("KNET_ALLOC_TRACE").is_some(), SeqCst);
    let before = COUNT.load(SeqCst);
    work();
    let after = COUNT.load(SeqCst);
    TRACE.store(false, SeqCst);
    after - before
}

/// A batch with `things` random rectangles in each of two images.
fn batch(size: [usize; 2], slots: usize, things: usize, seed: usize) -> Batch {
    let (pixels, plane) = (size[0] * size[1], size[0] * size[1] / 16);
    let mut labels = vec![-1; 2 * slots];
    let mut masks = vec![0.0; 2 * slots * plane];
    for image in 0..2 {
        for slot in 0..things {
            labels[image * slots + slot] = (slot % 3) as i32;
            let start = (seed * 7 + slot * 13 + image) % (plane / 2);
            masks[(image * slots + slot) * plane..][start..start + plane / 3].fill(1.0);
        }
    }
    let images = (0..2 * pixels * 3).map(|i| ((i * (seed + 3)) % 255) as f32 / 128.0 - 1.0).collect();
    Batch {
        size,
        images,
        masks,
        labels,
        things: vec![things; 2],
        objects: vec![things; 2],
        ids: vec![1, 2],
        ..Batch::default()
    }
}

fn training(threads: usize) {
    let config = Config {
        neck: Fpn { channels: 32 },
        head: Head { feedforward_channels: 64, proposals: 10, ..Head::default() },
        ..Config::of(EfficientNetLite::new(0).into(), Classes::new(3, 0))
    };
    let optimizer = AdamWConfig { ema: 0.99, ..AdamWConfig::default() };
    let spec = TrainSpec {
        config: &config,
        batch: 2,
        size: [64, 96],
        max_objects: 12,
        weights: LossWeights::default(),
        frozen: &["backbone._conv_stem.".to_string()],
        train_batch_norm: true,
        dropout: DropRates::default(),
        seed: 0,
        optimizer: Some(&optimizer),
        accumulate: 2,
        recompute: 0,
        share: Share::ALONE,
    };
    let load = Box::new(|param: &Param| seeded::tensor(&param.key, &param.upstream_shape, 0));
    let mut step = TrainStep::new(&spec, load, Compute::cpu(threads)).unwrap();
    // More objects than proposals, fewer, and none.
    let batches = [3, 12, 0, 7].map(|things| batch(spec.size, spec.max_objects, things, things));
    let mut run = |batch: &Batch| {
        step.run(batch).unwrap();
        step.update(1e-4).unwrap();
    };
    run(&batches[0]);
    let count = allocations(|| (0..40).for_each(|i| run(&batches[i % 4])));
    assert_eq!(count, 0, "{threads} threads: allocations in 40 further training steps");
}

/// Bytes of memory that the process occupies: packed weights are mappings, which no allocator sees.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

/// Two sessions of one model, of which the second takes little besides its own arena.
#[cfg(target_os = "linux")]
fn sessions() {
    // Half of the weights would not be much beside the rest of the process.
    let precision = Some(Precision::F32);
    let model = ModelOptions { device: Device::Cpu, precision, ..ModelOptions::default() };
    let model = Model::load(&model).unwrap();
    let options = SessionOptions { threads: 1, size: InputSize::Within(32, 64), ..Default::default() };
    let photo = photo(64, 96);
    let open = || {
        let before = resident();
        let mut session = Session::new(model.clone(), &options).unwrap();
        let result = session.segment(&photo).unwrap();
        (session, result, resident().saturating_sub(before))
    };
    let (_first, found, whole) = open();
    let weights = model.weight_bytes();
    let (_second, again, more) = open();
    assert!(found == again);
    assert_eq!(model.weight_bytes(), weights, "the second session has packed something again");
    assert!(whole > weights && weights > 100 << 20, "{whole} bytes for weights of {weights}");
    assert!(more < weights / 10, "{more} bytes for a second session, weights are {weights}");
}

fn segmenting(model: &str, threads: usize) {
    // Resized by different ratios, so that every table differs.
    let (small, large) = (photo(72, 90), photo(128, 160));
    let builder = Engine::builder().model(model).threads(threads).size(Some((32, 64)));
    let mut engine = builder.build().unwrap();
    let mut result = Segmentation::default();
    engine.segment_into(&small, &mut result).unwrap();

    // Many calls: rayon's queues take memory for every 63 jobs put into them from outside.
    let count = allocations(|| {
        for _ in 0..70 {
            engine.segment_into(&small, &mut result).unwrap();
        }
    });
    assert_eq!(count, 0, "allocations in 70 further calls");

    let tall = photo(90, 60);
    let photos = [&small, &large, &tall];
    for photo in photos {
        engine.segment_into(photo, &mut result).unwrap();
    }
    let count = allocations(|| {
        for call in 0..9 {
            engine.segment_into(photos[call % 3], &mut result).unwrap();
        }
    });
    assert_eq!(count, 0, "allocations while sizes take turns");
    assert_eq!(result.size(), (90, 60));
}

fn counting() {
    assert_eq!(allocations(|| drop(vec![1u8; 100])), 1, "the allocator counts");
}

fn main() {
    let mut trials = Vec::new();
    let mut add = |name: String, check: Box<dyn FnOnce() + Send>| {
        trials.push(Trial::test(name, move || {
            check();
            Ok(())
        }));
    };
    add("counting".into(), Box::new(counting));
    #[cfg(target_os = "linux")]
    add("sessions".into(), Box::new(sessions));
    add("image/later_calls_at_a_size".into(), Box::new(image::later_calls_at_a_size_allocate_nothing));
    for threads in [1, 2] {
        add(format!("training/{threads}_threads"), Box::new(move || training(threads)));
        for model in ["knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic"] {
            let name = format!("segmenting/{model}/{threads}_threads");
            add(name, Box::new(move || segmenting(model, threads)));
        }
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}
