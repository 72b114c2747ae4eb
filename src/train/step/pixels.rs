//! A semantic model's predictions compared with the class of each pixel.

use super::TermSlot;
use crate::exec::{Executor, Host};
use crate::graph::InputId;
use crate::train::data::Batch;
use crate::train::network::TrainSpec;
use crate::train::network::pixels::PixelTargets;

pub(super) struct Pixels {
    targets: PixelTargets,
    /// Pixels of a batch, labelled or not: what upstream divides by.
    count: usize,
}

impl Pixels {
    pub(super) fn new(spec: &TrainSpec<'_>, targets: PixelTargets) -> Self {
        Pixels { targets, count: spec.batch * spec.size[0] * spec.size[1] }
    }

    /// The class of each pixel of a batch.
    pub(super) fn targets<'a>(&self, batch: &'a Batch) -> (InputId, Host<'a>) {
        (self.targets.classes, Host::I32(&batch.classes))
    }

    /// Uploads the gradients' seeds.
    pub(super) fn load(&self, executor: &mut dyn Executor, terms: &mut [TermSlot]) {
        terms.iter_mut().for_each(|slot| slot.divide_by(executor, self.count));
    }
}
