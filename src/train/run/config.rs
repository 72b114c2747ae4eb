//! The configuration of a run: a TOML file, every field named in messages with its line.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::batch_size::BatchSize;
use super::forecast::Fit;
use super::model::ModelConfig;
use super::overrides::overridden;
use super::validate::Metric;
use crate::dist::Share;
use crate::engine::{Compute, Device, TrainingPrecision};
use crate::error::{Error, Result};
use crate::fsio::read_text;
use crate::graph::passes::DropRates;
use crate::model::{Config, Task};
use crate::train::data::{Augment, DataConfig, LoaderConfig, Reading, Sampling, Targets};
use crate::train::network::{LossWeights, TrainSpec};
use crate::train::optimizer::AdamWConfig;
use crate::train::schedule::{Decay, Schedule};

/// All of a training run. Paths are relative to the working folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Seed of everything random: initial weights, order, augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Threads of the step; 0 for one per core. The numbers do not depend on it.
    #[serde(default)]
    pub threads: usize,
    /// `cpu`, `cuda` or `cuda:N`; `auto` is the CPU.
    #[serde(default)]
    pub device: Device,
    /// Of feature maps on a GPU: `f32`, `bf16` or `f16`.
    #[serde(default)]
    pub precision: TrainingPrecision,
    /// Whether the backward pass makes values of the forward pass again that it would keep: less memory for
    /// more work. The numbers do not depend on it.
    #[serde(default)]
    pub recompute: Recompute,
    /// Parameters whose key starts with one of these stay as they are. One that fits no parameter is an
    /// error.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// How batch norms that are not frozen normalise.
    #[serde(default)]
    pub batch_norm: BatchNormMode,
    /// How often channels before class layers of semantic models, and the branches of a Swin, are dropped.
    #[serde(default)]
    pub dropout: DropRates,
    /// The model.
    pub model: ModelConfig,
    /// Where the weights start from.
    #[serde(default)]
    pub start: StartConfig,
    /// Data sets and batches.
    pub data: DataSection,
    /// Augmentation and the size of training images.
    #[serde(default)]
    pub augment: Augment,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Length of the run and learning rate.
    pub schedule: ScheduleConfig,
    /// Weights of the loss terms.
    #[serde(default)]
    pub loss: LossWeights,
    /// Where results go, and when.
    #[serde(default)]
    pub run: OutputConfig,
}

/// Whether values of the forward pass are made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// As little as a step needs to fit into the memory of its device: [`Fit`].
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How batch norms that are not frozen normalise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchNormMode {
    /// By the running statistics, which stay as they are. The affine part is trained.
    #[default]
    Frozen,
    /// By the statistics of the batch, which the running ones follow (0.9 old + 0.1 new).
    Train,
}

/// Where the weights start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StartConfig {
    /// A checkpoint of the whole model, or of its backbone alone. Without one all weights are drawn.
    pub weights: Option<PathBuf>,
    /// Parameters whose key starts with one of these are drawn all the same.
    pub reset: Vec<String>,
    /// Standard deviation of the initial instance kernels.
    pub kernel_init_std: f64,
    /// Names of the classes of `weights`, in its order, for a file that does not name them (or names them
    /// otherwise than the data). Rows of the class heads follow names; classes that the file does not have
    /// are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
}

impl Default for StartConfig {
    fn default() -> Self {
        StartConfig { weights: None, reset: Vec::new(), kernel_init_std: 0.01, classes: None }
    }
}

/// Data sets and batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Data sets to train on; their classes must agree.
    pub train: Vec<DataConfig>,
    /// Data sets to validate on.
    #[serde(default)]
    pub val: Vec<DataConfig>,
    /// Images of a step: a number, or `"auto"` for as many as there is memory for.
    #[serde(default)]
    pub batch: BatchSize,
    /// Steps whose gradients are averaged for one update.
    #[serde(default = "default_accumulate")]
    pub accumulate: usize,
    /// Most objects of an image; of more, a random choice is kept. At most the number of kernels can be
    /// matched.
    #[serde(default = "default_max_objects")]
    pub max_objects: usize,
    /// Threads that load and augment.
    #[serde(default = "default_loader_threads")]
    pub loader_threads: usize,
    /// Batches made ahead.
    #[serde(default = "default_prefetch")]
    pub prefetch: usize,
    /// Decoded images are kept in memory up to this many MiB.
    #[serde(default = "default_cache")]
    pub cache_mib: usize,
    /// All files are looked at before the run begins: [`Reading::verify`].
    #[serde(default = "default_verify")]
    pub verify: bool,
    /// [`Reading::verify_whole`].
    #[serde(default = "default_verify_whole")]
    pub verify_whole: usize,
    /// [`Reading::skip_damaged`].
    #[serde(default)]
    pub skip_damaged: bool,
    /// [`Reading::strict`].
    #[serde(default)]
    pub strict: bool,
    /// Which images are seen how often.
    #[serde(default)]
    pub sampling: Sampling,
}

