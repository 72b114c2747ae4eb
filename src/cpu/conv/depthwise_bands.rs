//! Depthwise convolution in cache: a task copies the rows of the map that a band of outputs reads, with the
//! zeros beside them, as f32, and convolves them there. What is read and stored how, [`Ends`] says: numbers,
//! or levels, whose sums are integers that f32 holds.

use super::{ConvShape, depthwise};
use crate::cpu::dot::{PerThread, Store};
use crate::cpu::element::Element;
use crate::cpu::gemm::{Epilogue, SharedMut, Target, for_each_task, on};
use crate::cpu::ops::activation;
use crate::isa::{Isa, simd};
use crate::ops::activation::Activation;
use crate::ops::levels::{Levels, Rule};

/// Floats of a band and its outputs, which stay in L2.
const BAND: usize = 96 << 10;

/// A depthwise convolution without residual, its filters packed as [`super::ConvKernel::Depthwise`] has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseBands {
    /// What is computed.
    pub shape: ConvShape,
    /// The instruction set.
    pub isa: Isa,
}

impl DepthwiseBands {
    /// Pixels of a band's row: those that a row of outputs reads, on the map or beside it.
    fn width(&self) -> usize {
        let s = &self.shape;
        s.out_width().saturating_sub(1) * s.stride[1] + s.dilation[1] * (s.kernel[1] - 1) + 1
    }

    /// Rows of the map from the first that an output reads to the last.
    fn reach(&self) -> usize {
        self.shape.dilation[0] * (self.shape.kernel[0] - 1) + 1
    }

    /// Rows of outputs of a band.
    fn band(&self) -> usize {
        let s = &self.shape;
        let row = s.c_in * (s.stride[0] * self.width() + s.out_width());
        let fit = (BAND / row.max(1)).saturating_sub(self.reach() / s.stride[0]);
        // Some for every thread.
        fit.min(s.out_height().div_ceil(8)).max(1)
    }

    fn row_len(&self) -> usize {
        self.width() * self.shape.c_in
    }

    fn map_len(&self) -> usize {
        let s = &self.shape;
        ((self.band() - 1) * s.stride[0] + self.reach()).min(s.height) * self.row_len()
    }

    fn thread_len(&self) -> usize {
        let outputs = self.band() * self.shape.out_width() * self.shape.c_in;
        (self.map_len() + outputs).next_multiple_of(16)
    }

    /// Floats of workspace that [`DepthwiseBands::run`] needs in a pool of so many threads.
    pub fn workspace_len(&self, threads: usize) -> usize {
        if self.shape.out_pixels() == 0 { 0 } else { threads * self.thread_len() }
    }

