//! The loop of a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::batch_size::BatchSize;
use super::config::RunConfig;
use super::describe;
use super::forecast;
use super::kept::{self, CONFIG_FILE};
use super::lock::Lock;
use super::log::{LineHead, Meter};
use super::outputs::{CURVES_FILE, Judged, LOG_FILE, Outputs};
use super::resume::{Origin, restore, total_iterations};
use super::start::{Values, check_patterns, initial_values};
use super::state::{Moments, Progress, State};
use crate::dist::{Ranks, Share};
use crate::engine::Device;
use crate::error::{Error, Result};
use crate::fsio::sweep;
use crate::graph::Param;
use crate::model::Config;
use crate::train::data::{Loader, LoaderConfig, Mix, Position};
use crate::train::optimizer::Optimizer;
use crate::train::schedule::Schedule;
use crate::train::step::{Losses, TrainStep};
use serde::{Deserialize, Serialize};

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
    fn step(&mut self, report: &RunReport<'_>);
}

/// Where a run stands after an update.
#[derive(Clone, Copy, Debug)]
pub struct RunReport<'a> {
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
    loader: Loader,
    /// What the loader said of the next batch, if it was asked for it while the device was at work.
    ahead: Option<Result<()>>,
    /// Where the batch after the last one that was learnt begins.
    position: Position,
    /// Parameters that stay as they are.
    constants: Values,
    progress: Progress,
    origin: Origin,
    /// The ranks of the run, if there are several.
    ranks: Option<Arc<Ranks>>,
    /// What the first rank alone does.
    writer: Option<Writer>,
    meter: Meter,
    lr: f64,
    grad_norm: f64,
    /// Seconds trained when this process began.
    seconds_before: f64,
    begun: Instant,
    saved: Instant,
}

/// The folder of a run.
struct Writer {
    outputs: Outputs,
    /// Keeps other runs out of it.
    _lock: Lock,
}

/// What a batch did on one rank.
#[derive(Serialize, Deserialize)]
struct Done {
    losses: Losses,
    images: u64,
    left_out: u64,
    ids: Vec<u64>,
}

impl Trainer {
    /// Opens data, model and (with `resume`) the state in the folder of the run. Without a state, `resume`
    /// begins anew. Of several `ranks`, the first writes and validates; all read the same files.
    ///
    /// # Errors
    /// [`Error::Ranks`] if another rank cannot; [`Error::Usage`] if ranks have different configurations, if
    /// the folder holds a run that is not resumed, is in use, or is to go on with a configuration that does
    /// not fit; whatever data, weights and planning say.
    pub fn new(
        config: RunConfig,
        resume: bool,
        ranks: Option<Arc<Ranks>>,
        observer: &mut dyn Observer,
    ) -> Result<Trainer> {
        let trainer = Trainer::open(config, resume, ranks.clone(), observer);
        let Some(ranks) = ranks else { return trainer };
        // A rank that fails here tells the others, which would wait for it.
        let mut opened = None;
        let all = ranks.agree(trainer.map(|trainer| opened.insert(trainer).settings()))?;
        ranks.check_same(&all)?;
        opened.ok_or_else(|| Error::Ranks("the run did not begin".into()))
    }

