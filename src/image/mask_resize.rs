//! From mask logits to mask probabilities at the size of the photo, row by row.
//!
//! Upstream makes full-resolution floats: logits are upsampled x2 to stride 4, go through a sigmoid, are
//! resized to the padded input, cropped to the resized image and resized to the photo (all bilinear,
//! align_corners=False). All steps after the sigmoid are linear and separable, so the columns of a stride-4
//! row are brought to the photo's width once and an output row is then a combination of at most four such
//! rows:
//!
//! ```text
//! logits [h8, w8] -x2-> [h4, w4] -sigmoid-> rows -x4, crop, resize columns-> [.., W]   (a few rows: scratch)
//! out[y] = v0 * (u0 * row[q0] + u1 * row[q1]) + v1 * (u2 * row[q2] + u3 * row[q3])
//! ```
//!
//! Each factor is applied as a two-tap step with PyTorch's float32 weights rather than folded into one set of
//! four: two-tap weights add up to 1 exactly, so that rows at exactly 0.5 (or below) stay there and the
//! strict threshold behaves as upstream's. No multiply-add is contracted: every instruction set gives the
//! same bits.

use super::preprocess::Geometry;
use crate::error::{Error, Result};
use crate::isa::{Isa, simd};

/// Where the pixels of a mask lie among those of a finer one, of which each has a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alignment {
    /// At the centre of its block, as everywhere in PyTorch with align_corners=False.
    #[default]
    Centres,
    /// At the pixel `block / 2` of it (rounded down) along each axis: CondInst's "aligned bilinear".
    Pixels,
}

impl Alignment {
    /// Taps of a map that is enlarged by a whole number.
    fn taps(self, input: usize, output: usize) -> Vec<Tap> {
        if self == Alignment::Centres || input == output {
            return taps(input, output);
        }
        let factor = output / input;
        let tap = |at: usize| {
            let at = at.saturating_sub(factor / 2);
            let (low, share) = (at / factor, (at % factor) as f32 / factor as f32);
            Tap { at: [low as u32, (low + 1).min(input - 1) as u32], weight: [1.0 - share, share] }
        };
        (0..output).map(tap).collect()
    }

    /// The share of the second of two pixels in the four positions after the middle of the first's block.
    fn phases(self) -> [f32; 4] {
        match self {
            Alignment::Centres => [0.125, 0.375, 0.625, 0.875],
            Alignment::Pixels => [0.0, 0.25, 0.5, 0.75],
        }
    }
}

/// Two taps of one output position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    at: [u32; 2],
    weight: [f32; 2],
}

/// Taps of a bilinear resize with align_corners=False, as PyTorch computes them in float32.
pub(super) fn taps(input: usize, output: usize) -> Vec<Tap> {
    let scale = input as f32 / output as f32;
    (0..output)
        .map(|d| {
            if input == output {
                return Tap { at: [d as u32; 2], weight: [1.0, 0.0] };
            }
            let position = (scale * (d as f32 + 0.5) - 0.5).max(0.0);
            let low = (position as usize).min(input - 1);
            let fraction = (position - low as f32).clamp(0.0, 1.0);
            Tap { at: [low as u32, (low + 1).min(input - 1) as u32], weight: [1.0 - fraction, fraction] }
        })
        .collect()
}

/// The four stride-4 rows of one output row, ascending, and the weights of the formula in the module header.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowTaps {
    /// Stride-4 rows.
    at: [u32; 4],
    /// Weights within each pair.
    pub(super) inner: [f32; 4],
    /// Weights of the two pairs.
    pub(super) outer: [f32; 2],
}

impl RowTaps {
    /// The rows it draws on.
    pub(super) fn at(&self) -> [usize; 4] {
        self.at.map(|row| row as usize)
    }

    /// The first of them.
    pub(super) fn first(&self) -> usize {
        self.at[0] as usize
    }

    /// The last of them.
    pub(super) fn last(&self) -> usize {
        self.at[3] as usize
    }
}

