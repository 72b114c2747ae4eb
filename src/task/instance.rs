//! Instances: the best pairs of an object and a class, and a bit mask for each object among them; or what a
//! two-stage detector (`boxes.rs`) or another one-stage detector (`masks.rs`) found.

#[cfg(feature = "cuda")]
pub mod gpu;

use super::boxes::Boxes;
use super::masks::Masks;
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
    host: OnHost,
}

/// How the CPU finishes them.
enum OnHost {
    Kernels(Box<InstancePostprocessor>),
    Boxes(Boxes),
    Masks(Box<Masks>),
}

impl Postprocess for Instances {
    type Found = InstanceResult;

    fn new(model: &Config, options: &PostprocessOptions) -> Result<Self> {
        options.filter.check()?;
        if model.task == Task::Semantic {
            return Err(Error::usage(format!("model `{}` is semantic, it gives no instances", model.name)));
        }
        let min_score = options.min_score.unwrap_or(0.0) as f32;
        let config = InstanceConfig {
            max_per_image: model.test.max_per_image,
            min_score,
            proposals: model.head.proposals,
            things: model.classes.things,
            mask_score: model.test.mask_score,
        };
        Ok(Instances {
            #[cfg(feature = "cuda")]
            classes: model.classes.count(),
            filter: options.filter,
            filter_memory: FilterMemory::default(),
            host: match (&model.rcnn, &model.solov2, &model.condinst) {
                (Some(_), ..) => OnHost::Boxes(Boxes::new(min_score)),
                (_, Some(_), _) => OnHost::Masks(Box::new(Masks::of_solov2(min_score))),
                (.., Some(_)) => OnHost::Masks(Box::new(Masks::of_condinst(min_score))),
                (None, None, None) => OnHost::Kernels(Box::new(InstancePostprocessor::new(config))),
            },
        })
    }

    fn reads(&self) -> &'static [&'static str] {
        match &self.host {
            OnHost::Kernels(_) => &[MASK_PREDS, CLS_SCORE],
            OnHost::Boxes(boxes) => boxes.reads(),
            OnHost::Masks(masks) => masks.reads(),
        }
    }

    fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut InstanceResult,
    ) -> Result<()> {
        match &mut self.host {
            OnHost::Kernels(host) => host.run(&head_output(network)?, geometry, found)?,
            OnHost::Boxes(boxes) => boxes.on_host(network, geometry, found)?,
            OnHost::Masks(masks) => masks.on_host(network, geometry, found)?,
        }
        found.filter(&self.filter, &mut self.filter_memory);
        Ok(())
    }
}
