//! Whole models with seeded weights: `segment` (photo in, masks out, [`Engine::segment_into`]), and its parts
//! `network` and `post`; `host`, what the host does of a frame that a GPU computes; `load` from a safetensors
//! file in the page cache until the first image can be segmented (weights checked and packed, network
//! planned), and `load-bundle` from a file of `knet compile`.
//!
//! Where there is a GPU, `segment-cuda` is `segment` there in f16, and `network-cuda` the device's time of
//! the network as one graph.
//!
//! Images are synthetic and not resized; masks from seeded weights are noise, whose outlines are longer than
//! those of trained weights. Throughput of `network` is in operations of direct convolution: Gelem/s are
//! GFLOP/s.
//!
//! These benches are for comparing commits on one idle machine (`-- --save-baseline NAME`,
//! `-- --baseline NAME`); comparison with PyTorch, side by side, is in `tools/peer`. The yardstick of the
//! project is Cascade Mask R-CNN R50-FPN: where `shared/reference/timing_cpu.json` lies beside the
//! repository, the ratio to the PyTorch times recorded there is printed, which were measured in another run.
//! `KNET_THREADS` sets the number of threads (2).

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use image::{Rgb, RgbImage};
use knet::checkpoint::{TensorData, TensorOut, seeded, write_safetensors};
use knet::cpu::{self, Executor, Pool, Selection, Weights};
use knet::cuda::gpu::Precision;
use knet::cuda::pipeline::copy_rows;
use knet::engine::bundle::{For, compile};
use knet::engine::source::{self, CONFIG_KEY};
use knet::engine::{Device, Model, ModelOptions, Segmentation, WeightSource};
use knet::graph::passes::optimize;
use knet::image::bitmask::{BitMask, PixelBox};
use knet::image::instance::{InstanceResult, Ranked};
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::{Config, SIZE_DIVISOR, TapMode, build};
use knet::task::instance::gpu::{Extent, Masks, bands, mask_bytes};
use knet::task::{AnyTask, Found, Postprocess, PostprocessOptions};
use knet::tensor::Shape;
use knet::{Engine, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const MODELS: [&str; 2] = ["knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic"];
/// Height and width.
const SIZES: [(usize, usize); 3] = [(320, 320), (512, 512), (800, 1333)];

/// Large and small structure.
fn photo((height, width): (usize, usize)) -> RgbImage {
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let wave = |c: f32| (100.0 + 50.0 * ((x as f32 / 37.0 + c).sin() + (y as f32 / 23.0).cos())) as u8;
        let noise = ((y.wrapping_mul(width as u32) + x).wrapping_mul(2_654_435_761) >> 26) as u8;
        Rgb([0.0, 1.0, 2.0].map(|c| wave(c).saturating_add(noise)))
    })
}

fn engine(model: &str, weights: impl Into<WeightSource>) -> Result<Engine> {
    let builder = Engine::builder().weights(weights).model(model).threads(common::threads());
    builder.device(Device::Cpu).size(None).build()
}

fn segment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    group.sampling_mode(SamplingMode::Flat);
    for model in MODELS {
        for size in SIZES {
            // Made by the first sample, so that what the command line filters out costs nothing.
            let mut ready: Option<(Engine, RgbImage, Segmentation)> = None;
            let mut seconds = Vec::new();
            group.bench_function(BenchmarkId::new(model, size_name(size)), |bencher| {
                let (engine, photo, result) = ready.get_or_insert_with(|| {
                    let mut engine = engine(model, WeightSource::Seeded(0)).expect("a model");
                    engine.warm_up(size.0, size.1).expect("a plan");
                    (engine, photo(size), Segmentation::default())
                });
                bencher.iter_custom(|runs| {
                    let start = Instant::now();
                    for _ in 0..runs {
                        engine.segment_into(&*photo, result).expect("a result");
                    }
                    let time = start.elapsed();
                    seconds.push(time.as_secs_f64() / runs as f64);
                    time
                });
            });
            print_yardsticks(model, size, &mut seconds);
        }
    }
}

