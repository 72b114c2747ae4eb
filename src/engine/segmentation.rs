//! Results.

use crate::image::bitmask::BitMask;
use crate::image::instance::{Instance, InstanceResult};
use crate::image::panoptic::PanopticResult;
use crate::image::semantic::SemanticResult;
use crate::model::Task;
use crate::task::Found;

/// What a model found in one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Segmentation {
    pub(super) size: (usize, usize),
    pub(super) found: Found,
    pub(super) stages: usize,
}

impl Segmentation {
    /// Which kind of result this is.
    pub fn task(&self) -> Task {
        self.found.task()
    }

    /// Height and width of the image, and of every mask and map.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// How many stages of the network made it: all of the model's, but for a session that was told fewer
    /// ([`SessionOptions::stages`](super::SessionOptions::stages)) or a deadline
    /// ([`Session::set_deadline`](super::Session::set_deadline)). 0 of a model without any.
    pub fn stages(&self) -> usize {
        self.stages
    }

    /// The result of its task.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The instances, best first; empty for other results.
    pub fn instances(&self) -> &[Instance] {
        self.instance_result().map_or(&[], InstanceResult::instances)
    }

    /// The mask of one of [`Segmentation::instances`]. Instances made by the same kernel share a mask.
    ///
    /// # Panics
    /// If the instance belongs to another result with more masks.
    pub fn mask(&self, instance: &Instance) -> &BitMask {
        let result = self.instance_result();
        assert!(result.is_some(), "an instance of another result");
        result.map(|result| result.mask(instance)).unwrap()
    }

    /// The panoptic map with its segments; `None` for other results.
    pub fn panoptic(&self) -> Option<&PanopticResult> {
        match &self.found {
            Found::Panoptic(map) => Some(map),
            _ => None,
        }
    }

    /// The class of every pixel; `None` for other results.
    pub fn semantic(&self) -> Option<&SemanticResult> {
        match &self.found {
            Found::Semantic(map) => Some(map),
            _ => None,
        }
    }

    /// The instances with their distinct masks; `None` for other results.
    pub fn instance_result(&self) -> Option<&InstanceResult> {
        match &self.found {
            Found::Instance(instances) => Some(instances),
            _ => None,
        }
    }
}
