//! Learning-rate schedules, by iteration.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "policy", deny_unknown_fields)]
pub enum Decay {
    /// Constant.
    Constant,
    /// Times `gamma` at each of these shares of the run (0 to 1), as upstream's steps at epochs 8 and 11 of
    /// 12.
    Step {
        /// Shares of the run.
        at: Vec<f64>,
        /// Factor at each.
        #[serde(default = "default_gamma")]
        gamma: f64,
    },
    /// `(1 - share)^power`, not below `floor`.
    Poly {
        /// Exponent.
        power: f64,
        /// Least factor.
        #[serde(default)]
        floor: f64,
    },
    /// Half a cosine from 1 to `floor`.
    Cosine {
        /// Factor at the end.
        #[serde(default)]
        floor: f64,
    },
}

fn default_gamma() -> f64 {
    0.1
}

/// Linear warm-up, then a [`Decay`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Iterations of warm-up.
    #[serde(default)]
    pub warmup: u64,
    /// Factor at iteration 0 of the warm-up.
    #[serde(default = "default_warmup_ratio")]
    pub warmup_ratio: f64,
    /// What follows.
    #[serde(default = "default_decay")]
    pub decay: Decay,
}

fn default_warmup_ratio() -> f64 {
    1e-3
}

fn default_decay() -> Decay {
    Decay::Cosine { floor: 0.02 }
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { warmup: 0, warmup_ratio: default_warmup_ratio(), decay: default_decay() }
    }
}

impl Schedule {
    /// Checks the ranges: no factor may be negative or not finite.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let unit = |v: f64| (0.0..=1.0).contains(&v);
        let (field, ok) = match &self.decay {
            _ if !unit(self.warmup_ratio) => ("warmup_ratio", false),
            Decay::Constant => ("decay", true),
            Decay::Step { gamma, .. } if !(unit(*gamma) && *gamma > 0.0) => ("decay.gamma", false),
            Decay::Step { at, .. } => ("decay.at", at.iter().all(|&at| unit(at))),
            Decay::Poly { power, .. } if !(power.is_finite() && *power >= 0.0) => ("decay.power", false),
            Decay::Poly { floor, .. } | Decay::Cosine { floor } => ("decay.floor", unit(*floor)),
        };
        match ok {
            true => Ok(()),
            false => {
                Err(Error::usage(format!("schedule: {field} is out of range (0 to 1, a power 0 or more)")))
            }
        }
    }

    /// Factor on the base learning rate at `iteration` of `total`. The warm-up multiplies what the decay
    /// gives (mmcv's `LrUpdaterHook`).
    pub fn factor(&self, iteration: u64, total: u64) -> f64 {
        let share = if total == 0 { 0.0 } else { (iteration as f64 / total as f64).min(1.0) };
        let decayed = match &self.decay {
            Decay::Constant => 1.0,
            Decay::Step { at, gamma } => gamma.powi(at.iter().filter(|&&at| share >= at).count() as i32),
            Decay::Poly { power, floor } => (1.0 - share).powf(*power).max(*floor),
            Decay::Cosine { floor } => {
                floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        };
        if iteration >= self.warmup {
            return decayed;
        }
        let missing = (1.0 - iteration as f64 / self.warmup as f64) * (1.0 - self.warmup_ratio);
        decayed * (1.0 - missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lr_table_[head,backbone]` of the training goldens: 1000 iterations of warm-up from 0.001, steps at
    /// 8/12 and 11/12.
    #[test]
    fn official_table() {
        let decay = Decay::Step { at: vec![8.0 / 12.0, 11.0 / 12.0], gamma: 0.1 };
        let schedule = Schedule { warmup: 1000, warmup_ratio: 1e-3, decay };
        let total = 12_000_000;
        let epoch = |n: u64| n * total / 12;
        let table = [
            (0, 1e-7),
            (1, 1.999e-7),
            (10, 1.099e-6),
            (500, 5.005e-5),
            (999, 9.99001e-5),
            (epoch(7), 1e-4),
            (epoch(8), 1e-5),
            (epoch(10), 1e-5),
            (epoch(11), 1e-6),
        ];
        for (iteration, wanted) in table {
            let found = 1e-4 * schedule.factor(iteration, total);
            assert!((found - wanted).abs() < 1e-9 * 1e-4 + 1e-6 * wanted, "{iteration}: {found} {wanted}");
        }
    }

    #[test]
    fn factors_that_mean_nothing_are_refused() {
        let with = |warmup_ratio: f64, decay: Decay| Schedule { warmup: 3, warmup_ratio, decay }.validate();
        assert!(with(0.0, Decay::Step { at: vec![0.0, 1.0], gamma: 1.0 }).is_ok());
        for (ratio, decay, field) in [
            (f64::NAN, Decay::Constant, "warmup_ratio"),
            (-1.0, Decay::Constant, "warmup_ratio"),
            (0.1, Decay::Cosine { floor: 1e300 }, "decay.floor"),
            (0.1, Decay::Poly { power: 1.0, floor: -5.0 }, "decay.floor"),
            (0.1, Decay::Poly { power: f64::INFINITY, floor: 0.0 }, "decay.power"),
            (0.1, Decay::Step { at: vec![0.5, 1.5], gamma: 0.1 }, "decay.at"),
            (0.1, Decay::Step { at: vec![0.5], gamma: f64::NAN }, "decay.gamma"),
        ] {
            assert!(with(ratio, decay).unwrap_err().to_string().contains(field), "{field}");
        }
    }

    #[test]
    fn decays_end_where_they_say() {
        let at =
            |decay: Decay, iteration| Schedule { warmup: 0, warmup_ratio: 0.0, decay }.factor(iteration, 100);
        assert!((at(Decay::Cosine { floor: 0.02 }, 100) - 0.02).abs() < 1e-12);
        assert!((at(Decay::Cosine { floor: 0.0 }, 50) - 0.5).abs() < 1e-12);
        assert!((at(Decay::Poly { power: 0.9, floor: 0.01 }, 100) - 0.01).abs() < 1e-12);
        assert!((at(Decay::Poly { power: 2.0, floor: 0.0 }, 50) - 0.25).abs() < 1e-12);
        assert_eq!(at(Decay::Constant, 77), 1.0);
    }
}
