//! The gradient of resizing: every pixel of `dx` gathers what it gave to pixels of `dy`.
//!
//! A task takes a band of rows of `dx` and goes through it by segments of columns. For each row of a segment
//! it first adds up the weighted rows of `dy` that the row gave to, into scratch that stays in cache; then
//! every pixel adds up the weighted pixels of that. Bands and segments depend on the shapes alone.

use super::super::kernel::{Args, Kernel};
use super::Isa;
use crate::isa::simd;
use crate::ops::resize::Resize;
use crate::tensor::Shape;
use rayon::prelude::*;

/// Most bands, and thus runs of scratch.
const BANDS: usize = 64;
/// Floats of scratch that a segment may take, where it has more than one column.
const SCRATCH: usize = 4096;

/// What one pixel of `dx` gave along one axis: weights of neighbouring pixels of `dy`.
#[derive(Clone, Copy, Default)]
struct Span {
    /// First pixel of `dy`.
    first: usize,
    /// Number of pixels.
    len: usize,
    /// First of the weights.
    weights: usize,
}

/// All pixels along one axis.
#[derive(Default)]
struct Axis {
    spans: Vec<Span>,
    weights: Vec<f32>,
}

impl Axis {
    /// The transpose of the forward operator's taps.
    fn new(forward: &Resize, axis: usize, input: usize) -> Self {
        let mut gifts: Vec<Vec<(usize, f64)>> = vec![Vec::new(); input];
        for index in 0..forward.size[axis] {
            let taps = forward.taps(axis, input, index);
            let both = [(taps.low, 1.0 - taps.weight), (taps.high, taps.weight)];
            let merged = [(taps.low, 1.0), (taps.high, 0.0)];
            let gives = if taps.low == taps.high { merged } else { both };
            for (pixel, weight) in gives.into_iter().filter(|&(_, weight)| weight != 0.0) {
                gifts[pixel].push((index, weight));
            }
        }
        let mut axis = Axis::default();
        for gifts in gifts {
            let (weights, first) = (axis.weights.len(), gifts.first().map_or(0, |gift| gift.0));
            let len = gifts.last().map_or(0, |gift| gift.0 + 1 - first);
            axis.spans.push(Span { first, len, weights });
            axis.weights.resize(weights + len, 0.0);
            for (index, weight) in gifts {
                axis.weights[weights + index - first] = weight as f32;
            }
        }
        axis
    }

    fn weights(&self, span: Span) -> &[f32] {
        &self.weights[span.weights..][..span.len]
    }
}

/// A run of columns of `dx`, and the columns of `dy` that it gave to.
#[derive(Clone, Copy)]
struct Segment {
    first: usize,
    end: usize,
    from: usize,
    to: usize,
}

impl Segment {
    /// Splits the columns so that no segment of several needs more than `columns` columns of `dy`.
    fn split(spans: &[Span], columns: usize) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for (index, span) in spans.iter().enumerate() {
            let (from, to) = (span.first, span.first + span.len);
            match segments.last_mut() {
                Some(last) if span.len == 0 => last.end = index + 1,
                Some(last) if last.from == last.to => (last.end, last.from, last.to) = (index + 1, from, to),
                Some(last) if to - last.from <= columns => (last.end, last.to) = (index + 1, to),
                _ => segments.push(Segment { first: index, end: index + 1, from, to }),
            }
        }
        segments
    }
}

struct Bands {
    dx: Shape,
    dy: Shape,
    rows: Axis,
    columns: Axis,
    segments: Vec<Segment>,
    isa: Isa,
}

/// The kernel for the gradient of `forward`.
pub(crate) fn kernel(forward: &Resize, dx: Shape, dy: Shape, isa: Isa) -> Box<dyn Kernel> {
    let [rows, columns] = [0, 1].map(|axis| {
        if dx.is_empty() || dy.is_empty() { Axis::default() } else { Axis::new(forward, axis, dx[1 + axis]) }
    });
    let segments = Segment::split(&columns.spans, SCRATCH / dx[3].max(1));
    Box::new(Bands { dx, dy, rows, columns, segments, isa })
}

impl Bands {
    /// Rows of `dx` in a band, over the whole batch.
    fn band(&self) -> usize {
        (self.dx[0] * self.dx[1]).div_ceil(BANDS)
    }

    /// Floats of scratch of a band.
    fn scratch(&self) -> usize {
        self.segments.iter().map(|s| (s.to - s.from) * self.dx[3]).max().unwrap_or(0).max(1)
    }