fn segment_cuda(criterion: &mut Criterion, ordinal: usize) {
    let mut group = criterion.benchmark_group("segment-cuda");
    for (model, size) in cases() {
        let mut ready: Option<(Engine, RgbImage, Segmentation)> = None;
        group.bench_function(BenchmarkId::new(model, size_name(size)), |bencher| {
            let (engine, photo, result) = ready.get_or_insert_with(|| {
                let mut engine = engine_on_gpu(model, ordinal).expect("a model");
                let mut result = Segmentation::default();
                engine.segment_into(&photo(size), &mut result).expect("a result");
                (engine, photo(size), result)
            });
            bencher.iter(|| engine.segment_into(&*photo, result).expect("a result"));
        });
    }
}

fn network_cuda(criterion: &mut Criterion, ordinal: usize) {
    let mut group = criterion.benchmark_group("network-cuda");
    for (model, size) in cases() {
        let padded = (size.0.next_multiple_of(SIZE_DIVISOR), size.1.next_multiple_of(SIZE_DIVISOR));
        group.throughput(Throughput::Elements(planned_flops(model, size).expect("a plan")));
        let mut ready = None;
        group.bench_function(BenchmarkId::new(model, size_name(size)), |bencher| {
            let engine = ready.get_or_insert_with(|| engine_on_gpu(model, ordinal).expect("a model"));
            bencher.iter_custom(|runs| {
                engine.session_mut().time_network(padded, runs as usize).expect("times").iter().sum()
            });
        });
    }
}

fn engine_on_gpu(model: &str, ordinal: usize) -> Result<Engine> {
    let builder = Engine::builder().model(model).threads(common::threads()).size(None);
    builder.device(Device::Cuda(ordinal)).precision(Precision::F16).build()
}

/// Every model at every size.
fn cases() -> impl Iterator<Item = (&'static str, (usize, usize))> {
    MODELS.into_iter().flat_map(|model| SIZES.map(|size| (model, size)))
}

/// Prints how the median of `seconds` compares with recorded times of PyTorch, if there are any.
fn print_yardsticks(model: &str, (height, width): (usize, usize), seconds: &mut [f64]) {
    seconds.sort_unstable_by(f64::total_cmp);
    let Some(&median) = seconds.get(seconds.len() / 2) else { return };
    let Some(recorded) = recorded_times() else { return };
    for peer in ["cascade_mask_rcnn_r50_fpn", model] {
        let prefix = format!("{peer} {width}x{height} ");
        let times = recorded.iter().find(|(name, _)| name.starts_with(&prefix)).map(|(_, times)| times);
        if let Some(time) = times.and_then(|t| t["full_with_postprocessing"]["median_s"].as_f64()) {
            println!(
                "    PyTorch {peer}: {time:.2} s, {:.2} times the median of {median:.3} s here \
                 (recorded on another run, not side by side)",
                time / median
            );
        }
    }
}

/// The results in `shared/reference/timing_cpu.json`, looked for beside the repository and above.
fn recorded_times() -> Option<serde_json::Map<String, Value>> {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let text = folders
        .skip(1)
        .find_map(|f| std::fs::read_to_string(f.join("shared/reference/timing_cpu.json")).ok())?;
    let mut file: Value = serde_json::from_str(&text).expect("timing_cpu.json is JSON");
    match file["results"].take() {
        Value::Object(results) => Some(results),
        _ => None,
    }
}

/// The network of a model at one size, apart from its engine.
struct Network {
    config: Config,
    geometry: Geometry,
    executor: Executor,
    pool: Pool,
}

impl Network {
    /// Plans it and puts a photo into its input.
    fn new(model: &str, size: (usize, usize)) -> Result<Self> {
        let pool = Pool::new(common::threads())?;
        let selection = Selection::new(Isa::detect(), pool.threads());
        let mut preprocessor =
            Preprocessor::new(PreprocessConfig { size: None, ..PreprocessConfig::default() })?;
        let geometry = preprocessor.geometry(size.0, size.1);
        let source::Opened { config, load, .. } = source::open(&WeightSource::Seeded(0), Some(model))?;
        let graph = optimize(build(&config, 1, geometry.padded.into(), TapMode::Off)?.graph)?;
        let plan = cpu::plan(&graph, selection)?;
        let mut executor = pool.run(|| Executor::new(plan, &Weights::new(load)))?;
        pool.run(|| preprocessor.run(&photo(size), executor.input_mut(0)))?;
        Ok(Network { config, geometry, executor, pool })
    }

