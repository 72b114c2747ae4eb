//! The random numbers of the loaders: a counter-based generator keyed by what is drawn, so that every sample
//! has its own stream and none depends on which thread made it or on what was drawn before.
//!
//! The generator is ChaCha8 (`rand_chacha`), whose stream is fixed by its specification. The distributions
//! are our own few lines, because those of `rand` may change their values from one version to the next, which
//! would break resuming.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is for: streams of different purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::train) enum Purpose {
    /// Order and multiplicity of the images of an epoch.
    Order = 1,
    /// Augmentation of one sample.
    Sample = 2,
    /// Initial values of one parameter.
    Weights = 3,
    /// What a batch drops.
    Dropout = 4,
}

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub(in crate::train) struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream of `purpose` for the sample at `index` of `epoch`.
    pub(in crate::train) fn new(purpose: Purpose, seed: u64, epoch: u64, index: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, epoch, index, purpose as u64]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Draw(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub(in crate::train) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box-Muller).
    pub(in crate::train) fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// Uniform between `low` and `high`.
    pub(in crate::train) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in the logarithm between `low` and `high`, both positive.
    pub(in crate::train) fn log_uniform(&mut self, low: f64, high: f64) -> f64 {
        (low.ln() + (high / low).ln() * self.unit()).exp()
    }

    /// True with this probability.
    pub(in crate::train) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Uniform in `0..count` (the bias of at most count / 2^64 does not matter here).
    pub(in crate::train) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.0.next_u64()) * count as u128) >> 64) as usize
    }

    /// A whole number from `low` to `high`, both included.
    pub(in crate::train) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).max(1) as usize) as i64
    }

    /// Fisher-Yates shuffle.
    pub(in crate::train) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i + 1);
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fixed numbers: a dependency that changed its stream would break every resumed run.
    #[test]
    fn the_stream_is_pinned() {
        let mut draw = Draw::new(Purpose::Sample, 1, 2, 3);
        let found: Vec<usize> = (0..8).map(|_| draw.below(1000)).collect();
        assert_eq!(found, PINNED);
        let mut other = Draw::new(Purpose::Order, 1, 2, 3);
        assert_ne!((0..8).map(|_| other.below(1000)).collect::<Vec<_>>(), PINNED);
    }

    const PINNED: [usize; 8] = [570, 379, 257, 878, 836, 294, 490, 439];

    #[test]
    fn distributions_keep_their_bounds() {
        let mut draw = Draw::new(Purpose::Sample, 7, 0, 0);
        let mut seen = [0usize; 5];
        for _ in 0..2000 {
            seen[draw.below(5)] += 1;
            assert!((0.5..=2.0).contains(&draw.log_uniform(0.5, 2.0)));
            assert!((-3..=4).contains(&draw.between(-3, 4)));
        }
        assert!(seen.iter().all(|&n| (300..500).contains(&n)), "{seen:?}");
        assert_eq!(draw.between(3, 3), 3);
        let mut items: Vec<usize> = (0..50).collect();
        draw.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
