//! Depthwise convolution: one filter a channel, so vectors run over channels and nothing is packed but the
//! filter, as `[tap][channel]`.
//!
//! A few dozen neighbouring outputs are computed at a time. Values are widened as they are loaded, whatever
//! they are stored as, and sums wait in L1 for what follows, so that what reads a map and what stores one are
//! not compiled for each pair of types.

mod sums;
mod tail;

use std::ops::Range;

use super::ConvShape;
use crate::cpu::gemm::{Bias, Epilogue, SharedMut, Stored, for_each_task, on};
use crate::cpu::ops::activation;
use crate::isa::Isa;
use crate::ops::activation::Activation;
use crate::ops::levels::{Levels, Rule};
pub(crate) use sums::{AtLevels, Tap};
use sums::{Finish, Sums, TILE};
use tail::{Store, Tail};

/// Where there is none.
const NONE: Rule = Rule { step: 1.0, inverse: 1.0, low: 0.0, high: 0.0, zero: 0 };

/// Outputs of a row whose sums wait together.
const WIDE: usize = 32;

/// Channels that go together: whole vectors of every instruction set.
const CHANNELS: usize = 64;

/// A depthwise convolution, its filters packed as `[tap][channel]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depthwise {
    /// What is computed.
    pub shape: ConvShape,
    /// The instruction set.
    pub isa: Isa,
}

/// What is read, and what becomes of sums: `(clamp or activation)(sum * unit + bias + residual)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    /// Levels of the map, if that is what is multiplied. Up to 518 taps, no sum has more digits than f32
    /// holds, so that each is that of integers, in any order.
    pub input: Option<Levels>,
    /// Of each channel, what a sum is worth.
    pub units: Option<&'a [f32]>,
    /// Of each channel.
    pub bias: Option<&'a [f32]>,
    /// As the result, which is no codes then.
    pub residual: Option<&'a [f32]>,
    /// What is clamped to, where there is no activation.
    pub clamp: (f32, f32),
    /// One that is no clamp.
    pub activation: Option<Activation>,
    /// Levels that the result is brought to.
    pub output: Option<Levels>,
}

impl<'a> Ends<'a> {
    /// Those of a product, whose bias is per column.
    pub fn of(epilogue: &Epilogue<'a>) -> Ends<'a> {
        let bias = match epilogue.bias {
            Some(Bias::Column(bias)) => Some(bias),
            _ => None,
        };
        Ends {
            input: None,
            units: None,
            bias,
            residual: epilogue.residual,
            clamp: epilogue.clamp.unwrap_or((f32::NEG_INFINITY, f32::INFINITY)),
            activation: None,
            output: None,
        }
    }
}

impl Depthwise {
    /// `y = ends(conv(x))`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub(crate) fn run<X: Tap, Y: Stored>(&self, x: &[X], packed: &[f32], ends: &Ends<'_>, y: &mut [Y]) {
        /// Tasks, so that threads end at about the same time, unless each has so many rows.
        const TASKS: usize = 32;
        const LINES: usize = 4;
        let s = &self.shape;
        if s.out_pixels() == 0 || s.c_in == 0 {
            return;
        }
        assert!(x.len() >= s.input_len(), "input of {} values for {s:?}", x.len());
        assert!(packed.len() >= s.filter_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(y.len() >= s.output_len(), "output of {} values for {s:?}", y.len());
        let channels = ends.units.iter().chain(&ends.bias).map(|values| values.len());
        assert!(channels.min().is_none_or(|len| len >= s.c_in), "too few units or biases for {s:?}");
        assert!(ends.residual.is_none_or(|r| r.len() >= s.output_len()), "a short residual for {s:?}");
        assert!(ends.residual.is_none() || !Y::CODE, "a residual of codes for {s:?}");
        let y = SharedMut::new(y);
        let map = Map {
            conv: self,
            x: x.as_ptr(),
            packed,
            ends,
            rule: ends.input.map_or(NONE, |levels| levels.rule()),
            output: ends.output.map(|levels| levels.rule()),
            y: y.get(),
        };
        let all = s.batch * s.out_height();
        let lines = (all / TASKS).clamp(1, LINES);
        for_each_task(all.div_ceil(lines), |task| {
            (task * lines..all.min((task + 1) * lines)).for_each(|line| map.line(line));
        });
    }
}

/// What is convolved.
struct Map<'a, X, Y> {
    conv: &'a Depthwise,
    x: *const X,
    packed: &'a [f32],
    ends: &'a Ends<'a>,
    /// How what is stored becomes a level.
    rule: Rule,
    output: Option<Rule>,
    y: *mut Y,
}