/// Taps of a resize of a resize: `inner` are those of the first, `outer` those of the second.
pub(super) fn row_taps(inner: &[Tap], outer: Vec<Tap>) -> Vec<RowTaps> {
    let compose = |tap: Tap| {
        let [a, b] = tap.at.map(|p| inner[p as usize]);
        RowTaps {
            at: [a.at[0], a.at[1], b.at[0], b.at[1]],
            inner: [a.weight[0], a.weight[1], b.weight[0], b.weight[1]],
            outer: tap.weight,
        }
    };
    outer.into_iter().map(compose).collect()
}

/// The tables of one chain of sizes.
#[derive(Debug)]
pub(super) struct MaskSampler {
    geometry: Geometry,
    logits: (usize, usize),
    stride4: (usize, usize),
    /// Stride 8 to stride 4; `None` if the logits already come at stride 4.
    upsample: Option<(Vec<Tap>, Vec<Tap>)>,
    /// Resized to original columns; `None` if the photo was not resized.
    columns: Option<Vec<Tap>>,
    rows: Vec<RowTaps>,
    /// See [`Alignment::phases`].
    phases: [f32; 4],
}

/// Working memory of one thread: what one mask needs for a band of output rows.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    upsampled: Vec<f32>,
    probability: Vec<f32>,
    wide: Vec<f32>,
    rows: Vec<f32>,
    peaks: Vec<f32>,
    needed: Vec<bool>,
    first: usize,
}

impl MaskSampler {
    /// Tables for logit maps of `logits` (height, width).
    ///
    /// # Errors
    /// [`Error::Shape`] if the maps are neither at stride 8 nor at stride 4 of the padded size, or a size is
    /// zero or not in order.
    pub(super) fn new(logits: (usize, usize), geometry: Geometry, alignment: Alignment) -> Result<Self> {
        let Geometry { original, resized, padded } = geometry;
        let at_stride = |s: usize| padded == (logits.0 * s, logits.1 * s);
        let sound = original.0 * original.1 * resized.0 * resized.1 > 0
            && resized.0 <= padded.0
            && resized.1 <= padded.1;
        if !sound || !(at_stride(8) || at_stride(4)) {
            return Err(Error::Shape {
                op: "postprocess",
                value: "mask_preds".into(),
                reason: format!(
                    "{logits:?} maps are neither at stride 8 nor at stride 4 of the padded size in {geometry:?}"
                ),
            });
        }
        let stride4 = (padded.0 / 4, padded.1 / 4);
        let doubled = |logits, stride4| alignment.taps(logits, stride4);
        let upsample =
            (logits != stride4).then(|| (doubled(logits.0, stride4.0), doubled(logits.1, stride4.1)));
        let rows = row_taps(&alignment.taps(stride4.0, padded.0), taps(resized.0, original.0));
        let columns = (resized.1 != original.1).then(|| taps(resized.1, original.1));
        Ok(MaskSampler { geometry, logits, stride4, upsample, columns, rows, phases: alignment.phases() })
    }

    /// True if the tables are those of these sizes.
    pub(super) fn fits(&self, logits: (usize, usize), geometry: &Geometry) -> bool {
        self.logits == logits && self.geometry == *geometry
    }

    /// Scratch for bands of up to `band` output rows.
    pub(super) fn scratch(&self, band: usize) -> Scratch {
        let spans = (0..self.rows.len()).step_by(band).map(|y| {
            let (first, end) = self.span(y, (y + band).min(self.rows.len()));
            end - first
        });
        let rows = spans.max().unwrap_or(0);
        let width = self.stride4.1;
        Scratch {
            upsampled: vec![0.0; (rows / 2 + 2) * width],
            probability: vec![0.0; rows * width],
            wide: vec![0.0; width * 4],
            rows: vec![0.0; rows * self.geometry.original.1],
            peaks: vec![0.0; rows],
            needed: vec![false; rows],
            first: 0,
        }
    }

    /// Stride-4 rows that the output rows `from..to` draw on.
    fn span(&self, from: usize, to: usize) -> (usize, usize) {
        (self.rows[from].first(), self.rows[to - 1].last() + 1)
    }

