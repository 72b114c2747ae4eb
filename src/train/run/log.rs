//! The log of a run: one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::validate::Score;
use crate::error::{Error, Result};
use crate::fsio::{atomic_write, read_file};
use crate::train::loss_scale::LossScale;
use crate::train::step::Losses;

/// Means over the iterations since the last line.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    terms: Vec<(String, f64)>,
    total: f64,
    steps: u64,
    /// Images since the last line.
    pub images: u64,
    /// Seconds since the last line.
    pub seconds: f64,
    /// Of these, seconds spent waiting for data.
    pub waiting: f64,
    /// Objects that did not fit into their batch.
    pub left_out: u64,
}

impl Meter {
    /// Adds the losses of one step.
    pub fn add(&mut self, losses: &Losses) {
        if self.terms.is_empty() {
            self.terms = losses.terms.iter().map(|(name, _)| (name.clone(), 0.0)).collect();
        }
        for ((_, sum), (_, value)) in self.terms.iter_mut().zip(&losses.terms) {
            *sum += f64::from(*value);
        }
        self.total += f64::from(losses.total);
        self.steps += 1;
    }

    /// Starts anew, keeping memory.
    pub fn reset(&mut self) {
        self.terms.iter_mut().for_each(|(_, sum)| *sum = 0.0);
        (self.total, self.steps, self.images, self.left_out) = (0.0, 0, 0, 0);
        (self.seconds, self.waiting) = (0.0, 0.0);
    }

    /// Mean of every term.
    pub fn terms(&self) -> impl Iterator<Item = (&str, f64)> {
        self.terms.iter().map(|(name, sum)| (name.as_str(), sum / self.steps.max(1) as f64))
    }

    /// Mean of the total.
    pub fn total(&self) -> f64 {
        self.total / self.steps.max(1) as f64
    }

    /// Images per second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.images as f64 / self.seconds } else { 0.0 }
    }

    /// Share of the time spent waiting for data.
    pub fn wait_share(&self) -> f64 {
        if self.seconds > 0.0 { self.waiting / self.seconds } else { 0.0 }
    }
}

/// Numbers of a line beside the means.
#[derive(Clone, Copy, Debug)]
pub struct LineHead {
    /// Updates done.
    pub iteration: u64,
    /// Epoch of the last image, from 0.
    pub epoch: u64,
    /// Learning rate of the last update, before the groups' factors.
    pub lr: f64,
    /// Norm of the last gradient before clipping.
    pub grad_norm: f64,
    /// Of a run in f16, the factor on losses.
    pub loss_scale: Option<LossScale>,
}

/// A training line.
pub fn line(head: &LineHead, meter: &Meter) -> Value {
    let terms: Map<String, Value> = meter.terms().map(|(name, value)| (name.into(), value.into())).collect();
    let mut line = json!({
        "kind": "train",
        "iteration": head.iteration,
        "epoch": head.epoch,
        "lr": head.lr,
        "loss": meter.total(),
        "terms": terms,
        "grad_norm": head.grad_norm,
        "images_per_second": meter.rate(),
        "data_wait": meter.wait_share(),
        "left_out": meter.left_out,
    });
    if let Some(LossScale { factor, left_out, .. }) = head.loss_scale {
        line["loss_scale"] = factor.into();
        line["updates_left_out"] = left_out.into();
    }
    line
}

/// A validation line.
pub fn validation_line(iteration: u64, epoch: u64, scores: &[Score], judged: Option<f64>) -> Value {
    let of = |score: &Score| {
        let metrics = score.metrics.iter().map(|(metric, value)| (metric.name().into(), (*value).into()));
        (score.set.clone(), Value::Object(metrics.collect()))
    };
    let sets: Map<String, Value> = scores.iter().map(of).collect();
    json!({"kind": "val", "iteration": iteration, "epoch": epoch, "judged": judged, "sets": sets})
}

/// The open file.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of a run that goes on at `iteration`. Lines beyond it, which a killed run has left, are
    /// dropped: they come again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, iteration: u64) -> Result<Log> {
        if path.exists() {
            let lines = read(path)?;
            let kept = lines.iter().filter(|line| line["iteration"].as_u64().is_some_and(|i| i <= iteration));
            atomic_write(path, |out| kept.into_iter().try_for_each(|line| writeln!(out, "{line}")))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| Error::io(path, e))?;
        Ok(Log { path: path.to_path_buf(), file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, line: &Value) -> Result<()> {
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

/// All whole lines of a log; a line that was cut off by a crash is left out.
///
/// # Errors
/// [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let bytes = read_file(path)?;
    // A cut may lie within a letter.
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
