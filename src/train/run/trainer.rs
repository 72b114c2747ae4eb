//! The loop of a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::config::{BatchNormMode, RunConfig};
use super::log::{LineHead, Meter};
use super::norms::RunningStatistics;
use super::outputs::Outputs;
use super::start::{StartReport, Values, initial_values};
use super::state::{Moments, Progress, State};
use crate::cpu::Weights;
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::isa::Isa;
use crate::model::Config;
use crate::tensor::{Shape, Tensor};
use crate::train::data::{Loader, LoaderConfig, Mix};
use crate::train::network::TrainSpec;
use crate::train::optimizer::AdamW;
use crate::train::schedule::Schedule;
use crate::train::step::TrainStep;

/// Everything that resuming needs.
pub const STATE_FILE: &str = "last.state";
/// The weights for use.
pub const LAST_FILE: &str = "last.safetensors";
/// The state before the update that went wrong.
pub const DIVERGED_FILE: &str = "diverged.state";
/// The weights that validated best.
pub const BEST_FILE: &str = "best.safetensors";

/// Hears what a run does.
pub trait Observer {
    /// Something worth a line.
    fn note(&mut self, text: &str);
    /// An update is done.
    fn step(&mut self, report: &Report<'_>);
}

/// Where a run stands after an update.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// Updates done.
    pub iteration: u64,
    /// Updates of the whole run.
    pub total: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Learning rate.
    pub lr: f64,
    /// Means since the last line of the log.
    pub meter: &'a Meter,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All iterations are done.
    Finished,
    /// The time limit was reached; the state is saved.
    TimeLimit,
    /// It was asked to stop; the state is saved.
    Interrupted,
}

/// A run, ready to go on.
pub struct Trainer {
    config: RunConfig,
    model: Config,
    schedule: Schedule,
    total: u64,
    step: TrainStep,
    optimizer: AdamW,
    loader: Loader,
    /// Parameters that stay as they are.
    constants: Values,
    statistics: RunningStatistics,
    progress: Progress,
    outputs: Outputs,
    meter: Meter,
    lr: f64,
    grad_norm: f64,
    /// Seconds trained when this process began.
    seconds_before: f64,
    begun: Instant,
    saved: Instant,
}

impl Trainer {
    /// Opens data, model and (with `resume`) the state in the folder of the run. Without a state, `resume` begins
    /// anew.
    ///
    /// # Errors
    /// [`Error::Usage`] if the folder holds a run that is not resumed; whatever data, weights and planning say.
    pub fn new(config: RunConfig, resume: bool, observer: &mut dyn Observer) -> Result<Trainer> {
        config.validate()?;
        let out = &config.run.out;
        let state_path = out.join(STATE_FILE);
        let resume = resume && state_path.exists();
        if !resume && state_path.exists() {
            return Err(Error::usage(format!(
                "{} holds a run already: go on with it by --resume, or choose another folder by --out",
                out.display()
            )));
        }
        let mix = Arc::new(Mix::open(&config.data.train, config.data.verify)?);
        describe(&mix, "train", observer);
        let model = config.model(&mix)?;
        let (values, moments, progress) = if resume {
            let state = State::read(&state_path, &model)?;
            let iteration = state.progress.iteration;
            observer.note(&format!("{}: going on after iteration {iteration}", state_path.display()));
            (state.values, state.moments, state.progress)
        } else {
            let (values, report) = initial_values(&model, &config.start, config.seed)?;
            describe_start(&config, &report, observer);
            (values, BTreeMap::new(), Progress::new(config.seed))
        };
        if progress.seed != config.seed {
            let (found, wanted) = (progress.seed, config.seed);
            return Err(Error::usage(format!(
                "the run began with seed {found}, the configuration says {wanted}"
            )));
        }
        let loader_config = LoaderConfig { start: progress.position, ..config.loader(&model) };
        let outputs = Outputs::open(&config, &mix, progress.iteration, progress.position.epoch)?;
        let loader = Loader::new(mix, loader_config)?;

        let spec = TrainSpec {
            config: &model,
            batch: config.data.batch,
            size: config.augment.padded(),
            max_objects: config.data.max_objects,
            weights: config.loss,
            frozen: &config.frozen,
            train_batch_norm: config.batch_norm == BatchNormMode::Train,
        };
        let values = Arc::new(values);
        let source = Arc::clone(&values);
        let weights = Weights::new(Box::new(move |param: &Param| {
            let missing = || Error::Graph(format!("no initial value for `{}`", param.key));
            source.get(&param.key).cloned().ok_or_else(missing)
        }));
        let step = TrainStep::new(&spec, &weights, Isa::detect(), config.threads)?;
        drop(weights);
        let mut constants = Arc::unwrap_or_clone(values);
        for (param, _) in &step.executor().plan().variables {
            constants.remove(&param.key);
        }
        let mut optimizer = AdamW::new(config.optimizer.clone(), step.executor(), config.data.accumulate)?;
        if resume {
            restore(&mut optimizer, &step, &moments, progress.iteration, &state_path)?;
        }
        let total = total_iterations(&config, &loader);
        let now = Instant::now();
        Ok(Trainer {
            schedule: config.schedule.schedule(),
            total,
            optimizer,
            loader,
            constants,
            statistics: RunningStatistics::new(&step)?,
            step,
            seconds_before: progress.seconds,
            progress,
            outputs,
            meter: Meter::default(),
            lr: 0.0,
            grad_norm: 0.0,
            begun: now,
            saved: now,
            model,
            config,
        })
    }

