//! Panoptic maps: every pixel to one object, which is a thing or a region of stuff.

#[cfg(feature = "cuda")]
pub mod gpu;

use super::{HostOutputs, Postprocess, PostprocessOptions, head_output};
use crate::error::{Error, Result};
use crate::image::panoptic::{PanopticConfig, PanopticPostprocessor, PanopticResult};
use crate::image::preprocess::Geometry;
use crate::model::{CLS_SCORE, Config, MASK_PREDS, Task};

/// Panoptic maps of photos of one size.
pub struct Panoptic {
    host: PanopticPostprocessor,
}

impl Postprocess for Panoptic {
    type Found = PanopticResult;

    fn new(model: &Config, options: &PostprocessOptions) -> Result<Self> {
        let instead = match model.task {
            Task::Panoptic => None,
            Task::Instance => Some("gives instances only"),
            Task::Semantic => Some("is semantic"),
        };
        if let Some(instead) = instead {
            return Err(Error::usage(format!("model `{}` {instead}, it gives no panoptic map", model.name)));
        }
        let config = PanopticConfig {
            proposals: model.head.proposals,
            things: model.classes.things,
            stuff: model.classes.stuff,
            score_threshold: options.min_score.unwrap_or(model.test.instance_score_threshold),
            overlap_threshold: model.test.overlap_threshold,
        };
        Ok(Panoptic { host: PanopticPostprocessor::new(config) })
    }

    fn reads(&self) -> &'static [&'static str] {
        &[MASK_PREDS, CLS_SCORE]
    }

    fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut PanopticResult,
    ) -> Result<()> {
        self.host.run(&head_output(network)?, geometry, found)
    }
}
