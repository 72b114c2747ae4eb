//! Validation: the weights for use on the validation sets.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, WeightSource};
use crate::error::{Error, Result};
use crate::train::data::{DataConfig, Mix};
use crate::train::evaluate::class_match::ClassPolicy;
use crate::train::evaluate::{EvalSpec, Evaluation, Report, SemanticSpec};

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

/// The validation sets.
pub struct Validator {
    sets: Vec<(String, EvalSpec, Option<Evaluation>)>,
}

impl Validator {
    /// Names the sets; they are read when first used.
    pub fn new(configs: &[DataConfig]) -> Validator {
        let mut sets: Vec<(String, EvalSpec, Option<Evaluation>)> = Vec::new();
        for config in configs {
            let (path, spec) = spec(config);
            let stem = set_name(&path);
            let taken = |name: &str| sets.iter().any(|(known, ..)| known == name);
            let mut name = stem.clone();
            let mut number = 2;
            while taken(&name) {
                name = format!("{stem}-{number}");
                number += 1;
            }
            sets.push((name, spec, None));
        }
        Validator { sets }
    }

    /// True if there is nothing to validate on.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Runs a model over all sets.
    ///
    /// # Errors
    /// As [`Evaluation::open`] and [`Evaluation::run`].
    pub fn run(&mut self, engine: &mut Engine) -> Result<Vec<Score>> {
        let mut scores = Vec::new();
        for (name, spec, opened) in &mut self.sets {
            let evaluation = match opened {
                Some(evaluation) => evaluation,
                None => opened.insert(Evaluation::open(spec, engine)?),
            };
            let report = evaluation.run(engine, |_, _| ())?;
            scores.push(Score { set: name.clone(), metrics: metrics(&report) });
        }
        Ok(scores)
    }
}

/// The number a checkpoint is judged by: `metric` (the main one of each set, if none is named), as the mean over the sets
/// that have it.
pub fn judge(scores: &[Score], metric: Option<Metric>) -> Option<f64> {
    let of = |score: &Score| match metric {
        None => score.metrics.first().map(|&(_, value)| value),
        Some(metric) => score.metrics.iter().find(|(m, _)| *m == metric).map(|&(_, value)| value),
    };
    let found: Vec<f64> = scores.iter().filter_map(of).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

/// An engine with the weights in `path`.
///
/// # Errors
/// As [`EngineBuilder::build`](crate::engine::EngineBuilder::build).
pub fn engine(path: &Path, threads: usize) -> Result<Engine> {
    Engine::builder().weights(WeightSource::File(path.to_path_buf())).threads(threads).build()
}

/// Opens the validation sets as training does, to find their faults before the run, and checks that the classes agree.
///
/// # Errors
/// As [`Mix::open`]; [`Error::Usage`] if the classes are not those of `train`.
pub fn check(configs: &[DataConfig], verify: bool, train: &Mix) -> Result<Mix> {
    let mix = Mix::open(configs, verify)?;
    let names = |mix: &Mix| mix.classes().iter().map(|c| c.name.to_string()).collect::<Vec<_>>();
    if names(&mix) != names(train) {
        let (val, train) = (names(&mix).join(", "), names(train).join(", "));
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

/// What names a set, and how it is evaluated.
fn spec(config: &DataConfig) -> (PathBuf, EvalSpec) {
    let none = EvalSpec {
        images: PathBuf::new(),
        annotations: None,
        panoptic_dir: None,
        semantic: None,
        classes: ClassPolicy::Same,
    };
    match config.clone() {
        DataConfig::CocoInstance { annotations, images, classes, .. } => {
            let policy = if classes.is_some() { ClassPolicy::Common } else { ClassPolicy::Same };
            let annotations_of = Some(annotations.clone());
            (annotations, EvalSpec { images, annotations: annotations_of, classes: policy, ..none })
        }
        DataConfig::CocoPanoptic { annotations, images, masks, .. } => {
            let annotations_of = Some(annotations.clone());
            (annotations, EvalSpec { images, annotations: annotations_of, panoptic_dir: Some(masks), ..none })
        }
        DataConfig::Semantic { images, masks, classes, field, list, .. } => {
            let semantic = Some(SemanticSpec { masks: masks.clone(), classes, field, list });
            (masks, EvalSpec { images, semantic, ..none })
        }
    }
}

/// The folder that a set lies in, without the part that all sets have.
fn set_name(path: &Path) -> String {
    let folders = path.ancestors().skip(1).filter_map(|folder| folder.file_name());
    let mut names = folders.map(|name| name.to_string_lossy().into_owned());
    let name = names.find(|name| name != "annotations");
    name.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
}
