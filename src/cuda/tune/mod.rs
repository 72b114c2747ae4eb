//! Measured instead of modelled: every distinct site of a plan that several programs can run is timed with each of them, and a
//! table of the fastest replaces the cost models' choice ([`Selection`](super::Selection)).
//!
//! This module decides by times that it is given; [`Timer`] takes them on a device.

mod measure;
mod table;

pub use measure::Timer;
pub use table::{Measured, Scope, Table};

use super::ops;
use crate::error::{Error, Result};
use crate::plan::launch::{Program, Target};
use crate::plan::{OwnedSite, Plan};
use std::time::Duration;

/// How many times every candidate is timed; its median counts. Rounds go over all candidates of a site in turn, so that a clock
/// that drifts meets all of them.
pub const ROUNDS: usize = 7;

/// A candidate replaces the model's choice if it takes less than this part of its time: differences below 3 % are noise.
pub const MARGIN: f64 = 0.97;

/// Largest workspace of a candidate, in bytes; it would be part of the arena.
const MAX_WORKSPACE: usize = 256 << 20;

/// A site with a choice.
#[derive(Clone, Debug)]
pub struct Task {
    /// The site.
    pub site: OwnedSite,
    /// The steps that it stands for.
    pub steps: Vec<String>,
    /// What could run, at least two; the cost model's choice first.
    pub candidates: Vec<Program>,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The site as text: its key in a [`Table`].
    pub site: String,
    /// The steps that it stands for.
    pub steps: Vec<String>,
    /// Kernel and median time of every candidate, the cost model's choice first.
    pub times: Vec<(String, Duration)>,
    /// Position of the best.
    pub best: usize,
}

impl Outcome {
    /// The cost model's choice.
    pub fn model(&self) -> &(String, Duration) {
        &self.times[0]
    }

    /// What is to run.
    pub fn chosen(&self) -> &(String, Duration) {
        &self.times[self.best]
    }

    /// What a run of the plan gains, over all steps.
    pub fn gain(&self) -> Duration {
        self.model().1.saturating_sub(self.chosen().1) * self.steps.len() as u32
    }

    /// The entry of a table.
    pub fn measured(&self) -> Measured {
        let ((model, before), (kernel, after)) = (self.model(), self.chosen());
        let microseconds = |time: &Duration| time.as_secs_f64() * 1e6;
        Measured {
            kernel: kernel.clone(),
            microseconds: microseconds(after),
            model: model.clone(),
            model_microseconds: microseconds(before),
        }
    }
}

/// The distinct sites of `plan` with a choice, in order, each with its `most` best candidates by the cost model (two at least).
///
/// # Errors
/// [`Error::Shape`] where there is no kernel for a step.
pub fn tasks(plan: &Plan, target: &Target, most: usize) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    for step in &plan.steps {
        let site = step.site();
        if let Some(known) = tasks.iter_mut().find(|task| task.site == site) {
            known.steps.push(step.name.clone());
            continue;
        }
        let mut candidates = ops::candidates(&site.site(), target).map_err(|reason| Error::Shape {
            op: step.op.name(),
            value: step.name.clone(),
            reason,
        })?;
        let first = candidates.remove(0);
        candidates.retain(|program| program.workspace <= MAX_WORKSPACE);
        candidates.truncate(most.max(2) - 1);
        if !candidates.is_empty() {
            candidates.insert(0, first);
            tasks.push(Task { site, steps: vec![step.name.clone()], candidates });
        }
    }
    Ok(tasks)
}

/// The fastest of candidates by time, the earlier of equals; the first unless another beats it by [`MARGIN`].
pub fn best(times: &[Duration]) -> usize {
    let least = (0..times.len()).min_by_key(|&i| times[i]).unwrap_or(0);
    let limit = times.first().map_or(0.0, |first| first.as_secs_f64() * MARGIN);
    if times.get(least).is_some_and(|time| time.as_secs_f64() < limit) { least } else { 0 }
}

/// Times every candidate of a task [`ROUNDS`] times by `measure`, which takes its position.
///
/// # Errors
/// What `measure` says.
pub fn run(task: &Task, mut measure: impl FnMut(&Task, usize) -> Result<Duration>) -> Result<Outcome> {
    let mut rounds = vec![Vec::with_capacity(ROUNDS); task.candidates.len()];
    for _ in 0..ROUNDS {
        for (index, times) in rounds.iter_mut().enumerate() {
            times.push(measure(task, index)?);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let medians: Vec<Duration> = rounds.iter_mut().map(median).collect();
    let kernels = task.candidates.iter().map(|program| program.kernel.clone());
    Ok(Outcome {
        site: task.site.site().to_string(),
        steps: task.steps.clone(),
        best: best(&medians),
        times: kernels.zip(medians).collect(),
    })
}