    /// A result of the network by name.
    fn output(&self, name: &str) -> (Shape, &[f32]) {
        let index = self.executor.output_index(name).expect("a result of the model");
        (self.executor.output_type(index).shape, self.executor.output(index))
    }
}

fn network(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("network");
    group.sampling_mode(SamplingMode::Flat);
    for model in MODELS {
        for size in SIZES {
            let flops = planned_flops(model, size).expect("a plan");
            group.throughput(Throughput::Elements(flops));
            let mut ready = None;
            group.bench_function(BenchmarkId::new(model, size_name(size)), |bencher| {
                let network = ready.get_or_insert_with(|| Network::new(model, size).expect("a model"));
                let executor = &mut network.executor;
                network.pool.run(|| bencher.iter(|| executor.run()));
            });
        }
    }
}

fn planned_flops(model: &str, (height, width): (usize, usize)) -> Result<u64> {
    let padded = [height, width].map(|side| side.next_multiple_of(SIZE_DIVISOR));
    let graph = optimize(build(&Config::named(model)?, 1, padded, TapMode::Off)?.graph)?;
    Ok(cpu::plan(&graph, Selection::new(Isa::detect(), common::threads()))?.flops())
}

fn post(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("post");
    group.sampling_mode(SamplingMode::Flat);
    for model in MODELS {
        for size in SIZES {
            let mut ready: Option<(Network, AnyTask, Found)> = None;
            group.bench_function(BenchmarkId::new(model, size_name(size)), |bencher| {
                let (network, task, found) = ready.get_or_insert_with(|| {
                    let mut network = Network::new(model, size).expect("a model");
                    network.pool.run(|| network.executor.run());
                    let task = AnyTask::new(&network.config, &PostprocessOptions::default());
                    (network, task.expect("a task"), Found::default())
                });
                let (network, outputs) = (&*network, |name: &str| Ok(network.output(name)));
                let mut finish = || task.on_host(&outputs, &network.geometry, found).expect("a result");
                network.pool.run(|| bencher.iter(&mut finish));
            });
        }
    }
}

/// Ten masks as a GPU leaves them in host memory.
struct LeftByGpu {
    size: (usize, usize),
    bits: Vec<u8>,
    extents: Vec<Extent>,
}

const PLACES: usize = 10;

/// Whether a mask, by its place, has the pixel of a row and a column.
type Inside = dyn Fn(usize, usize, usize) -> bool;

impl LeftByGpu {
    fn new((height, width): (usize, usize), inside: &Inside) -> Self {
        let (size, bands) = ((height, width), bands((height, width)));
        let (mut bits, mut extents) = (Vec::new(), vec![Extent::NOTHING; PLACES * bands]);
        for place in 0..PLACES {
            let mask = BitMask::from_fn(height, width, |y, x| inside(place, y, x));
            for (y, x) in mask.pixels() {
                let extent = &mut extents[place * bands + y / Extent::ROWS];
                let [y, x] = [y, x].map(|n| n as u32);
                *extent = extent.join(Extent { area: 1, left: x, right: x, top: y, bottom: y });
            }
            bits.extend_from_slice(mask.bytes());
            bits.resize((place + 1) * mask_bytes(size), 0);
        }
        LeftByGpu { size, bits, extents }
    }

    /// What an engine does with them.
    fn assemble(&self, result: &mut InstanceResult) -> Result<()> {
        let masks = Masks::new(&self.bits, &self.extents, self.size);
        let (pairs, places): (Vec<i32>, Vec<u32>) = (0..PLACES).map(|i| (i as i32, i as u32)).unzip();
        let ranked = Ranked {
            classes: 1,
            scores: &[0.9; PLACES],
            pairs: &pairs,
            places: &places,
            boxes: &[],
            copy_mask: &|place, stale, mask| masks.copy(place, stale, mask),
            extent: &|place| {
                let all = masks.extent(place);
                let [x, y, width, height] = all.rectangle();
                (all.area as usize, PixelBox { x, y, width, height })
            },
        };
        result.assemble(&ranked, self.size)
    }
}

