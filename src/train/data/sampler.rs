//! The order in which images are seen: a permutation for each epoch that depends on the seed and the epoch
//! alone.
//!
//! An image of weight w is seen floor(w) times in an epoch and once more with probability w - floor(w).

use serde::{Deserialize, Serialize};

use super::mix::Mix;
use super::random::{Draw, Purpose};
use crate::error::{Error, Result};

/// Which images are seen how often.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Weight of images without an object: 0.5 shows each every second epoch.
    pub negative_weight: f64,
    /// Weight of images with two or more countable objects: 2 shows them twice an epoch.
    pub several_weight: f64,
    /// Only the first N images that have an object, all alike: to see whether a model can learn them by
    /// heart.
    pub overfit: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { negative_weight: 1.0, several_weight: 1.0, overfit: None }
    }
}

/// A place in the endless stream of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Samples of this epoch that lie before.
    pub index: u64,
}

/// The images with their weights.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    seed: u64,
    weighted: Vec<(u32, f64)>,
}

impl Sampler {
    pub(super) fn new(mix: &Mix, sampling: &Sampling, seed: u64) -> Result<Self> {
        for (name, weight) in
            [("negative_weight", sampling.negative_weight), ("several_weight", sampling.several_weight)]
        {
            if !(0.0..=1000.0).contains(&weight) {
                return Err(Error::usage(format!("{name} = {weight} must lie between 0 and 1000")));
            }
        }
        let weighted: Vec<(u32, f64)> = match sampling.overfit {
            Some(0) => return Err(Error::usage("overfit = 0 leaves no image")),
            Some(count) => {
                let labelled = (0..mix.len()).filter(|&i| mix.objects(i) > 0);
                labelled.take(count).map(|i| (i as u32, 1.0)).collect()
            }
            None => (0..mix.len())
                .map(|i| {
                    let kind = match (mix.objects(i), mix.countable(i)) {
                        (0, _) => sampling.negative_weight,
                        (_, 2..) => sampling.several_weight,
                        _ => 1.0,
                    };
                    (i as u32, kind * mix.repeat(i))
                })
                .filter(|&(_, weight)| weight > 0.0)
                .collect(),
        };
        if weighted.is_empty() {
            return Err(Error::usage("the sampling weights leave no image"));
        }
        Ok(Sampler { seed, weighted })
    }

    /// The images that can occur, ascending.
    pub(super) fn images(&self) -> impl Iterator<Item = u32> + '_ {
        self.weighted.iter().map(|&(image, _)| image)
    }

    /// How often each image is seen in an epoch.
    fn copies<'a>(&'a self, draw: &'a mut Draw) -> impl Iterator<Item = (u32, usize)> + 'a {
        let copies =
            |weight: f64, draw: &mut Draw| weight.floor() as usize + usize::from(draw.chance(weight.fract()));
        self.weighted.iter().map(move |&(image, weight)| (image, copies(weight, draw)))
    }

    /// Number of samples in an epoch: of [`Sampler::order`], without ordering them.
    pub(super) fn len(&self, epoch: u64) -> u64 {
        let mut draw = Draw::new(Purpose::Order, self.seed, epoch, 0);
        let samples: usize = self.copies(&mut draw).map(|(_, copies)| copies).sum();
        if samples == 0 { self.weighted.len() as u64 } else { samples as u64 }
    }

    /// Number of samples from `start` to the end of epoch `epochs - 1`.
    ///
    /// # Errors
    /// [`Error::Usage`] if that is more than any run can see.
    pub(super) fn left(&self, start: Position, epochs: u64) -> Result<u64> {
        const MOST: u64 = 1 << 40;
        let refuse = || {
            let images = self.weighted.len();
            Error::usage(format!(
                "schedule.epochs = {epochs} of {images} images is more than any run can see"
            ))
        };
        let ahead = epochs.saturating_sub(start.epoch);
        let all = if self.weighted.iter().all(|&(_, weight)| weight.fract() == 0.0) {
            // Every epoch has as many.
            ahead.checked_mul(self.len(start.epoch))
        } else if ahead.saturating_mul(self.weighted.len() as u64) <= 1 << 32 {
            (start.epoch..epochs).try_fold(0u64, |sum, epoch| sum.checked_add(self.len(epoch)))
        } else {
            None
        };
        let all = all.filter(|&samples| samples <= MOST).ok_or_else(refuse)?;
        Ok(all.saturating_sub(start.index))
    }

    /// The images of an epoch in order; never empty.
    pub(super) fn order(&self, epoch: u64) -> Vec<u32> {
        let mut draw = Draw::new(Purpose::Order, self.seed, epoch, 0);
        let mut order = Vec::with_capacity(self.weighted.len());
        for (image, copies) in self.copies(&mut draw) {
            order.extend(std::iter::repeat_n(image, copies));
        }
        if order.is_empty() {
            // A tiny data set with small weights can come out with nothing: then everything is shown once.
            order.extend(self.images());
        }
        draw.shuffle(&mut order);
        order
    }
}

/// Walks the stream of samples.
#[derive(Debug)]
pub(super) struct Cursor {
    sampler: Sampler,
    order: Vec<u32>,
    position: Position,
}

impl Cursor {
    pub(super) fn new(sampler: Sampler, start: Position) -> Result<Self> {
        let order = sampler.order(start.epoch);
        if start.index >= order.len() as u64 {
            return Err(Error::usage(format!(
                "cannot go on at sample {} of epoch {}: it has {} samples (other data or weights than before?)",
                start.index,
                start.epoch,
                order.len()
            )));
        }
        Ok(Cursor { sampler, order, position: start })
    }

    /// Where the next sample lies.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The place and the image of the next sample.
    pub(super) fn advance(&mut self) -> (Position, u32) {
        let here = self.position;
        let image = self.order[here.index as usize];
        self.position.index += 1;
        if self.position.index == self.order.len() as u64 {
            self.position = Position { epoch: here.epoch + 1, index: 0 };
            self.order = self.sampler.order(self.position.epoch);
        }
        (here, image)
    }
}
