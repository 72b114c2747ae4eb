//! Which kernels a GPU needs for a model, so that they can be compiled before it is there.

use super::Model;
use crate::cuda::launch::Launch;
use crate::cuda::{self, Selection, pipeline};
use crate::error::{Error, Result};
use crate::image::preprocess::{Geometry, PreprocessConfig};
use crate::model::{Normalization, TapMode};
use crate::task::{AnyTask, PostprocessOnGpu, PostprocessOptions, TASKS};

impl Model {
    /// What runs on a GPU, which need not be here, at one input size (both sides multiples of
    /// [`Config::size_divisor`](crate::model::Config::size_divisor)): the network by each of `selections`,
    /// and pre- and post-processing of photos of every size and format for every kind of result that the
    /// model gives. The selections differ in nothing but the device's clock, bandwidth and tuning table.
    ///
    /// # Errors
    /// As [`Session::plan`](super::Session::plan); [`Error::Usage`] if there is no selection.
    pub fn launches(&self, size: (usize, usize), selections: &[Selection]) -> Result<Vec<Launch>> {
        let first = selections.first().ok_or_else(|| Error::usage("kernels for no device"))?;
        let target = first.target();
        let (graph, _) = self.graph(size, TapMode::Off, self.config().head.stages)?;
        let plan = cuda::plan(&graph, first.clone())?;
        let of = |plan: &cuda::Plan| -> Vec<Launch> {
            plan.steps.iter().flat_map(|step| &step.program.launches).cloned().collect()
        };
        let mut launches = of(&plan);
        for selection in &selections[1..] {
            launches.extend(of(&cuda::plan(&graph, selection.clone())?));
        }
        let config = self.config();
        let geometry = Geometry { original: size, resized: size, padded: size };
        let options = PostprocessOptions::default();
        // A task that the model cannot do has no kernels.
        let tasks = TASKS.iter().filter_map(|&task| AnyTask::of(task, config, &options).ok());
        for task in tasks {
            launches.extend(task.launches(&plan, &geometry, &target)?.program.launches);
        }
        let Normalization { mean, std } = config.input.normalization;
        let preprocess = PreprocessConfig { size: None, mean, std, divisor: config.size_divisor() };
        launches.extend(pipeline::preprocessing(plan.inputs[0].1.ty.dtype, &geometry, &preprocess)?);
        Ok(launches)
    }
}
