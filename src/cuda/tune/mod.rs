//! Measured instead of modelled: every distinct site of a plan that several programs can run is timed with
//! each of them, and a table of the fastest replaces the cost models' choice
//! ([`Selection`](super::Selection)).
//!
//! This module decides by times that it is given; [`Timer`] takes them on a device.

mod measure;
mod table;

pub use measure::Timer;
pub use table::{Measured, Scope, Table};

use super::ops;
use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::error::{Error, Result};
use crate::plan::{OwnedSite, Plan};
use std::time::Duration;

/// How many times every candidate is timed; its median counts. Rounds go over all candidates of a site in
/// turn, so that a clock that drifts meets all of them.
pub const ROUNDS: usize = 7;

/// Runs in a row that a time is taken of.
pub const REPEATS: usize = 32;

/// A candidate replaces the model's choice if it takes less than this part of its time: differences below 3 %
/// are noise.
pub const MARGIN: f64 = 0.97;

/// Largest workspace of a candidate, in bytes; it would be part of the arena.
const MAX_WORKSPACE: usize = 256 << 20;

/// A site with a choice.
#[derive(Clone, Debug)]
pub struct TuningTask {
    /// The site.
    pub site: OwnedSite,
    /// The steps that it stands for.
    pub steps: Vec<String>,
    /// What could run, at least two; the cost model's choice first.
    pub candidates: Vec<Program>,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TuningOutcome {
    /// The site as text: its key in a [`Table`].
    pub site: String,
    /// The steps that it stands for.
    pub steps: Vec<String>,
    /// Kernel and median time of every candidate, the cost model's choice first.
    pub times: Vec<(String, Duration)>,
    /// Position of the best.
    pub best: usize,
}

impl TuningOutcome {
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

/// The distinct sites of `plan` with a choice, in order, each with its `most` best candidates by the cost
/// model (two at least).
///
/// # Errors
/// [`Error::Shape`] where there is no kernel for a step.
pub fn tasks<P>(plan: &Plan<P>, target: &Target, most: usize) -> Result<Vec<TuningTask>> {
    let mut tasks: Vec<TuningTask> = Vec::new();
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
            tasks.push(TuningTask { site, steps: vec![step.name.clone()], candidates });
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
pub fn run(
    task: &TuningTask,
    mut measure: impl FnMut(&TuningTask, usize) -> Result<Duration>,
) -> Result<TuningOutcome> {
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
    Ok(TuningOutcome {
        site: task.site.site().to_string(),
        steps: task.steps.clone(),
        best: best(&medians),
        times: kernels.zip(medians).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::gpu::{Caps, Precision};
    use crate::cuda::{Selection, plan};
    use crate::graph::{Builder, Graph, Layout};
    use crate::ops::{Activate, Conv2d, Linear, ValueType, activation::Activation};
    use std::sync::Arc;

    const TARGET: Target = Target { caps: Caps::H100, precision: Precision::F16 };

    /// Two equal convolutions of a map, one of another shape, and an activation, which has no choice.
    fn graph() -> Graph {
        let mut builder = Builder::new();
        let mut value = builder.input("x", ValueType::map([1, 25, 42, 256]));
        for (name, taps, filters) in [("a", 3, 256), ("b", 3, 256), ("c", 1, 512)] {
            let filter =
                builder.param(&format!("{name}.weight"), &[filters, taps, taps, 256], Layout::Plain).unwrap();
            value = builder.node(name, Conv2d::with(1, taps / 2), &[value, filter]).unwrap();
        }
        let result = builder.node("d", Activate { activation: Activation::Sigmoid }, &[value]).unwrap();
        builder.output("y", result);
        builder.finish().unwrap()
    }

    fn micros(times: &[u64]) -> Vec<Duration> {
        times.iter().map(|&time| Duration::from_micros(time)).collect()
    }

    #[test]
    fn equal_steps_are_one_task_and_the_models_choice_comes_first() {
        let planned = plan(&graph(), TARGET).unwrap();
        let tasks = tasks(&planned, &TARGET, 5).unwrap();
        assert_eq!(tasks.iter().map(|task| task.steps.join(" ")).collect::<Vec<_>>(), ["a b", "c"]);
        for task in &tasks {
            assert_eq!(task.candidates.len(), 5);
            let step = planned.steps.iter().find(|step| step.name == task.steps[0]).unwrap();
            assert_eq!(task.candidates[0].kernel, step.kernel);
        }
    }

    #[test]
    fn sites_that_differ_in_roles_alone_are_one_task() {
        let mut builder = Builder::new();
        for (name, ty) in [("a", ValueType::rows([1, 100, 256])), ("b", ValueType::exact([1, 100, 256]))] {
            let x = builder.input(&format!("{name}.x"), ty);
            let weight = builder.param(&format!("{name}.weight"), &[256, 256], Layout::Plain).unwrap();
            let y = builder.node(name, Linear::default(), &[x, weight]).unwrap();
            builder.output(name, y);
        }
        let planned = plan(&builder.finish().unwrap(), TARGET).unwrap();
        let tasks = tasks(&planned, &TARGET, 5).unwrap();
        assert_eq!(tasks.iter().map(|task| task.steps.join(" ")).collect::<Vec<_>>(), ["a b"]);
    }

    #[test]
    fn the_model_is_overruled_by_more_than_noise_alone() {
        assert_eq!(best(&micros(&[100, 98, 99])), 0);
        assert_eq!(best(&micros(&[100, 97, 99])), 0, "the margin itself is noise still");
        assert_eq!(best(&micros(&[100, 90, 80, 80])), 2, "the earlier of equals");
        assert_eq!(best(&micros(&[100])), 0);
        assert_eq!(best(&[]), 0);
    }

    #[test]
    fn medians_of_rounds_count_and_outliers_do_not() {
        let planned = plan(&graph(), TARGET).unwrap();
        let task = &tasks(&planned, &TARGET, 3).unwrap()[0];
        let mut calls = Vec::new();
        let outcome = run(task, |_, index| {
            calls.push(index);
            let round = calls.len() / 3;
            // The second candidate is the best but for three rounds, the third is so in one alone.
            Ok(Duration::from_micros(match (index, round) {
                (1, 0..3) => 500,
                (1, _) => 60,
                (2, 4) => 1,
                _ => 100,
            }))
        })
        .unwrap();
        assert_eq!(calls, [0, 1, 2].repeat(ROUNDS), "all candidates in turn");
        assert_eq!((outcome.best, outcome.chosen().1), (1, Duration::from_micros(60)));
        assert_eq!(outcome.gain(), Duration::from_micros(2 * 40));
        let failing = run(task, |_, _| Err(Error::Cuda("gone".into()))).unwrap_err();
        assert!(failing.to_string().contains("gone"));
    }

    /// What was measured is what plans and programs then hold, on that target alone.
    #[test]
    fn a_table_decides_as_far_as_the_device_can_follow() {
        let modelled = plan(&graph(), TARGET).unwrap();
        let mut table = Table::new(Scope::new("H100", &TARGET));
        for task in tasks(&modelled, &TARGET, 1000).unwrap() {
            let last = task.candidates.len() - 1;
            let time =
                |_: &TuningTask, index: usize| Ok(Duration::from_micros(if index == last { 1 } else { 10 }));
            let outcome = run(&task, time).unwrap();
            assert_eq!(outcome.best, last);
            table.insert(outcome.site.clone(), outcome.measured());
        }
        let selection = Selection::tuned(TARGET, Arc::new(table.clone()));
        let tuned = plan(&graph(), selection.clone()).unwrap();
        for (before, after) in modelled.steps.iter().zip(&tuned.steps) {
            let program = selection.program(&after.site().site()).unwrap();
            assert_eq!((&program.kernel, program.workspace), (&after.kernel, after.workspace.bytes));
            assert_eq!(before.kernel == after.kernel, after.name == "d", "{}", after.name);
        }

        // A device whose blocks have too little shared memory for what the table says: the model chooses.
        let limit =
            tuned.steps.iter().flat_map(|step| selection.program(&step.site().site()).unwrap().launches);
        let limit = limit.map(|launch| launch.shared).max().unwrap() - 1;
        let small = Target { caps: Caps { shared_per_block: limit, ..Caps::H100 }, ..TARGET };
        let refused = plan(&graph(), Selection::tuned(small, Arc::new(table.clone()))).unwrap();
        let differing = refused.steps.iter().zip(&tuned.steps).filter(|(a, b)| a.kernel != b.kernel);
        assert!(differing.count() > 0);
        for step in &refused.steps {
            let program = Selection::from(small).program(&step.site().site()).unwrap();
            let listed = ops::candidates(&step.site().site(), &small).unwrap();
            assert!(listed.iter().any(|candidate| candidate.kernel == step.kernel));
            assert!(program.check(&small.caps).is_ok());
        }

        // A kernel that there is not.
        let (kernel, model) = ("gemm of dreams".to_string(), modelled.steps[0].kernel.clone());
        let measured = Measured { kernel, microseconds: 1.0, model, model_microseconds: 2.0 };
        let mut wishful = Table::new(table.scope().clone());
        wishful.insert(modelled.steps[0].site().site().to_string(), measured);
        assert_eq!(plan(&graph(), Selection::tuned(TARGET, Arc::new(wishful))).unwrap(), modelled);
    }
}