fn default_accumulate() -> usize {
    1
}
fn default_max_objects() -> usize {
    100
}
fn default_loader_threads() -> usize {
    1
}
fn default_prefetch() -> usize {
    2
}
fn default_cache() -> usize {
    1024
}
fn default_verify() -> bool {
    true
}
fn default_verify_whole() -> usize {
    Reading::VERIFY_WHOLE
}

/// Length of the run, of which one must be given, and learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Passes over the data.
    #[serde(default)]
    pub epochs: Option<u64>,
    /// Updates of the weights.
    #[serde(default)]
    pub iterations: Option<u64>,
    /// [`Schedule::warmup`]; a tenth of the run if absent, and never more than a third of it.
    #[serde(default)]
    pub warmup: Option<u64>,
    /// [`Schedule::warmup_ratio`].
    #[serde(default = "default_warmup_ratio")]
    pub warmup_ratio: f64,
    /// [`Schedule::decay`].
    #[serde(default = "default_decay")]
    pub decay: Decay,
}

/// Upstream warms up for as many iterations, of 90,000.
const LONGEST_DEFAULT_WARMUP: u64 = 1000;

fn default_warmup_ratio() -> f64 {
    Schedule::default().warmup_ratio
}
fn default_decay() -> Decay {
    Schedule::default().decay
}

impl ScheduleConfig {
    /// The learning rate in a run of `total` iterations.
    pub fn schedule(&self, total: u64) -> Schedule {
        let Self { warmup, warmup_ratio, decay, .. } = self;
        let warmup = warmup.unwrap_or((total / 10).min(LONGEST_DEFAULT_WARMUP)).min(total / 3);
        Schedule { warmup, warmup_ratio: *warmup_ratio, decay: decay.clone() }
    }
}

/// Where results go, and when. 0 minutes, epochs or iterations mean never.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Folder of the run; made if it is not there.
    pub out: PathBuf,
    /// Minutes between two saves.
    pub save_minutes: f64,
    /// Iterations between two saves, besides.
    pub save_iterations: u64,
    /// Iterations between two lines of the log.
    pub log_iterations: u64,
    /// Minutes between two validations. The first comes before the first step (of at most 100 images), the
    /// next after a tenth of this time, the last at the end.
    pub validate_minutes: f64,
    /// Epochs between two validations, besides.
    pub validate_epochs: u64,
    /// What `best.safetensors` is the best in: the mean of this metric over the validation sets. By default
    /// the main one of each: `ap`, `pq` or `miou`.
    pub best: Option<Metric>,
    /// Minutes between two sheets of sample photos with their masks.
    pub overlay_minutes: f64,
    /// Photos on such a sheet.
    pub overlay_photos: usize,
    /// Checkpoints are stored as f16; the state of the run never is.
    pub f16: bool,
    /// The run stops, saved, after this many minutes.
    pub time_limit_minutes: f64,
}

impl Default for OutputConfig {
    fn default() -> Self {
        OutputConfig {
            out: PathBuf::from("runs/knet"),
            save_minutes: 5.0,
            save_iterations: 0,
            log_iterations: 10,
            validate_minutes: 10.0,
            validate_epochs: 0,
            best: None,
            overlay_minutes: 10.0,
            overlay_photos: 8,
            f16: false,
            time_limit_minutes: 0.0,
        }
    }
}

impl RunConfig {
    /// Reads a configuration. `overrides` are `key=value` with dotted keys and TOML values (bare words are
    /// text).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Usage`] naming file, line and field.
    pub fn load(path: &Path, overrides: &[String]) -> Result<RunConfig> {
        let text = read_text(path)?;
        let refuse =
            |e: toml::de::Error| Error::usage(format!("{}: {}", path.display(), one_line(&text, &e)));
        let plain = || toml::from_str::<RunConfig>(&text).map_err(refuse);
        let config = if overrides.is_empty() {
            plain()?
        } else {
            match overridden(toml::from_str(&text).map_err(refuse)?, overrides) {
                Ok(config) => config,
                // A fault of the file itself is told with its line.
                Err(error) => {
                    plain()?;
                    return Err(error);
                }
            }
        };
        config.validate().map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
        Ok(config)
    }

