//! Real numbers as levels of 8 bits.

use serde::{Deserialize, Serialize};

/// How real numbers become levels: the nearest multiple of a step (ties to even), as far as 8 bits go.
///
/// Zero is a level, always. A level is stored as a *code* of 8 bits without a sign: itself where no number is
/// negative, else 128 more. All of it is f32 arithmetic without fused operations, so that every processor
/// finds the same level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// What neighbouring levels are apart; positive.
    pub step: f32,
    /// Whether there are levels below zero: -127 to 127. Else they are 0 to 255.
    pub signed: bool,
}

/// Added to a number of few digits, it leaves no room for digits behind the point.
pub(crate) const WHOLE: f32 = 12_582_912.0;

impl Levels {
    /// Levels that reach up to `most`, and with a sign down to `-most`. Where `most` is not positive, or too
    /// small for a step, all numbers are at level 0 but for some that have no business there.
    pub fn up_to(most: f32, signed: bool) -> Levels {
        let step = most / if signed { 127.0 } else { 255.0 };
        Levels { step: if step.is_normal() && step > 0.0 { step } else { 1.0 }, signed }
    }

    /// Levels for a filter, which reach as far as it does: finding them again for numbers that are at such
    /// levels already finds the same.
    pub fn of_filter(filter: &[f32]) -> Levels {
        Levels::up_to(filter.iter().fold(0.0, |most: f32, value| most.max(value.abs())), true)
    }

    /// Lowest and highest level.
    #[inline(always)]
    pub fn range(&self) -> [f32; 2] {
        if self.signed { [-127.0, 127.0] } else { [0.0, 255.0] }
    }

    /// The code of level 0.
    #[inline(always)]
    pub fn zero(&self) -> u8 {
        if self.signed { 128 } else { 0 }
    }

    /// The level of a number; NaN has the lowest one.
    #[inline(always)]
    pub fn level(&self, value: f32) -> f32 {
        self.rule().level(value)
    }

    /// The code of a number's level.
    #[inline(always)]
    pub fn code(&self, value: f32) -> u8 {
        self.rule().code(value)
    }

    /// The same without a choice to make nor a division, for loops over many numbers.
    #[inline(always)]
    pub fn rule(&self) -> Rule {
        let [low, high] = self.range();
        Rule { step: self.step, inverse: 1.0 / self.step, low, high, zero: self.zero() }
    }

    /// The number of a code.
    #[inline(always)]
    pub fn value(&self, code: u8) -> f32 {
        (f32::from(code) - f32::from(self.zero())) * self.step
    }
}

/// What [`Levels`] do to a number.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What neighbouring levels are apart.
    pub step: f32,
    /// Levels of a unit.
    pub inverse: f32,
    /// Lowest level.
    pub low: f32,
    /// Highest level.
    pub high: f32,
    /// The code of level 0.
    pub zero: u8,
}

impl Rule {
    /// [`Levels::level`].
    #[inline(always)]
    pub fn level(&self, value: f32) -> f32 {
        (self.inside(value) + WHOLE) - WHOLE
    }

    /// [`Levels::code`].
    #[inline(always)]
    pub fn code(&self, value: f32) -> u8 {
        // The last byte of such a sum is the level, with the complement of two for a sign.
        ((self.inside(value) + WHOLE).to_bits() as u8).wrapping_add(self.zero)
    }

    #[inline(always)]
    fn inside(&self, value: f32) -> f32 {
        let level = value * self.inverse;
        let level = if level > self.low { level } else { self.low };
        if level < self.high { level } else { self.high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_levels_and_back() {
        for (signed, [low, high]) in [(false, [0, 255]), (true, [-127, 127])] {
            let levels = Levels::up_to(3.0, signed);
            for level in low..=high {
                let value = level as f32 * levels.step;
                let code = levels.code(value);
                assert_eq!(i32::from(code), level + i32::from(levels.zero()));
                assert_eq!((levels.value(code), levels.level(value)), (value, level as f32));
            }
            let ends = [-9.0, f32::NEG_INFINITY, f32::NAN, 9.0, f32::INFINITY].map(|v| levels.level(v));
            assert_eq!(ends, [low, low, low, high, high].map(|level| level as f32));
        }
        // Ties go to even levels.
        let halves = Levels { step: 1.0, signed: true };
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|v| halves.level(v)), [0.0, 2.0, 2.0, 0.0, -2.0]);
    }

    #[test]
    fn nothing_but_zeros_has_a_step() {
        for most in [0.0, -1.0, f32::NAN, 1e-44, f32::INFINITY] {
            assert_eq!(Levels::up_to(most, false), Levels { step: 1.0, signed: false });
        }
    }
}