/// The host's part of a GPU's frame at 800x1333: the photo to where the GPU fetches it (`photo`), and ten
/// masks to the caller's memory: noise, which has pixels in every band, and discs of a sixth of the height,
/// about what the trained model finds.
fn host(criterion: &mut Criterion) {
    const SIZE: (usize, usize) = (800, 1333);
    let pool = Pool::new(common::threads()).expect("threads");
    let mut group = criterion.benchmark_group("host");
    let noise = |place: usize, y: usize, x: usize| {
        let at = ((place * SIZE.0 + y) * SIZE.1 + x) as u64;
        at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1
    };
    let disc = |place: usize, y: usize, x: usize| {
        let (y, x) = (y as f64 - 80.0 * place as f64, x as f64 - 130.0 * place as f64);
        y.hypot(x) < 67.0
    };
    let kinds: [(&str, &Inside); 2] = [("noise", &noise), ("discs", &disc)];
    for (name, inside) in kinds {
        let mut ready = None;
        group.bench_function(BenchmarkId::new("masks", name), |bencher| {
            let (left, result) =
                ready.get_or_insert_with(|| (LeftByGpu::new(SIZE, inside), InstanceResult::default()));
            pool.run(|| bencher.iter(|| left.assemble(result).expect("a result")));
        });
    }
    group.bench_function("photo", |bencher| {
        let photo = photo(SIZE);
        let (mut staged, row) = (vec![0u8; photo.as_raw().len()], 3 * SIZE.1);
        pool.run(|| bencher.iter(|| copy_rows((photo.as_raw(), row), (&mut staged, row), SIZE.0, row)));
    });
}

/// Until the first image can be segmented: from a checkpoint, and from the bundle of it.
fn load(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases: Vec<_> = cases().chain([("knet_s3_lite0_fpn", (384, 512))]).collect();
    for bundled in [false, true] {
        let mut group = criterion.benchmark_group(if bundled { "load-bundle" } else { "load" });
        group.sampling_mode(SamplingMode::Flat);
        for &(model, size) in &cases {
            let path = folder.path().join(model).with_extension("safetensors");
            let bundle = folder.path().join(format!("{model}-{}.knet", size_name(size)));
            group.bench_function(BenchmarkId::new(model, size_name(size)), |bencher| {
                if !path.exists() {
                    write_seeded(model, &path).expect("a checkpoint");
                }
                if bundled && !bundle.exists() {
                    write_bundle(&path, size, &bundle).expect("a bundle");
                }
                let weights = if bundled { &bundle } else { &path };
                bencher.iter_with_large_drop(|| {
                    let mut engine = engine(model, weights.as_path()).expect("a model");
                    engine.warm_up(size.0, size.1).expect("a plan");
                    engine
                });
            });
        }
    }
}

fn write_bundle(weights: &Path, (height, width): (usize, usize), bundle: &Path) -> Result<()> {
    let options = ModelOptions { weights: weights.into(), device: Device::Cpu, ..ModelOptions::default() };
    let padded = [height, width].map(|side| side.next_multiple_of(SIZE_DIVISOR)).into();
    compile(&*Model::load(&options)?, &[padded], &[For::Cpu], bundle).map(|_| ())
}

/// Writes a model with seeded weights as `knet convert` writes one.
fn write_seeded(model: &str, path: &Path) -> Result<()> {
    let config = Config::named(model)?;
    let params = source::parameters(&config)?;
    let values = params
        .iter()
        .map(|param| seeded::tensor(&param.key, &param.upstream_shape, 0))
        .collect::<Result<Vec<_>>>()?;
    let tensors = params.iter().zip(&values).map(|(param, value)| TensorOut {
        name: &param.key,
        shape: &param.upstream_shape,
        data: TensorData::F32(value.data()),
    });
    write_safetensors(path, tensors, &BTreeMap::from([(CONFIG_KEY.to_string(), config.to_json())]))
}

fn size_name((height, width): (usize, usize)) -> String {
    format!("{height}x{width}")
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    segment(&mut criterion);
    network(&mut criterion);
    post(&mut criterion);
    host(&mut criterion);
    load(&mut criterion);
    if let Some(ordinal) = gpu::gpu() {
        segment_cuda(&mut criterion, ordinal);
        network_cuda(&mut criterion, ordinal);
    }
    criterion.final_summary();
}
