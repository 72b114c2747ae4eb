//! `knet quantize`

use crate::voice::{Level, level, note};
use crate::{guard, print, source};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use knet::engine::quantized::calibrate::{Found, quantization};
use knet::engine::quantized::{
    Calibration, Clip, LayerError, QUANTIZATION_KEY, Quantized, Written, already_quantized, compare, write,
};
use knet::engine::source::{self as weights, Opened};
use knet::engine::{Device, InputSize, Model, ModelOptions, Session, SessionOptions, WeightSource};
use knet::fsio::atomic_write;
use knet::image::RgbImage;
use knet::image::decode::{Limits, decode};
use knet::image::listing::{ENDINGS, Listing};
use knet::model::Task;
use knet::tensor::Precision;
use knet::train::data::Reading;
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::{EvalSpec, Evaluation};
use knet::{Engine, Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Make a checkpoint whose convolutions are 8-bit integers, with the ranges of maps found on photos
///
/// The new file is run like any other: by --weights. A CPU with AVX-VNNI, AVX-512 VNNI or AMX multiplies the
/// integers; another one, a GPU, and whoever names another precision takes them for the numbers that they
/// stand for. First and last layers, the update of kernels and all that is no convolution stay as they are.
///
/// A hundred photos of what the model is for are enough; a handful are better than others' photos. No
/// annotation is needed: --annotations measures what it costs.
#[derive(Args)]
pub struct Arguments {
    /// Checkpoint, or `seeded:N` [default: the person model that comes with the program; seeded:0 for a model
    /// named by --model]
    #[arg(long, value_name = "FILE")]
    weights: Option<WeightSource>,

    /// Model name, for weights that do not say it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Folder of photos (JPEG, PNG, ...) like those that the model is for
    #[arg(long, value_name = "DIR")]
    images: PathBuf,

    /// Most photos to look at, spread evenly over the folder's names in their order
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    photos: u32,

    /// File to write [default: the weights' name with the ending .int8.safetensors, here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Let ranges reach so many percent of the values that are not 0, 99.99 say, instead of as far as makes
    /// the squared error least
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    percentile: Option<f64>,

    /// Leave layers as they are whose filters' names begin so; --report names them all. May be given several
    /// times
    #[arg(long, value_name = "NAME")]
    keep: Vec<String>,

    /// Size that photos are resized to fit into [default: the model's own]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = crate::size::parse)]
    size: Option<crate::size::Size>,

    /// COCO instance annotations, to measure mask AP before and after
    #[arg(long, value_name = "JSON")]
    annotations: Option<PathBuf>,

    /// Folder of the annotated photos [default: --images]
    #[arg(long, value_name = "DIR", requires = "annotations")]
    annotated_images: Option<PathBuf>,

    /// Write the report to this file, with all digits
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Replace files that this command did not make (an input never)
    #[arg(long)]
    overwrite: bool,
}

/// Photos on which layers are compared: a few say what many would.
const COMPARED: usize = 4;

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 100.0);
    percent.ok_or_else(|| format!("`{text}` is not a number above 0, at most 100"))
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let from = source(arguments.weights.as_ref(), arguments.model.as_deref());
    let out = arguments.out.clone().unwrap_or_else(|| default_out(&from, arguments.model.as_deref()));
    check_outputs(arguments, &from, &out)?;
    let name = arguments.model.as_deref();
    let Opened { quantized, .. } = weights::open(&from, name)?;
    if quantized.is_some() {
        return Err(already_quantized(&from));
    }
    let photos = photos(&arguments.images, arguments.photos as usize)?;
    if photos.len() < 8 {
        note(format_args!("{} photo(s): ranges of others may be larger", photos.len()));
    }
    let model = |weights: &WeightSource, int8| {
        Model::load(&ModelOptions {
            weights: weights.clone(),
            name: arguments.model.clone(),
            device: Device::Cpu,
            precision: if int8 { None } else { Some(Precision::F32) },
            ..ModelOptions::default()
        })
    };
    let session = SessionOptions {
        threads: arguments.threads.map_or(0, usize::from),
        size: arguments.size.map_or(InputSize::OfModel, |size| {
            let (short, long) = size.sides();
            InputSize::Within(short, long)
        }),
        ..SessionOptions::default()
    };
    let in_f32 = model(&from, false)?;
    let mut calibration = Calibration::new(Session::new(in_f32.clone(), &session)?, &arguments.keep);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} photos  {eta} left");
    let bar = match level() > Level::Quiet {
        true => ProgressBar::new(photos.len() as u64),
        false => ProgressBar::hidden(),
    };
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    for path in &photos {
        let shown = read(path)?;
        calibration.show(&shown).map_err(|error| Error::usage(format!("{}: {error}", path.display())))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let clip = arguments.percentile.map_or(Clip::Mse, Clip::Percentile);
    let found = calibration.levels(clip)?;
    let quantized = Quantized::new(clip.to_string(), calibration.photos(), quantization(&found));
    drop(calibration);
    let mut errors = BTreeMap::new();
    let mut layers = Session::new(in_f32.clone(), &session)?;
    for path in photos.iter().take(COMPARED) {
        compare(&mut layers, &quantized.layers, &read(path)?, &mut errors)?;
    }
    drop(layers);
    let written = write(&from, name, &quantized, &out)?;
    let mut report = Report { out, written, quantized, found, errors, ap: None };
    if let Some(annotations) = &arguments.annotations {
        let images = arguments.annotated_images.as_ref().unwrap_or(&arguments.images);
        let after = model(&WeightSource::File(report.out.clone()), true)?;
        if let Some(reason) = after.precision_note() {
            note(format_args!("{reason}: AP after is that of the rounded filters alone"));
        }
        report.ap =
            Some([ap(in_f32, &session, images, annotations)?, ap(after, &session, images, annotations)?]);
    }
    print(&report.text())?;
    match &arguments.report {
        Some(path) => atomic_write(path, |out| Ok(serde_json::to_writer_pretty(out, &report.json())?)),
        None => Ok(()),
    }
}