    fn compute(&self, first: usize, dy: &[f32], scratch: &mut [f32], dx: &mut [f32]) {
        let channels = self.dx[3];
        let (row, source) = (self.dx[2] * channels, self.dy[2] * channels);
        for segment in &self.segments {
            let scratch = &mut scratch[..(segment.to - segment.from) * channels];
            for (i, dx) in dx.chunks_exact_mut(row).enumerate() {
                let (b, span) = ((first + i) / self.dx[1], self.rows.spans[(first + i) % self.dx[1]]);
                let start = (b * self.dy[1] + span.first) * source + segment.from * channels;
                let dy = dy.get(start..).unwrap_or_default();
                add_rows(self.isa, self.rows.weights(span), dy, source, scratch);
                let dx = &mut dx[segment.first * channels..segment.end * channels];
                add_pixels(self.isa, &self.columns, *segment, channels, scratch, dx);
            }
        }
    }
}

impl Kernel for Bands {
    fn name(&self) -> String {
        "gather".to_string()
    }

    fn workspace(&self) -> usize {
        if self.segments.is_empty() {
            return 0;
        }
        (self.dx[0] * self.dx[1]).div_ceil(self.band()) * self.scratch()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (dy, dx) = (args.inputs[0], &mut args.outputs[0]);
        if self.segments.is_empty() {
            dx.fill(0.0);
            return;
        }
        let (band, row) = (self.band(), self.dx[2] * self.dx[3]);
        let bands = dx.par_chunks_mut(band * row).zip(args.workspace.par_chunks_mut(self.scratch()));
        bands.enumerate().for_each(|(task, (dx, scratch))| self.compute(task * band, dy, scratch, dx));
    }
}

simd! {
    /// `y = sum over k of weights[k] * x[k * stride ..]`.
    fn add_rows(isa, weights: &[f32], x: &[f32], stride: usize, y: &mut [f32]) {
        weighted_sum(weights, x, stride, y);
    }
}

simd! {
    /// The pixels of a segment from its scratch.
    fn add_pixels(isa, axis: &Axis, segment: Segment, channels: usize, x: &[f32], y: &mut [f32]) {
        let spans = &axis.spans[segment.first..segment.end];
        if channels == 1 {
            for (y, span) in y.iter_mut().zip(spans) {
                let weights = &axis.weights[span.weights..][..span.len];
                let x = x.get(span.first.saturating_sub(segment.from)..).unwrap_or_default();
                *y = x.iter().zip(weights).fold(0.0, |sum, (x, weight)| sum + x * weight);
            }
            return;
        }
        for (y, span) in y.chunks_exact_mut(channels).zip(spans) {
            let weights = &axis.weights[span.weights..][..span.len];
            let x = x.get(span.first.saturating_sub(segment.from) * channels..).unwrap_or_default();
            weighted_sum(weights, x, channels, y);
        }
    }
}

#[inline(always)]
fn weighted_sum(weights: &[f32], x: &[f32], stride: usize, y: &mut [f32]) {
    let mut add = |first: usize, weights: &[f32], stored: bool| {
        let row = |k: usize| &x[(first + k) * stride..][..y.len()];
        match *weights {
            [a] => {
                let x = row(0);
                for (i, y) in y.iter_mut().enumerate() {
                    *y = if stored { *y } else { 0.0 } + a * x[i];
                }
            }
            [a, b] => {
                let xs = [row(0), row(1)];
                for (i, y) in y.iter_mut().enumerate() {
                    *y = if stored { *y } else { 0.0 } + (a * xs[0][i] + b * xs[1][i]);
                }
            }
            [a, b, c] => {
                let xs = [row(0), row(1), row(2)];
                for (i, y) in y.iter_mut().enumerate() {
                    *y = if stored { *y } else { 0.0 } + (a * xs[0][i] + b * xs[1][i] + c * xs[2][i]);
                }
            }
            [a, b, c, d] => {
                let xs = [row(0), row(1), row(2), row(3)];
                for (i, y) in y.iter_mut().enumerate() {
                    let pairs = (a * xs[0][i] + b * xs[1][i]) + (c * xs[2][i] + d * xs[3][i]);
                    *y = if stored { *y } else { 0.0 } + pairs;
                }
            }
            _ => y.fill(0.0),
        }
    };
    add(0, &weights[..weights.len().min(4)], false);
    for first in (4..weights.len()).step_by(4) {
        add(first, &weights[first..weights.len().min(first + 4)], true);
    }
}
