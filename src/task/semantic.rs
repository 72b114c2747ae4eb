//! Semantic maps: every pixel to one class.

#[cfg(feature = "cuda")]
pub mod gpu;

use super::{HostOutputs, Postprocess, PostprocessOptions};
use crate::error::{Error, Result};
use crate::image::preprocess::Geometry;
use crate::image::semantic::{ClassLogits, SemanticPostprocessor, SemanticResult};
use crate::model::{Config, SEG_LOGITS, Task};

/// Semantic maps of photos of one size.
pub struct Semantic {
    #[cfg(feature = "cuda")]
    classes: usize,
    host: SemanticPostprocessor,
}

impl Postprocess for Semantic {
    type Found = SemanticResult;

    fn new(model: &Config, options: &PostprocessOptions) -> Result<Self> {
        if model.task != Task::Semantic {
            return Err(Error::usage(format!(
                "model `{}` is {}, it gives no semantic map",
                model.name,
                model.task.name()
            )));
        }
        Ok(Semantic {
            #[cfg(feature = "cuda")]
            classes: model.classes.count(),
            host: SemanticPostprocessor::new(options.confidence),
        })
    }

    fn reads(&self) -> &'static [&'static str] {
        &[SEG_LOGITS]
    }

    fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut SemanticResult,
    ) -> Result<()> {
        let (shape, values) = network(SEG_LOGITS)?;
        let logits = ClassLogits { classes: shape[1], size: (shape[2], shape[3]), values };
        self.host.run(&logits, geometry, found)
    }
}