    /// Makes ready the output rows `from..to` of one mask. Rows for which `wanted(row, peak)` is false,
    /// `peak` being the largest probability that enters them, may be left out; [`MaskSampler::row`] must not
    /// be asked for them.
    pub(super) fn prepare(
        &self,
        isa: Isa,
        logits: &[f32],
        from: usize,
        to: usize,
        scratch: &mut Scratch,
        mut wanted: impl FnMut(usize, f32) -> bool,
    ) {
        let (first, end) = self.span(from, to);
        scratch.first = first;
        self.probabilities(isa, logits, first, end, scratch);
        scratch.needed[..end - first].fill(false);
        for y in from..to {
            if wanted(y, self.peak(y, scratch)) {
                for q in self.rows[y].at {
                    scratch.needed[q as usize - first] = true;
                }
            }
        }
        let (narrow, width) = (self.stride4.1, self.geometry.original.1);
        for q in (0..end - first).filter(|&q| scratch.needed[q]) {
            let source = &scratch.probability[q * narrow..][..narrow];
            let out = &mut scratch.rows[q * width..][..width];
            widen(isa, source, self.phases, &mut scratch.wide);
            match &self.columns {
                Some(taps) => resample(taps, &scratch.wide, out),
                None => out.copy_from_slice(&scratch.wide[..width]),
            }
        }
    }

    /// Stride-4 probabilities of the rows `first..end` and the largest of each row.
    fn probabilities(&self, isa: Isa, logits: &[f32], first: usize, end: usize, scratch: &mut Scratch) {
        let width = self.stride4.1;
        let outs = scratch.probability.chunks_exact_mut(width).zip(&mut scratch.peaks);
        let Some((row_taps, column_taps)) = &self.upsample else {
            for (q, (out, peak)) in (first..end).zip(outs) {
                let row = &logits[q * width..][..width];
                *peak = blend_sigmoid(isa, row, row, [1.0, 0.0], out);
            }
            return;
        };
        let low = row_taps[first].at[0] as usize;
        let high = row_taps[end - 1].at[1] as usize;
        for (r, out) in (low..=high).zip(scratch.upsampled.chunks_exact_mut(width)) {
            resample(column_taps, &logits[r * self.logits.1..][..self.logits.1], out);
        }
        for (q, (out, peak)) in (first..end).zip(outs) {
            let tap = &row_taps[q];
            let [upper, lower] = tap.at.map(|r| &scratch.upsampled[(r as usize - low) * width..][..width]);
            *peak = blend_sigmoid(isa, upper, lower, tap.weight, out);
        }
    }

    /// The largest stride-4 probability that enters output row `y` of the prepared mask.
    pub(super) fn peak(&self, y: usize, scratch: &Scratch) -> f32 {
        let peaks = self.rows[y].at.map(|q| scratch.peaks[q as usize - scratch.first]);
        peaks.into_iter().fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
    }

    /// The resampled stride-4 rows of output row `y` of the prepared mask and their weights.
    pub(super) fn row<'a>(&'a self, y: usize, scratch: &'a Scratch) -> ([&'a [f32]; 4], &'a RowTaps) {
        let width = self.geometry.original.1;
        let taps = &self.rows[y];
        (taps.at.map(|q| &scratch.rows[(q as usize - scratch.first) * width..][..width]), taps)
    }

    /// True if output rows are plain two-row blends (the photo's rows were not resized).
    pub(super) fn two_taps(&self) -> bool {
        self.geometry.original.0 == self.geometry.resized.0
    }
}

pub(super) fn resample(taps: &[Tap], source: &[f32], out: &mut [f32]) {
    for (out, tap) in out.iter_mut().zip(taps) {
        let [a, b] = tap.at.map(|x| source[x as usize]);
        *out = tap.weight[0] * a + tap.weight[1] * b;
    }
}

/// `sigmoid(x)` in float32 to a relative error of 2.4e-7, at most 0.5 for x <= 0.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `e^t` in float32 for `t` from -87 to 88, at the ends beyond. Plain operations only, so that the loops
/// around it vectorise (Cephes' `expf`: reduction by ln 2 in two parts and a polynomial of degree 5).
#[inline(always)]
pub(super) fn exp(t: f32) -> f32 {
    /// Adding and subtracting 1.5 * 2^23 rounds to an integer, which the low bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    let t = if t < -87.0 { -87.0 } else { t };
    let t = if t > 88.0 { 88.0 } else { t };
    let shifted = t * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = t - n * (355.0 / 512.0);
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let exp = p * (r * r) + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    exp * power
}