// SAFETY: the map is only read, for the duration of a call that borrows it; each row of the result is written
// by one task.
unsafe impl<X: Sync, Y: Send> Sync for Map<'_, X, Y> {}

impl<X: Tap, Y: Stored> Map<'_, X, Y> {
    /// A row of outputs, counted through all images.
    fn line(&self, line: usize) {
        let Depthwise { shape: s, isa } = self.conv;
        let (image, row) = (line / s.out_height(), line % s.out_height());
        let vertical = Taps { kernel: s.kernel[0], dilation: s.dilation[0], size: s.height };
        let (taps, top) = vertical.inside(row * s.stride[0], s.padding[0]);
        let x = self.x.wrapping_add((image * s.height + top) * s.width * s.c_in);
        let filter = &self.packed[taps.start * s.kernel[1] * s.c_in..];
        let mut sums = [0.0; WIDE * CHANNELS];
        for column in (0..s.out_width()).step_by(WIDE) {
            // The last few are a whole tile, some of it once more.
            let column = column.min(s.out_width().saturating_sub(TILE));
            let outputs = WIDE.min(s.out_width() - column);
            let sums = &mut sums[..outputs * CHANNELS];
            for first in (0..s.c_in).step_by(CHANNELS) {
                let at = (line * s.out_width() + column) * s.c_in + first;
                let finish = self.finish(first);
                let (to, pitch) = match finish {
                    Some(_) => (self.y.wrapping_add(at).cast(), s.c_in),
                    None => (sums.as_mut_ptr(), CHANNELS),
                };
                let sum = Sums {
                    shape: s,
                    x: x.wrapping_add(first),
                    rows: taps.len(),
                    filter: &filter[first..],
                    rule: &self.rule,
                    column,
                    outputs,
                    count: CHANNELS.min(s.c_in - first),
                    to,
                    pitch,
                    finish,
                };
                on(*isa, sum);
                if finish.is_none() {
                    self.store(sums, first, at);
                }
            }
        }
    }

    /// What is done to sums of channels from `first` on before they are the result, if they are f32 and get
    /// no more than that.
    fn finish(&self, first: usize) -> Option<Finish> {
        match *self.ends {
            Ends { units: None, residual: None, activation: None, output: None, bias, clamp, .. }
                if Y::F32 =>
            {
                Some(Finish { bias: bias.map(|bias| bias[first..].as_ptr()), clamp })
            }
            _ => None,
        }
    }

    /// Stores the sums of neighbouring outputs, channels from `first` on, to value `at` of the result and on.
    fn store(&self, sums: &mut [f32], first: usize, at: usize) {
        let (ends, isa, channels) = (self.ends, self.conv.isa, self.conv.shape.c_in);
        let part = |values: &[f32], from: usize| values[from..].as_ptr();
        let tail = Tail {
            units: ends.units.map(|units| part(units, first)),
            bias: ends.bias.map(|bias| part(bias, first)),
            residual: ends.residual.map(|residual| part(residual, at)),
            channels,
            count: CHANNELS.min(channels - first),
            clamp: ends.clamp,
            output: self.output,
        };
        let (y, own, outputs) = (self.y.wrapping_add(at), sums.as_mut_ptr(), sums.len() / CHANNELS);
        let Some(activation) = ends.activation else {
            return on(isa, Store { tail, sums: own, outputs, y, pitch: channels });
        };
        let settled = Tail { output: None, ..tail };
        on(isa, Store { tail: settled, sums: own, outputs, y: own, pitch: CHANNELS });
        activation::apply(isa, activation, sums);
        let rest = Tail { units: None, bias: None, residual: None, ..tail };
        on(isa, Store { tail: rest, sums: sums.as_ptr(), outputs, y, pitch: channels });
    }
}

/// The taps of a filter along one axis of a map.
struct Taps {
    kernel: usize,
    dilation: usize,
    size: usize,
}

impl Taps {
    /// Of the filter whose first tap falls on `at - padding`: the taps that fall on the map, and where the
    /// first of those does.
    #[inline(always)]
    fn inside(&self, at: usize, padding: usize) -> (Range<usize>, usize) {
        let first = padding.saturating_sub(at).div_ceil(self.dilation).min(self.kernel);
        let end = (self.size + padding).saturating_sub(at).div_ceil(self.dilation).min(self.kernel);
        if first >= end { (0..0, 0) } else { (first..end, at + first * self.dilation - padding) }
    }
}