    /// All that ranks must have in common.
    fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = self.origin.settings();
        settings.retain(|key, _| key != "threads" && key != "run.out");
        settings.insert("version of knet-train".into(), env!("CARGO_PKG_VERSION").into());
        settings.insert("iteration".into(), self.progress.iteration.to_string());
        settings.insert("images".into(), self.loader.epoch_len(0).to_string());
        settings
    }

    fn open(
        mut config: RunConfig,
        resume: bool,
        ranks: Option<Arc<Ranks>>,
        observer: &mut dyn Observer,
    ) -> Result<Trainer> {
        config.validate()?;
        let share = ranks.as_ref().map_or(Share::ALONE, |ranks| ranks.share());
        let mut compute = config.compute();
        if let (Some(ranks), true) = (&ranks, compute.is_gpu()) {
            let missing =
                || Error::usage(format!("device {}: the ranks were connected for CPUs", config.device));
            compute.device = Device::Cuda(ranks.gpu().ok_or_else(missing)?);
        }
        let out = &config.run.out;
        let lock = if share.rank == 0 {
            let lock = Lock::take(out, observer)?;
            let own = [STATE_FILE, LAST_FILE, BEST_FILE, DIVERGED_FILE, LOG_FILE, CURVES_FILE, CONFIG_FILE];
            sweep(out, |name| own.contains(&name))?;
            Some(lock)
        } else {
            None
        };
        let state_path = out.join(STATE_FILE);
        let resume = resume && state_path.exists();
        if !resume && state_path.exists() {
            return Err(Error::usage(format!(
                "{} holds a run already: go on with it by --resume, or choose another folder by --out",
                out.display()
            )));
        }
        let mix = Arc::new(Mix::open(&config.data.train, &config.reading())?);
        describe::data(&mix, "train", observer);
        let before = if resume { Some(state_path.as_path()) } else { config.start.weights.as_deref() };
        let model = config.model(&mix, before)?;
        let fit = forecast::fit(&config, &model, compute, resume.then_some(&state_path), share, observer)?;
        config.data.batch = BatchSize::Images(fit.images);
        let origin = Origin::of(&config, &mix);
        let mut changes = Vec::new();
        let (values, moments, progress) = if resume {
            let state = State::read(&state_path, &model)?;
            let iteration = state.progress.iteration;
            observer.note(&format!("{}: going on after iteration {iteration}", state_path.display()));
            match &state.origin {
                Some(before) => changes = before.changes(&origin)?,
                None => observer
                    .note("the state is of an older program: it does not say what it was started with"),
            }
            (state.values, state.moments, state.progress)
        } else {
            let (values, report) = initial_values(&model, &config.start, config.seed)?;
            describe::start(&config, &model, &report, observer);
            (values, BTreeMap::new(), Progress::new(config.seed))
        };
        for change in changes {
            observer.note(&format!("changed since: {change}"));
        }
        if progress.seed != config.seed {
            let (found, wanted) = (progress.seed, config.seed);
            return Err(Error::usage(format!(
                "the run began with seed {found}, the configuration says {wanted}"
            )));
        }
        let starts = |key: &str, prefix: &str| key.starts_with(prefix);
        check_patterns("frozen", config.frozen.iter(), starts, &values)?;
        check_patterns("start.reset", config.start.reset.iter(), starts, &values)?;
        let groups = config.optimizer.groups.iter().map(|group| &group.contains);
        check_patterns("optimizer.groups", groups, |key, part| key.contains(part), &values)?;
        let loader_config =
            LoaderConfig { start: progress.position, share, ..config.loader(&model, fit.images) };
        let writer = match lock {
            Some(lock) => {
                let outputs = Outputs::open(&config, &mix, &model, progress.iteration, observer)?;
                Some(Writer { outputs, _lock: lock })
            }
            None => None,
        };
        let loader = Loader::new(Arc::clone(&mix), loader_config)?;
        let total = total_iterations(&config, &loader, share.ranks, progress.iteration)?;
        describe::mismatches(&config, &model, &mix, total, observer);

        let spec = config.step(&model, fit, share);
        let values = Arc::new(values);
        let source = Arc::clone(&values);
        let load = Box::new(move |param: &Param| {
            let missing = || Error::Graph(format!("no initial value for `{}`", param.key));
            source.get(&param.key).cloned().ok_or_else(missing)
        });
        if let Some(ranks) = &ranks {
            observer.note(&format!("{} ranks, connected by {}", share.ranks, ranks.name()));
        }
        if writer.is_some() {
            kept::write(&config)?;
        }
        if let (Some(ranks), 0) = (&ranks, compute.threads) {
            compute.threads = ranks.threads();
        }
        let mut step = TrainStep::new(&spec, load, compute).map_err(|error| fit.explain(error))?;
        let mut constants = Arc::unwrap_or_clone(values);
        for (param, _) in step.changing() {
            constants.remove(&param.key);
        }
        if resume {
            restore(&mut step, &moments, progress.updates(), &state_path)?;
        }
        if let (Some(scale), Some(_)) = (progress.loss_scale, step.loss_scale()) {
            step.set_loss_scale(scale);
        }
        let now = Instant::now();
        Ok(Trainer {
            schedule: config.schedule.schedule(total),
            total,
            position: loader.position(),
            ahead: None,
            loader,
            constants,
            step,
            seconds_before: progress.seconds,
            progress,
            origin,
            ranks,
            writer,
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

    /// Trains until the end, the time limit, or `stop`, and saves. A validation that fails on the way costs a
    /// line, not the run; neither do curves and sample photos that cannot be written.
    ///
    /// # Errors
    /// [`Error::Diverged`] after saving the state before the update that went wrong; whatever else stops a
    /// step, after saving the state; a failed save, which leaves the last good state; what the last
    /// validation says, with everything saved.
    pub fn run(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome> {
        self.begun = Instant::now();
        self.saved = self.begun;
        let limit = match self.config.run.time_limit_minutes {
            0.0 => f64::INFINITY,
            minutes => 60.0 * minutes,
        };
        let at_start = self.writer.as_ref().is_some_and(|writer| writer.outputs.validates_at_start());
        if self.progress.iteration == 0 && self.progress.best.is_none() && at_start {
            self.validate_on_the_way(stop, observer)?;
        }
        loop {
            let (mut over, mut asked) =
                (self.begun.elapsed().as_secs_f64() >= limit, stop.load(Ordering::Relaxed));
            if let Some(ranks) = &self.ranks {
                over = ranks.any(over)?;
                asked = ranks.any(asked)?;
            }
            if self.progress.iteration >= self.total {
                self.save()?;
                let validated = self.validate(stop, observer);
                self.show(true, observer);
                return validated.map(|()| Outcome::Finished);
            } else if over || asked {
                self.save()?;
                self.show(false, observer);
                return Ok(if over { Outcome::TimeLimit } else { Outcome::Interrupted });
            }
            match self.iterate(stop) {
                Ok(true) => {}
                // Asked to stop in the middle of an update, which the next run does over.
                Ok(false) => continue,
                Err(error) => {
                    self.save_after(&error, observer);
                    return Err(error);
                }
            }
            self.progress.seconds = self.seconds_before + self.begun.elapsed().as_secs_f64();
            if let Err(error) = self.log(observer) {
                self.save_after(&error, observer);
                return Err(error);
            }
            let due = |writer: &Writer| writer.outputs.validation_is_due(&self.progress);
            if self.writer.as_ref().is_some_and(due) {
                self.validate_on_the_way(stop, observer)?;
                self.show(false, observer);
            } else if self.save_is_due() {
                self.save()?;
            }
            if self.writer.as_ref().is_some_and(|writer| writer.outputs.overlay_is_due()) {
                self.export()?;
                self.show(true, observer);
            }
        }
    }

    /// Saves and validates. The state comes first: whatever happens while validating, the run goes on from
    /// here.
    fn validate_on_the_way(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<()> {
        self.save()?;
        if let Err(error) = self.validate(stop, observer) {
            observer.note(&format!("not validated: {error}; the run goes on"));
            self.progress.validated = self.place();
        }
        Ok(())
    }

    /// Epoch and seconds of the run.
    fn place(&self) -> (u64, f64) {
        (self.progress.position.epoch, self.progress.seconds)
    }

    /// Tells the observer and, now and then, the log.
    fn log(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Progress { iteration, position, .. } = self.progress;
        let (total, epoch, lr) = (self.total, position.epoch, self.lr);
        observer.step(&RunReport { iteration, total, epoch, lr, meter: &self.meter });
        if iteration.is_multiple_of(self.config.run.log_iterations) || iteration == total {
            let loss_scale = self.step.loss_scale();
            let head = LineHead { iteration, epoch, lr, grad_norm: self.grad_norm, loss_scale };
            if let Some(writer) = &mut self.writer {
                writer.outputs.train(&head, &self.meter)?;
            }
            self.meter.reset();
        }
        Ok(())
    }

    /// Draws curves, and with `photos` the sample photos. Both are for people alone: a failure is noted.
    fn show(&mut self, photos: bool, observer: &mut dyn Observer) {
        let last = self.path(LAST_FILE);
        let Some(Writer { outputs, .. }) = &mut self.writer else { return };
        let mut drawn = outputs.curves();
        if photos {
            let photos = outputs.overlay(&last, self.progress.iteration);
            drawn = drawn.and(photos);
        }
        if let Err(error) = drawn {
            observer.note(&format!("not drawn: {error}; the run goes on"));
        }
    }

    /// One update. Gives false if `stop` was set before it was done: then nothing has changed but the
    /// loader's place.
    fn iterate(&mut self, stop: &AtomicBool) -> Result<bool> {
        let start = Instant::now();
        // Running statistics follow every batch; an update that is broken off must not leave a trace.
        let several = self.config.data.accumulate > 1;
        let statistics = if several { self.step.statistics()? } else { Vec::new() };
        self.lr = self.config.optimizer.lr * self.schedule.factor(self.progress.iteration, self.total);
        for part in 0..self.config.data.accumulate {
            let mut asked = part > 0 && stop.load(Ordering::Relaxed);
            if let (Some(ranks), true) = (&self.ranks, part > 0) {
                asked = ranks.any(asked)?;
            }
            if asked {
                self.step.break_off(&statistics)?;
                return Ok(false);
            }
            let ends = self.progress.iteration + 1 >= self.total && part + 1 == self.config.data.accumulate;
            let done = self.run_batch(ends);
            let (all, norm) = match &self.ranks {
                None => {
                    let (done, norm) = done?;
                    (vec![done], norm)
                }
                Some(ranks) => {
                    let took_part = self.step.take_part(ranks);
                    let all = ranks.agree(done.and_then(|(done, _)| took_part.map(|()| done)))?;
                    self.step.join(ranks)?;
                    (all, self.step.update(self.lr)?)
                }
            };
            for Done { losses, images, left_out, .. } in &all {
                self.meter.add(losses);
                self.meter.images += images;
                self.meter.left_out += left_out;
            }
            if let Some(norm) = norm
                && !self.step.optimizer().is_some_and(Optimizer::was_left_out)
            {
                self.grad_norm = norm;
                self.check_update(norm, &all)?;
            }
        }
        self.progress.iteration += 1;
        // Of a run that began in f16 and goes on otherwise, what was left out stays known.
        self.progress.loss_scale = self.step.loss_scale().or(self.progress.loss_scale);
        self.progress.position = self.position;
        self.meter.seconds += start.elapsed().as_secs_f64();
        Ok(true)
    }

    /// One batch of this rank: losses and gradients. Without other ranks an update that is due follows, and
    /// the gradients' norm is given. While the device works the next batch is fetched and loaded, unless this
    /// one `ends` the run.
    fn run_batch(&mut self, ends: bool) -> Result<(Done, Option<f64>)> {
        match self.ahead.take() {
            Some(fetched) => fetched?,
            None => self.fetch()?,
        }
        self.position = self.loader.position();
        let batch = self.loader.current()?;
        let lr = self.ranks.is_none().then_some(self.lr);
        self.step.begin(batch, lr, self.ranks.as_deref())?;
        let (images, left_out, ids) = (batch.len() as u64, batch.left_out as u64, batch.ids.clone());
        if !ends {
            // A fault is that batch's, not this one's.
            let fetched = self.fetch();
            let load = |()| self.step.load(self.loader.current()?);
            self.ahead = Some(fetched.and_then(load));
        }
        let learnt = self.step.finish()?;
        Ok((Done { losses: learnt.losses.clone(), images, left_out, ids }, learnt.norm))
    }

    /// Asks the loader for the next batch.
    fn fetch(&mut self) -> Result<()> {
        let waiting = Instant::now();
        let fetched = self.loader.next_batch().map(drop);
        self.meter.waiting += waiting.elapsed().as_secs_f64();
        fetched
    }

    /// Refuses an update of a gradient of this norm, or one that made a parameter NaN or infinite. It is the
    /// same on all ranks.
    fn check_update(&self, norm: f64, batches: &[Done]) -> Result<()> {
        let fault = self.step.optimizer().and_then(|optimizer| optimizer.fault(self.step.executor()));
        let what = match fault {
            _ if !norm.is_finite() => "the gradient".to_string(),
            Some(param) => format!("`{}` after the update", param.key),
            None => return Ok(()),
        };
        if let Some(ranks) = &self.ranks {
            ranks.fail_together();
        }
        Err(Error::Diverged { what, ids: batches.iter().flat_map(|done| done.ids.clone()).collect() })
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
    ///
    /// # Errors
    /// [`Error::Diverged`] for values that are not finite: the last good state stays. As [`State::write`].
    fn save(&mut self) -> Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        let state = self.state()?;
        if let Some(key) = state.non_finite() {
            return Err(Error::Diverged { what: format!("`{key}`"), ids: Vec::new() });
        }
        state.write(&self.path(STATE_FILE), &self.model)?;
        state.export(&self.path(LAST_FILE), &self.model, self.config.run.f16)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Writes the weights for use alone.
    fn export(&self) -> Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        self.state()?.export(&self.path(LAST_FILE), &self.model, self.config.run.f16)
    }

    /// Validates the weights that were saved last, and keeps them if they are the best.
    fn validate(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<()> {
        let last = self.path(LAST_FILE);
        let place = (self.progress.iteration, self.progress.position.epoch);
        let Some(Writer { outputs, .. }) = &mut self.writer else { return Ok(()) };
        let Some(Judged(judged)) = outputs.validate(&last, place, stop, observer)? else {
            return Ok(());
        };
        self.progress.validated = self.place();
        if let Some(value) = judged.filter(|value| self.progress.best.is_none_or(|best| *value > best)) {
            self.progress.best = Some(value);
            self.state()?.export(&self.path(BEST_FILE), &self.model, self.config.run.f16)?;
        }
        // What is the best, and that this was looked at, belongs to the state.
        self.save()
    }

    /// Saves what can be saved when a step has failed; `error` itself is the caller's to report.
    fn save_after(&mut self, error: &Error, observer: &mut dyn Observer) {
        if self.writer.is_none() {
            return;
        }
        let name = if matches!(error, Error::Diverged { .. }) { DIVERGED_FILE } else { STATE_FILE };
        let path = self.path(name);
        let state = match self.state() {
            Ok(state) => state,
            Err(failure) => return observer.note(&format!("the state cannot be read: {failure}")),
        };
        if let Some(key) = state.non_finite() {
            observer.note(&format!(
                "stopped in iteration {}; its state is not saved, as `{key}` is not finite: {STATE_FILE} is the last good one",
                self.progress.iteration + 1
            ));
            return;
        }
        match state.write(&path, &self.model) {
            Ok(()) => observer.note(&format!(
                "stopped in iteration {}; the state before it is saved in {}",
                self.progress.iteration + 1,
                path.display()
            )),
            Err(failure) => observer.note(&format!("the state cannot be saved: {failure}")),
        }
    }

    fn state(&self) -> Result<State> {
        let mut values = self.constants.clone();
        values.extend(self.step.parameters()?.into_iter().map(|(param, tensor)| (param.key.clone(), tensor)));
        let mut moments = BTreeMap::new();
        for slot in self.step.optimizer().into_iter().flat_map(Optimizer::slots) {
            let read = |variable| self.step.read(&slot.param, variable);
            let average = slot.average.map(read).transpose()?;
            let kept = Moments { first: read(slot.first)?, second: read(slot.second)?, average };
            moments.insert(slot.param.key.clone(), kept);
        }
        Ok(State { progress: self.progress.clone(), values, moments, origin: Some(self.origin.clone()) })
    }
}