    /// Checks what the parts do not check themselves.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, what: &str| if ok { Ok(()) } else { Err(Error::usage(what.to_string())) };
        check(!self.data.train.is_empty(), "data.train is empty")?;
        check((1..=1 << 16).contains(&self.data.accumulate), "data.accumulate must lie between 1 and 65536")?;
        check(self.threads <= 1024, "threads must be at most 1024")?;
        self.compute().validate().map_err(Error::usage)?;
        check(
            self.schedule.epochs.is_some() != self.schedule.iterations.is_some(),
            "schedule: give either epochs or iterations",
        )?;
        let lengths = [self.schedule.epochs, self.schedule.iterations];
        check(
            lengths.iter().flatten().all(|n| (1..=1 << 40).contains(n)),
            "schedule: epochs and iterations must be at least 1",
        )?;
        self.schedule.schedule(0).validate()?;
        check(
            self.data.verify || !self.data.skip_damaged,
            "data.skip_damaged needs data.verify: damaged photos are found by looking at all",
        )?;
        let std = self.start.kernel_init_std;
        check(std.is_finite() && std >= 0.0, "start.kernel_init_std must not be negative")?;
        let run = &self.run;
        check(run.log_iterations > 0, "run.log_iterations must be at least 1")?;
        let minutes = [run.save_minutes, run.time_limit_minutes, run.validate_minutes, run.overlay_minutes];
        check(minutes.iter().all(|m| (0.0..1e7).contains(m)), "run: minutes must not be negative")?;
        let DropRates { channel, path } = self.dropout;
        check(
            [channel, path].iter().all(|rate| (0.0..1.0).contains(rate)),
            "dropout: rates must be at least 0 and below 1",
        )?;
        let LossWeights { mask, dice, class, rank, seg, pixel, auxiliary } = self.loss;
        check(
            [mask, dice, class, rank, seg, pixel, auxiliary].iter().all(|w| w.is_finite() && *w >= 0.0),
            "loss: weights must not be negative",
        )?;
        self.augment.validate()?;
        self.optimizer.validate()
    }

    /// How strictly data sets are read.
    pub fn reading(&self) -> Reading {
        let DataSection { verify, verify_whole, skip_damaged, strict, .. } = self.data;
        Reading { verify, verify_whole, skip_damaged, strict }
    }

    /// The loader's settings for batches of so many images.
    pub fn loader(&self, model: &Config, batch: usize) -> LoaderConfig {
        let data = &self.data;
        LoaderConfig {
            batch,
            targets: match model.task {
                Task::Semantic => Targets::Pixels,
                Task::Instance | Task::Panoptic => Targets::Objects(data.max_objects),
            },
            threads: data.loader_threads,
            prefetch: data.prefetch,
            seed: self.seed,
            augment: self.augment.clone(),
            sampling: data.sampling,
            cache_bytes: data.cache_mib.saturating_mul(1 << 20),
            mean: model.input.normalization.mean,
            std: model.input.normalization.std,
            ..LoaderConfig::default()
        }
    }

    /// A step of `model` on one of several ranks.
    pub fn step<'a>(&'a self, model: &'a Config, fit: Fit, share: Share) -> TrainSpec<'a> {
        TrainSpec {
            config: model,
            batch: fit.images,
            size: self.augment.padded(),
            max_objects: self.data.max_objects,
            weights: self.loss,
            frozen: &self.frozen,
            train_batch_norm: self.batch_norm == BatchNormMode::Train,
            dropout: self.dropout,
            seed: self.seed,
            optimizer: Some(&self.optimizer),
            accumulate: self.data.accumulate,
            recompute: fit.recompute,
            share,
        }
    }

    /// What the run trains on.
    pub fn compute(&self) -> Compute {
        Compute { device: self.device, precision: self.precision, threads: self.threads }
    }

    /// Turns the run into a check of whether the model can learn `count` images by heart: no others, no
    /// augmentation.
    pub fn overfit(&mut self, count: usize) {
        self.data.sampling.overfit = Some(count);
        self.augment = Augment::off(self.augment.size);
    }
}

/// A message of the TOML reader with its line instead of an excerpt.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let line =
        error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let message = error.message().trim().replace('\n', "; ");
    match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    }
}
