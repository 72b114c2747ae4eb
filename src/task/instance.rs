//! Instances: the best pairs of an object and a class, and a bit mask for each object among them.

#[cfg(feature = "cuda")]
pub mod gpu;

use super::{HostOutputs, Postprocess, PostprocessOptions, head_output};
use crate::error::{Error, Result};
use crate::image::instance::{
    FilterMemory, InstanceConfig, InstanceFilter, InstancePostprocessor, InstanceResult,
};
use crate::image::preprocess::Geometry;
use crate::model::{CLS_SCORE, Config, MASK_PREDS, Task};

/// The best instances of photos of one size.
pub struct Instances {
    #[cfg(feature = "cuda")]
    classes: usize,
    filter: InstanceFilter,
    filter_memory: FilterMemory,
    host: InstancePostprocessor,
}

impl Postprocess for Instances {
    type Found = InstanceResult;

    fn new(model: &Config, options: &PostprocessOptions) -> Result<Self> {
        options.filter.check()?;
        if model.task == Task::Semantic {
            return Err(Error::usage(format!("model `{}` is semantic, it gives no instances", model.name)));
        }
        let config = InstanceConfig {
            max_per_image: model.test.max_per_image,
            min_score: options.min_score.unwrap_or(0.0) as f32,
            proposals: model.head.proposals,
            things: model.classes.things,
            mask_score: model.test.mask_score,
        };
        Ok(Instances {
            #[cfg(feature = "cuda")]
            classes: model.classes.count(),
            filter: options.filter,
            filter_memory: FilterMemory::default(),
            host: InstancePostprocessor::new(config),
        })
    }

    fn reads(&self) -> &'static [&'static str] {
        &[MASK_PREDS, CLS_SCORE]
    }

    fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut InstanceResult,
    ) -> Result<()> {
        self.host.run(&head_output(network)?, geometry, found)?;
        found.filter(&self.filter, &mut self.filter_memory);
        Ok(())
    }
}
