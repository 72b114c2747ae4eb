//! What becomes of sums.

use super::{CHANNELS, NONE};
use crate::cpu::gemm::{Arch, Job, Narrow, Stored, Vector};
use crate::ops::levels::{Rule, WHOLE};

/// What is done to sums, from some channel on.
#[derive(Clone, Copy)]
pub(super) struct Tail {
    /// What sums are worth.
    pub units: Option<*const f32>,
    /// Added.
    pub bias: Option<*const f32>,
    /// Added, too, but to codes: so many channels a pixel.
    pub residual: Option<*const f32>,
    pub channels: usize,
    /// Channels that count.
    pub count: usize,
    pub clamp: (f32, f32),
    /// Levels that they are brought to.
    pub output: Option<Rule>,
}

/// Stores sums of neighbouring outputs.
pub(super) struct Store<Y> {
    pub tail: Tail,
    /// `[outputs][CHANNELS]`, which may be where they are stored.
    pub sums: *const f32,
    pub outputs: usize,
    pub y: *mut Y,
    /// Values from an output to the next.
    pub pitch: usize,
}

impl<Y: Stored> Job for Store<Y> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        for c in (0..self.tail.count).step_by(A::V::LANES) {
            let count = self.tail.count - c;
            // Numbers of lanes that the compiler knows leave no choices in the loop over outputs.
            if count >= A::V::LANES {
                self.column::<A>(c, A::V::LANES);
            } else {
                self.column::<A>(c, count);
            }
        }
    }
}

impl<Y: Stored> Store<Y> {
    /// `count` channels from `c` of all outputs.
    #[inline(always)]
    fn column<A: Arch>(&self, c: usize, count: usize) {
        let Tail { units, bias, residual, channels, clamp, output, .. } = self.tail;
        // SAFETY: the channels are there in what is added and stored, of all these outputs.
        unsafe {
            let unit = match units {
                Some(units) => A::V::load_up_to(units.add(c), count),
                None => A::V::splat(1.0),
            };
            let bias = match bias {
                Some(bias) => A::V::load_up_to(bias.add(c), count),
                None => A::V::splat(0.0),
            };
            let rule = output.unwrap_or(NONE);
            if Y::CODE {
                // Products with a positive number keep their order, so that bounds of numbers are bounds of
                // levels. The last byte of what a level is added to is its code.
                let inverse = A::V::splat(rule.inverse);
                let low = A::V::splat((clamp.0 * rule.inverse).max(rule.low));
                let high = A::V::splat((clamp.1 * rule.inverse).min(rule.high));
                let whole = A::V::splat(WHOLE + f32::from(rule.zero));
                for at in 0..self.outputs {
                    let v = A::V::load(self.sums.add(at * CHANNELS + c)).mul(unit).add(bias);
                    let v = v.mul(inverse).max(low).min(high).add(whole);
                    Y::store(v, self.y.add(at * self.pitch + c), count);
                }
                return;
            }
            let (low, high) = (A::V::splat(clamp.0), A::V::splat(clamp.1));
            for at in 0..self.outputs {
                let mut v = A::V::load(self.sums.add(at * CHANNELS + c)).mul(unit).add(bias);
                if let Some(residual) = residual {
                    v = v.add(A::V::load_up_to(residual.add(at * channels + c), count));
                }
                v = v.clamp(low, high);
                if output.is_some() {
                    v = v.level(&rule).mul(A::V::splat(rule.step));
                }
                Y::store(v, self.y.add(at * self.pitch + c), count);
            }
        }
    }
}