simd! {
    /// `out = sigmoid(w0 * upper + w1 * lower)`; returns the largest (NaN if one is).
    fn blend_sigmoid(isa, upper: &[f32], lower: &[f32], weight: [f32; 2], out: &mut [f32]) -> f32 {
        let mut peak = 0;
        for ((out, &u), &l) in out.iter_mut().zip(upper).zip(lower) {
            let p = sigmoid(weight[0] * u + weight[1] * l);
            *out = p;
            // Probabilities are not negative, and of such floats the bits are in the same order.
            peak = peak.max(p.to_bits() & 0x7fff_ffff);
        }
        f32::from_bits(peak)
    }
}

simd! {
    /// Bilinear x4 of a row, with these phases between neighbours.
    fn widen(isa, source: &[f32], phases: [f32; 4], out: &mut [f32]) {
        let last = source[source.len() - 1];
        let end = out.len();
        let blend = |a: f32, b: f32| phases.map(|share| (1.0 - share) * a + share * b);
        out[..2].fill(source[0]);
        for (pair, out) in source.windows(2).zip(out[2..].as_chunks_mut::<4>().0) {
            *out = blend(pair[0], pair[1]);
        }
        // Off the end PyTorch blends the last sample with itself.
        out[end - 2..].copy_from_slice(&blend(last, last)[..2]);
    }
}

simd! {
    /// `out = sigmoid(logits)`, NaN becoming 0 so that scores always sort.
    pub(super) fn sigmoid_scores(isa, logits: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(logits) {
            let p = sigmoid(x);
            *out = if p >= 0.0 { p } else { 0.0 };
        }
    }
}

/// Value of output column `x` from two rows.
#[inline(always)]
pub(super) fn blend2(rows: &[&[f32]; 4], taps: &RowTaps, x: usize) -> f32 {
    taps.inner[0] * rows[0][x] + taps.inner[1] * rows[1][x]
}

/// Value of output column `x` from four rows.
#[inline(always)]
pub(super) fn blend4(rows: &[&[f32]; 4], taps: &RowTaps, x: usize) -> f32 {
    let upper = taps.inner[0] * rows[0][x] + taps.inner[1] * rows[1][x];
    let lower = taps.inner[2] * rows[2][x] + taps.inner[3] * rows[3][x];
    taps.outer[0] * upper + taps.outer[1] * lower
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_is_accurate_and_the_same_on_every_instruction_set() {
        let inputs: Vec<f32> = (-1_000_000..=1_000_000).map(|i| i as f32 * 1e-4).collect();
        let mut want = vec![0.0; inputs.len()];
        sigmoid_scores(Isa::Portable, &inputs, &mut want);
        for (&x, &p) in inputs.iter().zip(&want) {
            assert!(x > 0.0 || p <= 0.5, "sigmoid({x}) is {p}");
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(p) - exact).abs() / exact;
            // Beyond -87 the exponential saturates (at 1e-38, below any use).
            assert!(error < 2.4e-7 || x < -87.0, "sigmoid({x}) is {p}, off by {error:e}");
        }
        let ends = [0.0, f32::MIN, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let mut got = [9.0; 6];
        sigmoid_scores(Isa::Portable, &ends, &mut got);
        assert_eq!((got[0], got[2], got[3], got[5]), (0.5, 1.0, 1.0, 0.0));
        assert!(got[1] < 1e-37 && got[4] < 1e-37);
        for isa in Isa::available() {
            let mut got = vec![0.0; inputs.len()];
            sigmoid_scores(isa, &inputs, &mut got);
            assert!(got == want, "{isa}");
        }
    }

    #[test]
    fn masks_are_the_same_on_every_instruction_set() {
        let geometry = Geometry { original: (75, 131), resized: (60, 90), padded: (64, 96) };
        let logits: Vec<f32> = (0..8 * 12).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        let sampler = MaskSampler::new((8, 12), geometry, Alignment::Centres).unwrap();
        let rows = |isa| {
            let mut scratch = sampler.scratch(75);
            sampler.prepare(isa, &logits, 0, 75, &mut scratch, |_, _| true);
            scratch.rows
        };
        let want = rows(Isa::Portable);
        for isa in Isa::available() {
            assert!(rows(isa) == want, "{isa}");
        }
    }
}