    /// `y = epilogue(conv(x))`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says, or the workspace has no room for a thread of this pool.
    pub(crate) fn run<X: Sync, Y: Copy + Send>(
        &self,
        x: &[X],
        packed: &[f32],
        (epilogue, ends): (&Epilogue<'_>, &impl Ends<X, Y>),
        y: &mut [Y],
        workspace: &mut [f32],
    ) {
        let s = &self.shape;
        if s.out_pixels() == 0 || s.c_in == 0 {
            return;
        }
        assert!(x.len() >= s.input_len(), "input of {} values for {s:?}", x.len());
        assert!(packed.len() >= s.filter_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(y.len() >= s.output_len(), "output of {} values for {s:?}", y.len());
        assert!(epilogue.residual.is_none(), "a residual in {s:?}");
        let (shared, parts) = (SharedMut::new(y), PerThread::new(workspace, self.thread_len()));
        let (row_in, row_out) = (s.width * s.c_in, s.out_width() * s.c_in);
        let bands = s.out_height().div_ceil(self.band());
        for_each_task(s.batch * bands, |task| {
            let (image, first) = (task / bands, task % bands * self.band());
            let lines = self.band().min(s.out_height() - first);
            // The rows that the band reads, of which those from `top` to `bottom` lie on the map.
            let (start, rows) = (first * s.stride[0], (lines - 1) * s.stride[0] + self.reach());
            let top = start.saturating_sub(s.padding[0]).min(s.height);
            let bottom = (start + rows).saturating_sub(s.padding[0]).clamp(top, s.height);
            let above = (s.padding[0] + top - start).min(rows);
            // SAFETY: one task runs on a thread at a time, and each has the rows of its outputs.
            let (workspace, y) = unsafe {
                let y = shared.get().add((image * s.out_height() + first) * row_out);
                (parts.own(), std::slice::from_raw_parts_mut(y, lines * row_out))
            };
            let (map, sums) = workspace.split_at_mut(self.map_len());
            let map = &mut map[..(bottom - top) * self.row_len()];
            let sums = &mut sums[..lines * row_out];
            let left = s.padding[1].min(self.width());
            let inside = s.width.min(self.width() - left) * s.c_in;
            for (line, row) in map.chunks_exact_mut(self.row_len()).enumerate() {
                let x = &x[(image * s.height + top + line) * row_in..][..inside];
                let (before, rest) = row.split_at_mut(left * s.c_in);
                let (row, behind) = rest.split_at_mut(inside);
                before.fill(0.0);
                behind.fill(0.0);
                ends.read(self.isa, x, row);
            }
            let shape = ConvShape {
                batch: 1,
                height: bottom - top,
                width: self.width(),
                padding: [above, 0],
                padding_end: [rows - above - (bottom - top), 0],
                ..*s
            };
            let finish = epilogue.finish(lines * s.out_width(), s.c_out, s.c_out);
            let target = Target { c: sums.as_mut_ptr(), ldc: s.c_out, finish };
            let layer = depthwise::Layer { shape, x: map.as_ptr(), filter: packed.as_ptr(), target };
            on(self.isa, depthwise::PaddedImage(&layer));
            ends.write(self.isa, sums, y);
        });
    }
}

/// How values of a map become f32 in cache, and what is stored of sums.
pub(crate) trait Ends<X, Y>: Sync {
    /// Brings values of the map to f32.
    fn read(&self, isa: Isa, x: &[X], map: &mut [f32]);
    /// Stores sums of whole pixels, which may change.
    fn write(&self, isa: Isa, sums: &mut [f32], y: &mut [Y]);
}

/// Numbers as they are.
pub(crate) struct Numbers;

impl<X: Element, Y: Element> Ends<X, Y> for Numbers {
    fn read(&self, isa: Isa, x: &[X], map: &mut [f32]) {
        widen(isa, x, map);
    }

    fn write(&self, isa: Isa, sums: &mut [f32], y: &mut [Y]) {
        narrow(isa, sums, y);
    }
}

/// A map at levels under filters at levels. Up to 518 taps, no sum has more digits than f32 holds, so that
/// each is that of integers, in any order.
pub(crate) struct AtLevels<'a> {
    /// Of the map.
    pub input: Levels,
    /// Of each channel, what a sum of levels is worth.
    pub units: &'a [f32],
    /// Of each channel, added then.
    pub bias: Option<&'a [f32]>,
    /// Follows.
    pub activation: Option<Activation>,
    /// Of the result.
    pub output: Option<Levels>,
}

/// What [`AtLevels`] reads.
pub(crate) trait Leveled: Copy + Send + Sync {
    /// The level of a stored value.
    fn level(self, rule: Rule) -> f32;
}

impl Leveled for u8 {
    #[inline(always)]
    fn level(self, rule: Rule) -> f32 {
        f32::from(self) - f32::from(rule.zero)
    }
}

/// The same of all that are numbers.
macro_rules! leveled {
    ($($number:ty)*) => {
        $(impl Leveled for $number {
            #[inline(always)]
            fn level(self, rule: Rule) -> f32 {
                rule.level(self.widen())
            }
        })*
    };
}
leveled! { f32 half::bf16 }

impl<X: Leveled, Y: Store> Ends<X, Y> for AtLevels<'_> {
    fn read(&self, isa: Isa, x: &[X], map: &mut [f32]) {
        to_levels(isa, x, map, self.input.rule());
    }

    fn write(&self, isa: Isa, sums: &mut [f32], y: &mut [Y]) {
        let clamp = self.activation.map(|activation| activation.clamp());
        let clamped = clamp.flatten().unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        to_numbers(isa, sums, self.units, self.bias, clamped);
        if let (Some(activation), Some(None)) = (self.activation, clamp) {
            activation::apply(isa, activation, sums);
        }
        match self.output {
            Some(levels) => store_levels(isa, sums, y, levels),
            None => store_numbers(isa, sums, y),
        }
    }
}

simd! {
    fn widen<X: Element>(isa, x: &[X], map: &mut [f32]) {
        map.iter_mut().zip(x).for_each(|(y, x)| *y = x.widen());
    }
}

simd! {
    fn narrow<Y: Element>(isa, sums: &[f32], y: &mut [Y]) {
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = Y::narrow(*sum));
    }
}

simd! {
    fn to_levels<X: Leveled>(isa, x: &[X], map: &mut [f32], rule: Rule) {
        map.iter_mut().zip(x).for_each(|(y, x)| *y = x.level(rule));
    }
}

simd! {
    fn to_numbers(isa, sums: &mut [f32], units: &[f32], bias: Option<&[f32]>, clamp: (f32, f32)) {
        let (low, high) = clamp;
        for sums in sums.chunks_exact_mut(units.len()) {
            sums.iter_mut().zip(units).for_each(|(sum, unit)| *sum *= unit);
            if let Some(bias) = bias {
                sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
        for sum in sums {
            *sum = if *sum > low { *sum } else { low };
            *sum = if *sum < high { *sum } else { high };
        }
    }
}

simd! {
    fn store_levels<Y: Store>(isa, sums: &[f32], y: &mut [Y], levels: Levels) {
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = Y::store(*sum, Some(levels)));
    }
}

simd! {
    fn store_numbers<Y: Store>(isa, sums: &[f32], y: &mut [Y]) {
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = Y::store(*sum, None));
    }
}
