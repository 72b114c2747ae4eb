//! What a step drops.

use crate::exec::Executor;
use crate::graph::passes::TrainedDropout;
use crate::train::data::random::{Draw, Purpose};

/// The dropouts of a network and where their numbers come from.
pub(super) struct Dropouts {
    seed: u64,
    sites: Vec<TrainedDropout>,
}

impl Dropouts {
    pub(super) fn new(seed: u64, sites: Vec<TrainedDropout>) -> Self {
        Dropouts { seed, sites }
    }

    /// Draws the factors of a batch, whose stream hangs on its place alone, the updates tried and the batches
    /// since: a run that goes on draws what it would have drawn, and a state has nothing to keep of it.
    pub(super) fn draw(&self, executor: &mut dyn Executor, (updates, batches): (u64, u64)) {
        let mut draw = Draw::new(Purpose::Dropout, self.seed, updates, batches);
        for &TrainedDropout { factors, rate } in &self.sites {
            for factor in executor.input(factors).floats() {
                *factor = if draw.chance(f64::from(rate)) { 0.0 } else { 1.0 / (1.0 - rate) };
            }
        }
    }
}