/// Photos of a folder by name, at most so many.
fn photos(folder: &Path, most: usize) -> Result<Vec<PathBuf>> {
    let paths = Listing::of(folder)?.pictures;
    if paths.is_empty() {
        let endings = ENDINGS.join(", ");
        let what = "no photos in this folder to find ranges on";
        return Err(Error::usage(format!("{}: {what} ({endings})", folder.display())));
    }
    let count = paths.len().min(most);
    Ok((0..count).map(|i| paths[i * paths.len() / count].clone()).collect())
}

fn read(path: &Path) -> Result<RgbImage> {
    decode(path, &Limits::default())
}

fn default_out(weights: &WeightSource, model: Option<&str>) -> PathBuf {
    let name = match weights {
        WeightSource::File(path) => path.file_name().map_or(Path::new("model"), Path::new),
        WeightSource::Embedded { .. } => Path::new("knet_s3_lite0_person"),
        WeightSource::Seeded(_) => Path::new(model.unwrap_or("model")),
    };
    name.with_extension("int8.safetensors")
}

fn check_outputs(arguments: &Arguments, weights: &WeightSource, out: &Path) -> Result<()> {
    let file = match weights {
        WeightSource::File(path) => Some(path.clone()),
        WeightSource::Embedded { .. } | WeightSource::Seeded(_) => None,
    };
    let inputs: guard::Inputs = file.into_iter().chain(arguments.annotations.clone()).collect();
    let own = |path: &Path| guard::is_checkpoint_with(path, &[QUANTIZATION_KEY]);
    guard::check(out, &inputs, own, arguments.overwrite)?;
    match &arguments.report {
        Some(path) if path == out => Err(Error::usage("--out and --report name one file")),
        Some(path) => {
            let own = |path: &Path| guard::is_json_with(path, &["quantization", "layers"]);
            guard::check(path, &inputs, own, arguments.overwrite)
        }
        None => Ok(()),
    }
}

/// Mask AP and AP50 of a model.
fn ap(model: Arc<Model>, session: &SessionOptions, images: &Path, annotations: &Path) -> Result<[f64; 2]> {
    let options = SessionOptions { task: Some(Task::Instance), ..session.clone() };
    let mut engine = Engine::new(model, &options)?;
    let spec = EvalSpec {
        images: images.to_path_buf(),
        annotations: Some(annotations.to_path_buf()),
        panoptic_dir: None,
        semantic: None,
        classes: ClassPolicy::Common,
        reading: Reading::default(),
    };
    let report = Evaluation::open(&spec, &engine)?.run(&mut engine, |_| ControlFlow::Continue(()))?;
    let missing = || Error::usage(format!("{}: nothing to measure AP of", annotations.display()));
    report.instances.map(|found| [found.ap, found.ap50]).ok_or_else(missing)
}

/// What was done, and what it costs.
struct Report {
    out: PathBuf,
    written: Written,
    quantized: Quantized,
    found: BTreeMap<String, Found>,
    errors: BTreeMap<String, LayerError>,
    /// AP and AP50 before and after.
    ap: Option<[[f64; 2]; 2]>,
}

impl Report {
    fn text(&self) -> String {
        /// Layers that are told.
        const WORST: usize = 5;
        let mut text = String::new();
        let Written { layers, bytes, before } = self.written;
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let summary = self.quantized.summary();
        let out = self.out.display();
        let _ = writeln!(text, "{out}: {summary}, {:.1} MiB (before {:.1})", mib(bytes), mib(before));
        let mut errors: Vec<(&String, f64)> =
            self.errors.iter().map(|(key, error)| (key, error.relative())).collect();
        errors.sort_by(|a, b| b.1.total_cmp(&a.1));
        if layers > 0 {
            let _ = writeln!(text, "farthest from f32, of what each layer gives behind all before it:");
        }
        for (key, error) in errors.iter().take(WORST) {
            let _ = writeln!(text, "  {:5.1} %  {key}", 100.0 * error);
        }
        match self.ap {
            Some([before, after]) => {
                let [before, after] = [before, after].map(|ap| ap.map(|ap| 100.0 * ap));
                let _ = writeln!(text, "AP   {:5.1} -> {:5.1}", before[0], after[0]);
                let _ = writeln!(text, "AP50 {:5.1} -> {:5.1}", before[1], after[1]);
            }
            None => {
                let _ = writeln!(text, "--annotations would measure AP before and after");
            }
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let layers: serde_json::Map<String, serde_json::Value> = self
            .found
            .iter()
            .map(|(key, found)| {
                let error = self.errors.get(key).map(LayerError::relative);
                let Found { levels, most, beyond } = found;
                let layer = json!({
                    "step": levels.step, "signed": levels.signed, "largest": most,
                    "beyond": beyond, "relative_error": error,
                });
                (key.clone(), layer)
            })
            .collect();
        let ap = self.ap.map(|[before, after]| {
            let of = |[ap, ap50]: [f64; 2]| json!({"ap": ap, "ap50": ap50});
            json!({"before": of(before), "after": of(after)})
        });
        json!({
            "quantization": {"clip": self.quantized.clip, "photos": self.quantized.photos},
            "bytes": self.written.bytes, "bytes_before": self.written.before,
            "layers": layers, "ap": ap,
        })
    }
}
