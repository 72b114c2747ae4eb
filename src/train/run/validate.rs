//! Validation: the weights for use on the validation sets.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::Config;
use crate::train::data::warning::list;
use crate::train::data::{DataConfig, Mix, Reading};
use crate::train::evaluate::class_match::ClassPolicy;
use crate::train::evaluate::{Evaluation, Report};

/// A number that checkpoints are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// AP of instance masks.
    Ap,
    /// AP of instance masks at IoU 0.5.
    Ap50,
    /// Panoptic quality.
    Pq,
    /// Mean IoU.
    Miou,
}

impl Metric {
    /// Name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Ap => "ap",
            Metric::Ap50 => "ap50",
            Metric::Pq => "pq",
            Metric::Miou => "miou",
        }
    }
}

/// What was reached on one set.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Name of the set.
    pub set: String,
    /// The metrics that its annotations allow, between 0 and 1; the main one first.
    pub metrics: Vec<(Metric, f64)>,
}

/// The validation sets, read and checked.
pub struct Validator {
    sets: Vec<(String, Evaluation)>,
}

impl Validator {
    /// Names the sets of `mix`, which was opened from `configs`, and takes their ground truth for models like
    /// `model`.
    ///
    /// # Errors
    /// As [`Evaluation::of`].
    pub fn open(configs: &[DataConfig], mix: &Mix, model: &Config) -> Result<Validator> {
        let mut sets: Vec<(String, Evaluation)> = Vec::new();
        for (config, data) in configs.iter().zip(mix.sets()) {
            let stem = set_name(config);
            let taken = |name: &str| sets.iter().any(|(known, ..)| known == name);
            let mut name = stem.clone();
            let mut number = 2;
            while taken(&name) {
                name = format!("{stem}-{number}");
                number += 1;
            }
            sets.push((name, Evaluation::of(data, model, ClassPolicy::Same)?));
        }
        Ok(Validator { sets })
    }

    /// Runs a model over all sets; `None` if `stop` was set meanwhile.
    ///
    /// # Errors
    /// As [`Evaluation::run`], whichever image it is.
    pub fn run(&mut self, engine: &mut Engine, stop: &AtomicBool) -> Result<Option<Vec<Score>>> {
        let mut scores = Vec::new();
        for (name, evaluation) in &mut self.sets {
            let report = evaluation.run(engine, |_| match stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })?;
            match report.partial {
                Some(partial) if partial.kind.is_none() => return Ok(None),
                Some(partial) => return Err(Error::data(name, partial.reason)),
                None => scores.push(Score { set: name.clone(), metrics: metrics(&report) }),
            }
        }
        Ok(Some(scores))
    }
}

/// The number a checkpoint is judged by: `metric` (the main one of each set, if none is named), as the mean
/// over the sets that have it.
pub fn judge(scores: &[Score], metric: Option<Metric>) -> Option<f64> {
    let of = |score: &Score| match metric {
        None => score.metrics.first().map(|&(_, value)| value),
        Some(metric) => score.metrics.iter().find(|(m, _)| *m == metric).map(|&(_, value)| value),
    };
    let found: Vec<f64> = scores.iter().filter_map(of).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

/// Opens the validation sets, and checks that their classes are those of `train`.
///
/// # Errors
/// As [`Mix::open`]; [`Error::Usage`] if the classes differ.
pub fn open(configs: &[DataConfig], reading: &Reading, train: &Mix) -> Result<Mix> {
    let mix = Mix::open(configs, reading)?;
    let names = |mix: &Mix| mix.classes().iter().map(|c| c.name.to_string()).collect::<Vec<_>>();
    if (names(&mix), mix.things()) != (names(train), train.things()) {
        let (val, train) = (list(&names(&mix)), list(&names(train)));
        return Err(Error::usage(format!("data.val has the classes {val}; data.train has {train}")));
    }
    Ok(mix)
}

fn metrics(report: &Report) -> Vec<(Metric, f64)> {
    let mut metrics = Vec::new();
    if let Some(instances) = &report.instances {
        metrics.extend([(Metric::Ap, instances.ap), (Metric::Ap50, instances.ap50)]);
    }
    metrics.extend(report.panoptic.iter().map(|panoptic| (Metric::Pq, panoptic.all.pq)));
    metrics.extend(report.semantic.iter().map(|semantic| (Metric::Miou, semantic.miou)));
    metrics
}

/// The folder that a set lies in, without the part that all sets have.
fn set_name(config: &DataConfig) -> String {
    let path = match config {
        DataConfig::CocoInstance { annotations, .. } | DataConfig::CocoPanoptic { annotations, .. } => {
            annotations
        }
        DataConfig::Semantic { masks, .. } => masks,
    };
    let folders = path.ancestors().skip(1).filter_map(|folder| folder.file_name());
    let mut names = folders.map(|name| name.to_string_lossy().into_owned());
    let name = names.find(|name| name != "annotations");
    name.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
}
