//! Results.

use crate::image::bitmask::BitMask;
use crate::image::instance::{Instance, InstanceResult};
use crate::image::panoptic::PanopticResult;
use crate::model::Task;

/// What an [`Engine`](super::Engine) found in one image. Reuse one value for many images
/// ([`Engine::segment_into`](super::Engine::segment_into)) and no memory is allocated.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmentation {
    pub(super) task: Task,
    pub(super) size: (usize, usize),
    pub(super) instances: InstanceResult,
    pub(super) panoptic: PanopticResult,
}

impl Default for Segmentation {
    fn default() -> Self {
        Segmentation {
            task: Task::Instance,
            size: (0, 0),
            instances: InstanceResult::default(),
            panoptic: PanopticResult::default(),
        }
    }
}

impl Segmentation {
    /// Which kind of result this is.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Height and width of the image, and of every mask and map.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The instances, best first; empty for panoptic results.
    pub fn instances(&self) -> &[Instance] {
        match self.task {
            Task::Instance => self.instances.instances(),
            Task::Panoptic => &[],
        }
    }

    /// The mask of one of [`Segmentation::instances`]. Instances made by the same kernel share a mask.
    ///
    /// # Panics
    /// If the instance belongs to another result with more masks.
    pub fn mask(&self, instance: &Instance) -> &BitMask {
        self.instances.mask(instance)
    }

    /// The panoptic map with its segments; `None` for instance results.
    pub fn panoptic(&self) -> Option<&PanopticResult> {
        (self.task == Task::Panoptic).then_some(&self.panoptic)
    }

    /// The distinct masks of an instance result.
    pub fn instance_result(&self) -> &InstanceResult {
        &self.instances
    }
}
