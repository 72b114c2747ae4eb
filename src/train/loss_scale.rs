//! Scaling of losses for gradients in f16, which loses what is below 6e-8 and has no room above 65504
//! (Micikevicius et al. 2018, <https://arxiv.org/abs/1710.03740>). The numbers are those of PyTorch's
//! `GradScaler`.

use serde::{Deserialize, Serialize};

/// Updates without an overflow after which the factor doubles.
const PATIENCE: u32 = 2000;
/// The largest factor: seeds of gradients, weights over counts, stay far inside f32.
const MOST: f32 = (1u64 << 40) as f32;

/// What losses are multiplied by before they are differentiated. It halves where gradients overflow, and that
/// update is left out; after a long time without, it doubles. A power of two, so that dividing gradients by
/// it changes no digit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// The factor.
    pub factor: f32,
    /// Updates since it last changed.
    pub since: u32,
    /// Updates left out in the whole run.
    pub left_out: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { factor: 65_536.0, since: 0, left_out: 0 }
    }
}

impl LossScale {
    /// Counts an update.
    pub fn grow(&mut self) {
        self.since += 1;
        if self.since >= PATIENCE {
            *self = LossScale { factor: (2.0 * self.factor).min(MOST), since: 0, ..*self };
        }
    }

    /// Leaves an update out because its gradients overflowed. Gives false if losses are not scaled up any
    /// more: then they overflow by themselves.
    pub fn shrink(&mut self) -> bool {
        if self.factor <= 1.0 {
            return false;
        }
        *self = LossScale { factor: 0.5 * self.factor, since: 0, left_out: self.left_out + 1 };
        true
    }

    /// What is wrong with one that was read, if anything.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let power = self.factor.to_bits() << 9 == 0;
        if power && (1.0..=MOST).contains(&self.factor) && self.since < PATIENCE {
            return Ok(());
        }
        let LossScale { factor, since, .. } = self;
        Err(format!(
            "the loss scale is {factor} after {since} updates: a power of two from 1 to {MOST} is expected, for less than {PATIENCE} updates"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_late() {
        let mut scale = LossScale::default();
        assert!(scale.shrink());
        (1..PATIENCE).for_each(|_| scale.grow());
        assert_eq!(scale, LossScale { factor: 32_768.0, since: PATIENCE - 1, left_out: 1 });
        scale.grow();
        assert_eq!(scale, LossScale { factor: 65_536.0, since: 0, left_out: 1 });
        assert!((0..16).all(|_| scale.shrink()));
        assert_eq!((scale.factor, scale.shrink()), (1.0, false));
        scale.factor = MOST;
        (0..PATIENCE).for_each(|_| scale.grow());
        assert_eq!(scale.factor, MOST);
    }

    #[test]
    fn what_no_run_can_have_is_refused() {
        let of = |factor, since| LossScale { factor, since, left_out: 0 };
        for good in [of(1.0, 0), of(65_536.0, 1999), of(MOST, 3)] {
            assert_eq!(good.check(), Ok(()));
        }
        for bad in [
            of(0.0, 0),
            of(3.0, 0),
            of(0.5, 0),
            of(f32::NAN, 0),
            of(f32::INFINITY, 0),
            of(-2.0, 0),
            of(2.0, 2000),
        ] {
            assert!(bad.check().unwrap_err().contains("a power of two"), "{bad:?}");
        }
    }
}
