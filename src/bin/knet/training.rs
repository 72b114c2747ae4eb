//! A training step to measure or to plan: what upstream freezes, and the default optimizer.

use knet::dist::Share;
use knet::graph::passes::DropRates;
use knet::model::{Config, Task};
use knet::train::network::{LossWeights, TrainSpec};
use knet::train::optimizer::AdamWConfig;

/// What upstream freezes of a detector's ResNet.
const FROZEN: [&str; 3] = ["backbone.conv1.", "backbone.bn1.", "backbone.layer1."];

/// What a [`TrainSpec`] borrows.
pub struct Setup<'a> {
    config: &'a Config,
    frozen: Vec<String>,
    pub optimizer: AdamWConfig,
}

impl<'a> Setup<'a> {
    pub fn new(config: &'a Config) -> Setup<'a> {
        let semantic = config.task == Task::Semantic;
        let frozen = if semantic { Vec::new() } else { FROZEN.map(String::from).to_vec() };
        Setup { config, frozen, optimizer: AdamWConfig::default() }
    }

    /// A step over so many images of `size`, with up to `slots` objects each.
    pub fn spec(&self, batch: usize, size: [usize; 2], slots: usize) -> TrainSpec<'_> {
        TrainSpec {
            config: self.config,
            batch,
            size,
            max_objects: slots,
            weights: LossWeights::default(),
            frozen: &self.frozen,
            train_batch_norm: self.config.task == Task::Semantic,
            dropout: DropRates::default(),
            seed: 0,
            optimizer: Some(&self.optimizer),
            accumulate: 1,
            recompute: 0,
            share: Share::ALONE,
        }
    }
}
