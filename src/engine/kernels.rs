//! Which kernels a GPU needs for a model, so that they can be compiled before it is there.

use super::Engine;
use crate::cuda::launch::Launch;
use crate::cuda::post::MaskLogits;
use crate::cuda::{self, Selection, pipeline};
use crate::error::{Error, Result};
use crate::graph::passes::optimize;
use crate::model::{CLS_SCORE, MASK_PREDS, TapMode, Task, build};

impl Engine {
    /// How the kernels of the GPU that it computes on are chosen; `None` on the CPU.
    pub fn selection(&self) -> Option<&Selection> {
        Some(self.backend.runtime()?.selection())
    }

    /// What runs on a GPU, which need not be here, at one input size (both sides multiples of
    /// [`SIZE_DIVISOR`](crate::model::SIZE_DIVISOR)): the network by each of `selections`, and pre- and
    /// post-processing of photos of every size and format for every kind of result that the model gives. The
    /// selections differ in nothing but the device's clock, bandwidth and tuning table.
    ///
    /// # Errors
    /// As [`Engine::plan`]; [`Error::Usage`] if there is no selection.
    pub fn launches(&self, size: (usize, usize), selections: &[Selection]) -> Result<Vec<Launch>> {
        let first = selections.first().ok_or_else(|| Error::usage("kernels for no device"))?;
        let target = first.target();
        let graph = optimize(build(&self.config, 1, [size.0, size.1], TapMode::Off)?.graph)?;
        let plan = cuda::plan(&graph, first.clone())?;
        let of = |plan: &cuda::Plan| -> Vec<Launch> {
            plan.steps.iter().flat_map(|step| &step.program.launches).cloned().collect()
        };
        let mut launches = of(&plan);
        for selection in &selections[1..] {
            launches.extend(of(&cuda::plan(&graph, selection.clone())?));
        }
        let output = |name: &str| {
            let found = plan.output(name).map(|operand| operand.ty);
            found.ok_or_else(|| Error::Graph(format!("no output `{name}`")))
        };
        let (masks, input) = (output(MASK_PREDS)?, plan.inputs[0].1.ty.dtype);
        let logits = MaskLogits {
            objects: output(CLS_SCORE)?.shape[1],
            size: (masks.shape[2], masks.shape[3]),
            dtype: masks.dtype,
            padded: size,
            resized: size,
            original: size,
        };
        let tasks = match self.config.task {
            Task::Instance => &[Task::Instance][..],
            Task::Panoptic => &[Task::Instance, Task::Panoptic],
        };
        for &task in tasks {
            launches.extend(pipeline::launches(input, &logits, &self.results(task), &target)?);
        }
        Ok(launches)
    }
}
