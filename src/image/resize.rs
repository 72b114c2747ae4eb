//! Bilinear resize of 8-bit RGB, bit for bit as `cv2.resize(..., INTER_LINEAR)`.
//!
//! OpenCV works in fixed point: per axis, output position `d` samples the input at
//! `s = (d + 0.5) * in / out - 0.5` with two taps of 11-bit weights. Rows are first resampled horizontally to
//! 19-bit integers (`a * wx0 + b * wx1`), then two such rows are combined as
//! `(((r0 >> 4) * wy0 >> 16) + ((r1 >> 4) * wy1 >> 16) + 2) >> 2`; each shift truncates, and the order
//! matters for the last bit. Exact halving of both sides is the one exception: OpenCV then averages 2 x 2
//! pixels.

use image::RgbImage;
use rayon::prelude::*;

use crate::isa::{Isa, simd};

/// Fixed-point one: 11 fractional bits.
const ONE: i32 = 1 << 11;
/// Output rows that one task produces. A constant, so that the split never depends on the threads.
const BAND: usize = 32;

/// The size that the test pipeline of mmdet gives an image: the largest that keeps the aspect ratio with its
/// short side at most `short` and its long side at most `long`. Returns `(height, width)`, at least 1 each.
///
/// `scale = min(long / max(h, w), short / min(h, w))` and each side is `int(side * scale + 0.5)`, in double
/// precision (mmcv `rescale_size`).
pub fn keep_ratio_size(height: usize, width: usize, short: usize, long: usize) -> (usize, usize) {
    let by_long = long as f64 / height.max(width) as f64;
    let by_short = short as f64 / height.min(width) as f64;
    let scale = by_long.min(by_short);
    let side = |v: usize| ((v as f64 * scale + 0.5) as usize).max(1);
    (side(height), side(width))
}

/// Two taps of one output position.
#[derive(Clone, Copy, Debug)]
struct Tap {
    at: [u32; 2],
    weight: [i32; 2],
}

/// Taps of one axis. `edge` is what OpenCV does off the ends: columns snap to the border sample with weight
/// one, rows keep both weights and read the border row twice (which truncates differently).
fn taps(input: usize, output: usize, snap: bool) -> Vec<Tap> {
    // OpenCV derives the scale from the reciprocal ratio; the double rounding is part of the result.
    let scale = 1.0 / (output as f64 / input as f64);
    let last = input as i64 - 1;
    (0..output)
        .map(|d| {
            let position = ((d as f64 + 0.5) * scale - 0.5) as f32;
            let mut low = position.floor() as i64;
            let mut fraction = position - position.floor();
            if snap && low < 0 {
                (low, fraction) = (0, 0.0);
            }
            if snap && low >= last {
                (low, fraction) = (last, 0.0);
            }
            let fixed = |w: f32| (w * ONE as f32).round_ties_even() as i32;
            Tap {
                at: [low.clamp(0, last) as u32, (low + 1).clamp(0, last) as u32],
                weight: [fixed(1.0 - fraction), fixed(fraction)],
            }
        })
        .collect()
}

/// A resize between two fixed sizes: its tap tables and scratch rows. Running it allocates nothing.
#[derive(Debug)]
pub struct Resizer {
    source: (usize, usize),
    target: (usize, usize),
    columns: Vec<Tap>,
    rows: Vec<Tap>,
    halve: bool,
    scratch: Vec<Scratch>,
}

/// One band's working rows: two horizontally resampled rows with the source row each holds, and the output.
#[derive(Clone, Debug)]
struct Scratch {
    resampled: [Vec<i32>; 2],
    holds: [usize; 2],
    output: Vec<u8>,
}

impl Resizer {
    /// Prepares the resize of a `source` (height, width) image to `target` (height, width).
    ///
    /// # Panics
    /// If a side is zero; decoded images and [`keep_ratio_size`] never have one.
    pub fn new(source: (usize, usize), target: (usize, usize)) -> Self {
        assert!(source.0 * source.1 * target.0 * target.1 > 0, "resize of {source:?} to {target:?}");
        let row = Scratch {
            resampled: [vec![0; target.1 * 3], vec![0; target.1 * 3]],
            holds: [usize::MAX; 2],
            output: vec![0; target.1 * 3],
        };
        Resizer {
            source,
            target,
            columns: taps(source.1, target.1, true),
            rows: taps(source.0, target.0, false),
            halve: source.0 == 2 * target.0 && source.1 == 2 * target.1,
            scratch: vec![row; target.0.div_ceil(BAND)],
        }
    }

    /// The sizes (height, width) it was made for: source and target.
    pub fn sizes(&self) -> ((usize, usize), (usize, usize)) {
        (self.source, self.target)
    }