    /// The model that is trained.
    pub fn model(&self) -> &Config {
        &self.model
    }

    /// Updates done.
    pub fn iteration(&self) -> u64 {
        self.progress.iteration
    }

    /// Updates of the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Trains until the end, the time limit, or `stop`, and saves.
    ///
    /// # Errors
    /// [`Error::Diverged`] after saving the state before the update that went wrong; whatever else stops a step, after saving
    /// the state; a failed save, which leaves the last good state.
    pub fn run(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome> {
        self.begun = Instant::now();
        self.saved = self.begun;
        let limit = match self.config.run.time_limit_minutes {
            0.0 => f64::INFINITY,
            minutes => 60.0 * minutes,
        };
        loop {
            let outcome = if self.progress.iteration >= self.total {
                Some(Outcome::Finished)
            } else if stop.load(Ordering::Relaxed) {
                Some(Outcome::Interrupted)
            } else if self.begun.elapsed().as_secs_f64() >= limit {
                Some(Outcome::TimeLimit)
            } else {
                None
            };
            if let Some(outcome) = outcome {
                if outcome == Outcome::Finished {
                    self.finish(observer)?;
                } else {
                    self.save()?;
                }
                self.outputs.curves()?;
                return Ok(outcome);
            }
            if let Err(error) = self.iterate() {
                self.save_after(&error, observer);
                return Err(error);
            }
            self.progress.seconds = self.seconds_before + self.begun.elapsed().as_secs_f64();
            let Progress { iteration, position, .. } = self.progress;
            let report = Report {
                iteration,
                total: self.total,
                epoch: position.epoch,
                lr: self.lr,
                meter: &self.meter,
            };
            observer.step(&report);
            if iteration.is_multiple_of(self.config.run.log_iterations) || iteration == self.total {
                let head =
                    LineHead { iteration, epoch: position.epoch, lr: self.lr, grad_norm: self.grad_norm };
                self.outputs.train(&head, &self.meter)?;
                self.meter.reset();
            }
            if self.outputs.validation_is_due(position.epoch) {
                self.validate(observer)?;
            } else if self.save_is_due() {
                self.save()?;
            }
            if self.outputs.overlay_is_due() {
                self.export()?;
                self.outputs.overlay(&self.path(LAST_FILE), iteration)?;
            }
        }
    }

    /// One update.
    fn iterate(&mut self) -> Result<()> {
        let start = Instant::now();
        self.lr = self.config.optimizer.lr * self.schedule.factor(self.progress.iteration, self.total);
        for _ in 0..self.config.data.accumulate {
            let waiting = Instant::now();
            let batch = self.loader.next_batch()?;
            self.meter.waiting += waiting.elapsed().as_secs_f64();
            let losses = self.step.run(batch)?;
            self.meter.add(losses);
            self.statistics.update(&self.step, &mut self.constants);
            self.meter.images += batch.len() as u64;
            self.meter.left_out += batch.left_out as u64;
            let (executor, pool) = self.step.parts_mut();
            if let Some(norm) = self.optimizer.step(executor, pool, self.lr)? {
                self.grad_norm = norm;
                if !norm.is_finite() {
                    return Err(Error::Diverged { what: "the gradient".into(), ids: batch.ids.clone() });
                }
            }
        }
        self.progress.iteration += 1;
        self.progress.position = self.loader.position();
        self.meter.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    fn save_is_due(&self) -> bool {
        let run = &self.config.run;
        let by_time = run.save_minutes > 0.0 && self.saved.elapsed().as_secs_f64() >= 60.0 * run.save_minutes;
        by_time || (run.save_iterations > 0 && self.progress.iteration.is_multiple_of(run.save_iterations))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.run.out.join(name)
    }

    /// Writes the state, then the weights for use.
    fn save(&mut self) -> Result<()> {
        let state = self.state();
        state.write(&self.path(STATE_FILE), &self.model)?;
        state.export(&self.path(LAST_FILE), &self.model, self.config.run.f16)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Writes the weights for use alone.
    fn export(&self) -> Result<()> {
        self.state().export(&self.path(LAST_FILE), &self.model, self.config.run.f16)
    }

    /// Validates the weights for use, keeps them if they are the best, and saves.
    fn validate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.export()?;
        let last = self.path(LAST_FILE);
        let place = (self.progress.iteration, self.progress.position.epoch);
        let judged = self.outputs.validate(&last, place, observer)?;
        if let Some(value) = judged.filter(|value| self.progress.best.is_none_or(|best| *value > best)) {
            self.progress.best = Some(value);
            self.state().export(&self.path(BEST_FILE), &self.model, self.config.run.f16)?;
        }
        self.outputs.curves()?;
        self.save()
    }

    /// The last save of a finished run, with validation and sample photos.
    fn finish(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.validate(observer)?;
        self.outputs.overlay(&self.path(LAST_FILE), self.progress.iteration)
    }

    /// Saves what can be saved when a step has failed; `error` itself is the caller's to report.
    fn save_after(&mut self, error: &Error, observer: &mut dyn Observer) {
        let name = if matches!(error, Error::Diverged { .. }) { DIVERGED_FILE } else { STATE_FILE };
        let path = self.path(name);
        match self.state().write(&path, &self.model) {
            Ok(()) => observer.note(&format!(
                "stopped in iteration {}; the state before it is saved in {}",
                self.progress.iteration + 1,
                path.display()
            )),
            Err(failure) => observer.note(&format!("the state cannot be saved: {failure}")),
        }
    }

    fn state(&self) -> State {
        let mut values = self.constants.clone();
        values.extend(self.step.parameters().map(|(param, tensor)| (param.key.clone(), tensor)));
        let variables: BTreeMap<&str, (&Param, Shape)> = variables(&self.step).collect();
        let mut moments = BTreeMap::new();
        for slot in self.optimizer.slots() {
            let Some((param, shape)) = variables.get(slot.key.as_str()) else { continue };
            let upstream = |values: &[f32]| {
                param.layout.invert(Tensor::new(*shape, values.to_vec()), &param.upstream_shape)
            };
            let average = (!slot.average.is_empty()).then(|| upstream(&slot.average));
            let kept = Moments { first: upstream(&slot.first), second: upstream(&slot.second), average };
            moments.insert(slot.key.clone(), kept);
        }
        State { progress: self.progress.clone(), values, moments }
    }
}

/// Key, parameter and shape in the graph's layout of everything that is trained.
fn variables(step: &TrainStep) -> impl Iterator<Item = (&str, (&Param, Shape))> {
    step.executor()
        .plan()
        .variables
        .iter()
        .map(|(param, operand)| (param.key.as_str(), (param, operand.ty.shape)))
}

/// Gives the optimizer back what it knew.
fn restore(
    optimizer: &mut AdamW,
    step: &TrainStep,
    moments: &BTreeMap<String, Moments>,
    updates: u64,
    path: &std::path::Path,
) -> Result<()> {
    optimizer.set_updates(updates);
    let variables: BTreeMap<&str, (&Param, Shape)> = variables(step).collect();
    for slot in optimizer.slots_mut() {
        let refuse = |reason: &str| Error::Checkpoint {
            path: path.to_path_buf(),
            key: Some(slot.key.clone()),
            offset: None,
            reason: reason.to_string(),
        };
        let Some(kept) = moments.get(&slot.key) else {
            return Err(refuse("has no moments in the state: was it frozen before?"));
        };
        let Some((param, shape)) = variables.get(slot.key.as_str()) else { continue };
        let fits = |tensor: &Tensor| tensor.shape().dims() == param.upstream_shape;
        if ![Some(&kept.first), Some(&kept.second), kept.average.as_ref()].into_iter().flatten().all(fits) {
            return Err(refuse("its moments have another shape than the parameter"));
        }
        let graph = |tensor: &Tensor| {
            let tensor = param.layout.apply(tensor.clone());
            debug_assert_eq!(tensor.shape(), *shape);
            tensor.data().to_vec()
        };
        slot.first = graph(&kept.first);
        slot.second = graph(&kept.second);
        // Without an average in the state, a new one begins at the weights.
        if let Some(average) = kept.average.as_ref().filter(|_| !slot.average.is_empty()) {
            slot.average = graph(average);
        }
    }
    Ok(())
}

fn total_iterations(config: &RunConfig, loader: &Loader) -> u64 {
    if let Some(iterations) = config.schedule.iterations {
        return iterations;
    }
    let epochs = config.schedule.epochs.unwrap_or(1);
    let samples: u64 = (0..epochs).map(|epoch| loader.epoch_len(epoch)).sum();
    samples.div_ceil((config.data.batch * config.data.accumulate) as u64)
}

fn describe(mix: &Mix, what: &str, observer: &mut dyn Observer) {
    let objects: usize = (0..mix.len()).map(|i| mix.objects(i)).sum();
    let names: Vec<&str> = mix.classes().iter().take(12).map(|class| &*class.name).collect();
    let more = if mix.classes().len() > names.len() { ", .." } else { "" };
    observer.note(&format!(
        "{what}: {} images, {objects} objects; {} classes: {}{more}",
        mix.len(),
        mix.classes().len(),
        names.join(", ")
    ));
    for warning in mix.sets().iter().flat_map(|set| set.warnings()) {
        observer.note(&format!("{what}: warning: {warning}"));
    }
}

fn describe_start(config: &RunConfig, report: &StartReport, observer: &mut dyn Observer) {
    if let Some(path) = &config.start.weights {
        observer.note(&format!("{}: {} tensors taken", path.display(), report.loaded));
    }
    if !report.drawn.is_empty() {
        observer.note(&format!("drawn from seed {}: {}", config.seed, report.drawn.join(", ")));
    }
    for m in &report.resized {
        let (name, found, expected) = (&m.name, &m.found, &m.expected);
        observer.note(&format!("{name}: {found:?} in the file, {expected:?} here: drawn anew"));
    }
    if !report.reset.is_empty() {
        observer.note(&format!("drawn anew as asked: {}", report.reset.join(", ")));
    }
}
