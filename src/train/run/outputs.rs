//! What a run shows for itself: log, event file, curves, validation, sample photos.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::config::{OutputConfig, RunConfig};
use super::log::{LineHead, Log, Meter, line, read, validation_line};
use super::overlay::Samples;
use super::state::Progress;
use super::tensorboard::EventFile;
use super::validate::{self, Score, Validator, judge};
use super::{Observer, curves, describe};
use crate::engine::{Compute, validation_engine};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::train::data::Mix;

/// The log.
pub const LOG_FILE: &str = "log.jsonl";
/// The curves.
pub const CURVES_FILE: &str = "curves.png";
/// Folder of the sample photos.
pub const OVERLAY_FOLDER: &str = "overlays";

/// Most images of the validation sets for a validation before the first step, so that it costs no more than
/// seconds to minutes.
const MOST_AT_START: usize = 100;

/// A validation that went through to its end, and the number it is judged by if its sets give the metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged(pub Option<f64>);

/// All that a run writes beside its checkpoints.
pub struct Outputs {
    config: OutputConfig,
    /// What the run trains on.
    compute: Compute,
    log: Log,
    events: EventFile,
    validator: Option<Validator>,
    /// Images to validate on.
    images: usize,
    samples: Samples,
    drawn: Instant,
}

impl Outputs {
    /// Opens the validation sets, and the files of a run that goes on at `iteration`.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`validate::open`] and [`Validator::open`].
    pub fn open(
        config: &RunConfig,
        train: &Mix,
        model: &Config,
        iteration: u64,
        observer: &mut dyn Observer,
    ) -> Result<Outputs> {
        let run = &config.run;
        let val = &config.data.val;
        let mix = match val.is_empty() {
            true => None,
            false => Some(validate::open(val, &config.reading(), train)?),
        };
        let validator = mix.as_ref().map(|mix| Validator::open(val, mix, model)).transpose()?;
        if let Some(mix) = &mix {
            describe::data(mix, "val", observer);
        }
        let photos = if run.overlay_minutes > 0.0 { run.overlay_photos } else { 0 };
        let samples = Samples::load(mix.as_ref().unwrap_or(train), photos)?;
        Ok(Outputs {
            log: Log::open(&run.out.join(LOG_FILE), iteration)?,
            events: EventFile::create(&run.out)?,
            validator,
            images: mix.as_ref().map_or(0, Mix::len),
            samples,
            compute: config.compute(),
            config: run.clone(),
            drawn: Instant::now(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.out.join(name)
    }

    /// Logs a training line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn train(&mut self, head: &LineHead, meter: &Meter) -> Result<()> {
        self.log.write(&line(head, meter))?;
        let terms: Vec<(String, f64)> =
            meter.terms().map(|(name, value)| (format!("loss/{name}"), value)).collect();
        let rest = [
            ("loss/total", meter.total()),
            ("run/lr", head.lr),
            ("run/grad_norm", head.grad_norm),
            ("run/images_per_second", meter.rate()),
            ("run/data_wait", meter.wait_share()),
        ];
        let terms = terms.iter().map(|(name, value)| (name.as_str(), *value));
        self.events.scalars(head.iteration, terms.chain(rest))
    }

    /// Whether a run is validated before its first step: what it starts from is what all later numbers are
    /// compared with, and what cannot be validated is known at once.
    pub fn validates_at_start(&self) -> bool {
        let OutputConfig { validate_minutes: minutes, validate_epochs: epochs, .. } = self.config;
        (minutes > 0.0 || epochs > 0) && (1..=MOST_AT_START).contains(&self.images)
    }

    /// Whether it is time to validate: by what was trained since the last time, in whatever processes.
    pub fn validation_is_due(&self, progress: &Progress) -> bool {
        let OutputConfig { validate_minutes: minutes, validate_epochs: epochs, .. } = self.config;
        let (last_epoch, last_seconds) = progress.validated;
        // The first one comes early.
        let minutes = if last_seconds > 0.0 { minutes } else { minutes / 10.0 };
        let by_time = minutes > 0.0 && progress.seconds - last_seconds >= 60.0 * minutes;
        let by_epoch = epochs > 0 && progress.position.epoch >= last_epoch + epochs;
        self.validator.is_some() && (by_time || by_epoch)
    }

    /// Whether it is time for a sheet of sample photos.
    pub fn overlay_is_due(&self) -> bool {
        let minutes = self.config.overlay_minutes;
        minutes > 0.0 && self.drawn.elapsed().as_secs_f64() >= 60.0 * minutes
    }

    /// Validates the checkpoint at `weights` and logs it. Gives what it is judged by; `None` if there is
    /// nothing to validate on, or `stop` was set meanwhile.
    ///
    /// # Errors
    /// As [`Validator::run`]; [`Error::Io`].
    pub fn validate(
        &mut self,
        weights: &Path,
        (iteration, epoch): (u64, u64),
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Option<Judged>> {
        let Some(validator) = &mut self.validator else { return Ok(None) };
        let start = Instant::now();
        let mut engine = validation_engine(weights, self.compute)?;
        let Some(scores) = validator.run(&mut engine, stop)? else { return Ok(None) };
        let judged = judge(&scores, self.config.best);
        self.log.write(&validation_line(iteration, epoch, &scores, judged))?;
        for Score { set, metrics } in &scores {
            let tags: Vec<(String, f64)> = metrics
                .iter()
                .map(|(metric, value)| (format!("val/{set}/{}", metric.name()), *value))
                .collect();
            self.events.scalars(iteration, tags.iter().map(|(tag, value)| (tag.as_str(), *value)))?;
            let text: Vec<String> =
                metrics.iter().map(|(metric, value)| format!("{} {value:.4}", metric.name())).collect();
            let when = match iteration {
                0 => "before the first step".to_string(),
                _ => format!("iteration {iteration}"),
            };
            observer.note(&format!("{when}: {set}: {}", text.join(", ")));
        }
        observer.note(&format!("validated in {:.1} s on {}", start.elapsed().as_secs_f64(), engine.device()));
        Ok(Some(Judged(judged)))
    }

    /// Draws the sample photos with the checkpoint at `weights`.
    ///
    /// # Errors
    /// As [`Samples::write`].
    pub fn overlay(&mut self, weights: &Path, iteration: u64) -> Result<()> {
        if self.config.overlay_minutes > 0.0 {
            let folder = self.path(OVERLAY_FOLDER);
            std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            let path = folder.join(format!("{iteration:07}.png"));
            self.samples.write(&mut validation_engine(weights, self.compute)?, &path)?;
        }
        self.drawn = Instant::now();
        Ok(())
    }

    /// Draws the curves from the log.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn curves(&self) -> Result<()> {
        curves::write(&read(&self.path(LOG_FILE))?, &self.path(CURVES_FILE))
    }
}