    /// Resizes `source` (`[height, width, 3]`, row-major) into `target`.
    ///
    /// # Panics
    /// If a slice is not of the size that [`Resizer::new`] was told.
    pub fn run(&mut self, source: &[u8], target: &mut [u8]) {
        let row = self.target.1 * 3;
        self.rows_into(source, target, row, |pixels, out| out.copy_from_slice(pixels));
    }

    /// Resizes `source` and hands every output row to `emit(row pixels, out row)`, where the out rows are the
    /// consecutive `stride`-element pieces of `out` (at least target-height of them). Rows are made in
    /// parallel.
    pub(super) fn rows_into<T: Send>(
        &mut self,
        source: &[u8],
        out: &mut [T],
        stride: usize,
        emit: impl Fn(&[u8], &mut [T]) + Sync,
    ) {
        let (height, width) = self.target;
        assert_eq!(source.len(), self.source.0 * self.source.1 * 3, "source of a resize");
        assert!(out.len() >= height * stride, "target of a resize");
        let isa = Isa::detect();
        let source_row = |y: usize| &source[y * self.source.1 * 3..][..self.source.1 * 3];
        let (columns, rows) = (&self.columns, &self.rows);
        let identity = self.source == self.target;
        let bands = out[..height * stride].par_chunks_mut(BAND * stride).zip(&mut self.scratch);
        bands.enumerate().for_each(|(band, (out, scratch))| {
            scratch.holds = [usize::MAX; 2];
            for (y, out) in (band * BAND..).zip(out.chunks_mut(stride)) {
                if identity {
                    emit(source_row(y), out);
                    continue;
                }
                if self.halve {
                    let pair = [source_row(2 * y), source_row(2 * y + 1)];
                    average_pairs(pair, &mut scratch.output);
                } else {
                    let tap = rows[y];
                    let slots = scratch.fetch(tap.at, |y, row| resample_row(columns, source_row(y), row));
                    let pair = slots.map(|slot| scratch.resampled[slot].as_slice());
                    combine_rows(isa, pair[0], pair[1], tap.weight, &mut scratch.output[..width * 3]);
                }
                emit(&scratch.output, out);
            }
        });
    }
}

impl Scratch {
    /// Slots that hold the resampled source rows `wanted` (ascending, at most one apart), after filling what
    /// is missing and evicting only what is not wanted.
    fn fetch(&mut self, wanted: [u32; 2], fill: impl Fn(usize, &mut [i32])) -> [usize; 2] {
        let wanted = wanted.map(|y| y as usize);
        wanted.map(|y| {
            if let Some(slot) = self.holds.iter().position(|&held| held == y) {
                return slot;
            }
            let slot = usize::from(wanted.contains(&self.holds[0]));
            fill(y, &mut self.resampled[slot]);
            self.holds[slot] = y;
            slot
        })
    }
}

fn resample_row(columns: &[Tap], source: &[u8], row: &mut [i32]) {
    let (pixels, _) = source.as_chunks::<3>();
    for (out, tap) in row.as_chunks_mut::<3>().0.iter_mut().zip(columns) {
        let (a, b) = (pixels[tap.at[0] as usize], pixels[tap.at[1] as usize]);
        for c in 0..3 {
            out[c] = i32::from(a[c]) * tap.weight[0] + i32::from(b[c]) * tap.weight[1];
        }
    }
}

simd! {
    fn combine_rows(isa, upper: &[i32], lower: &[i32], weight: [i32; 2], out: &mut [u8]) {
        for ((out, &u), &l) in out.iter_mut().zip(upper).zip(lower) {
            let sum = (((u >> 4) * weight[0]) >> 16) + (((l >> 4) * weight[1]) >> 16);
            *out = ((sum + 2) >> 2) as u8;
        }
    }
}

fn average_pairs(rows: [&[u8]; 2], out: &mut [u8]) {
    for (x, out) in out.chunks_exact_mut(3).enumerate() {
        for c in 0..3 {
            let sum: u32 = rows.iter().map(|r| u32::from(r[6 * x + c]) + u32::from(r[6 * x + 3 + c])).sum();
            out[c] = ((sum + 2) >> 2) as u8;
        }
    }
}

/// Resizes `image` to `(height, width)`: [`Resizer`] for a single use.
///
/// # Panics
/// If a side of either size is zero.
pub fn resize(image: &RgbImage, size: (usize, usize)) -> RgbImage {
    let mut out = RgbImage::new(size.1 as u32, size.0 as u32);
    let source = (image.height() as usize, image.width() as usize);
    Resizer::new(source, size).run(image.as_raw(), &mut out);
    out
}
