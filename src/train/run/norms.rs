//! Running statistics of the batch norms that are trained.

use super::start::Values;
use crate::error::{Error, Result};
use crate::train::network::{batch_mean_output, batch_var_output};
use crate::train::step::TrainStep;

/// Share of a batch in the running statistics.
const MOMENTUM: f32 = 0.1;

/// One running statistic and where the batch's lies.
#[derive(Clone, Debug)]
struct Statistic {
    key: String,
    output: usize,
    /// The running variance is unbiased, the batch's is not.
    factor: f32,
}

/// All running statistics that follow the batches.
#[derive(Clone, Debug, Default)]
pub struct RunningStatistics(Vec<Statistic>);

impl RunningStatistics {
    /// Finds them in a step.
    ///
    /// # Errors
    /// [`Error::Graph`] if the step does not give them.
    pub fn new(step: &TrainStep) -> Result<Self> {
        let mut found = Vec::new();
        for (norm, count) in step.norms() {
            let unbiased = *count as f32 / (*count as f32 - 1.0).max(1.0);
            let mean = (format!("{norm}.running_mean"), batch_mean_output(norm), 1.0);
            let var = (format!("{norm}.running_var"), batch_var_output(norm), unbiased);
            for (key, output, factor) in [mean, var] {
                let missing = || Error::Graph(format!("the training graph has no result `{output}`"));
                let output = step.executor().output_index(&output).ok_or_else(missing)?;
                found.push(Statistic { key, output, factor });
            }
        }
        Ok(RunningStatistics(found))
    }

    /// Whether no norm is trained.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Follows the last batch of `step`.
    pub fn update(&self, step: &TrainStep, values: &mut Values) {
        for Statistic { key, output, factor } in &self.0 {
            let Some(running) = values.get_mut(key) else { continue };
            for (value, batch) in running.data_mut().iter_mut().zip(step.executor().output(*output)) {
                *value += MOMENTUM * (factor * batch - *value);
            }
        }
    }
}
