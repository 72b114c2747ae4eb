//! Semantic results: every pixel to the class of its largest logit, as upstream's whole-image inference.
//!
//! Upstream resizes the class logits twice, to the network's input and from there to the photo (bilinear,
//! align_corners=False), and compares last; the softmax between changes no order. Both resizes are linear and
//! separable: the columns of a row of logits are brought to the photo's width once, and an output row is then
//! a combination of at most four such rows, as for masks. Bands of the photo's rows are worked on class by
//! class: float maps of the photo's size never exist.
//!
//! No multiply-add is contracted: every instruction set gives the same bits.

use super::mask_resize::{RowTaps, Tap, blend4, exp, resample, row_taps, taps};
use super::preprocess::Geometry;
use super::worker_pool::WorkerPool;
use crate::error::{Error, Result};
use crate::isa::{Isa, simd};
use rayon::prelude::*;

/// Pixels that one task takes, so that its best logits and classes stay in the second-level cache.
const BAND_PIXELS: usize = 40_960;
/// Most classes, whose indices take 16 bits.
pub(crate) const MAX_CLASSES: usize = 1 << 16;

/// Class logits of one image.
#[derive(Clone, Copy, Debug)]
pub struct ClassLogits<'a> {
    /// Number of classes N, at least 1.
    pub classes: usize,
    /// Height and width of a map, of any size.
    pub size: (usize, usize),
    /// Planar `[N, height, width]`.
    pub values: &'a [f32],
}

/// The pixels of a photo given to classes elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct AssignedClasses<'a> {
    /// Number of classes N.
    pub classes: usize,
    /// Class of each pixel, row-major.
    pub map: &'a [u16],
    /// Probability of that class, row-major, or empty.
    pub confidence: &'a [f32],
}

/// The class of every pixel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SemanticResult {
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Class index of each pixel, row-major.
    pub map: Vec<u16>,
    /// Probability of that class, row-major, if it was asked for; otherwise empty.
    pub confidence: Vec<f32>,
    /// Pixels of each class.
    pub areas: Vec<usize>,
}

impl SemanticResult {
    /// Classes that have a pixel, the largest area first, each with its pixels.
    pub fn present(&self) -> Vec<(usize, usize)> {
        let areas = self.areas.iter().copied().enumerate();
        let mut present: Vec<(usize, usize)> = areas.filter(|&(_, area)| area > 0).collect();
        present.sort_by_key(|&(class, area)| (std::cmp::Reverse(area), class));
        present
    }

    /// Pixels of the map.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
}

/// Turns class logits into maps. Keeps its tables and memory, so that a call for the sizes of the previous
/// one allocates nothing.
#[derive(Debug, Default)]
pub struct SemanticPostprocessor {
    /// Whether results hold a confidence.
    confidence: bool,
    sampler: Option<Sampler>,
    /// Pixels of each class, per band.
    counts: Vec<usize>,
    workers: WorkerPool<Worker>,
}

/// The tables of one chain of sizes.
#[derive(Debug)]
struct Sampler {
    logits: (usize, usize),
    geometry: Geometry,
    /// Logits' to resized columns, and those to the photo's.
    columns: [Vec<Tap>; 2],
    rows: Vec<RowTaps>,
}

/// Memory of one thread.
#[derive(Debug)]
struct Worker {
    /// A row of logits at the resized width.
    wide: Vec<f32>,
    /// Rows of one class at the photo's width.
    rows: Vec<f32>,
    /// Largest logit so far of each pixel of the band.
    best: Vec<f32>,
    /// Sum of exponentials, relative to the largest so far.
    sums: Vec<f32>,
}

impl Sampler {
    fn new(logits: (usize, usize), geometry: Geometry) -> Result<Self> {
        let Geometry { original, resized, padded } = geometry;
        let pixels = [logits, original, resized].map(|(height, width)| height * width);
        if pixels.contains(&0) || resized.0 > padded.0 || resized.1 > padded.1 {
            return Err(Error::Shape {
                op: "postprocess",
                value: "seg_logits".into(),
                reason: format!("{logits:?} maps and {geometry:?}: a size is zero or not in order"),
            });
        }
        let mut to_resized = taps(logits.1, padded.1);
        to_resized.truncate(resized.1);
        let columns = [to_resized, taps(resized.1, original.1)];
        let rows = row_taps(&taps(logits.0, padded.0), taps(resized.0, original.0));
        Ok(Sampler { logits, geometry, columns, rows })
    }

    /// Rows of logits that the output rows `from..to` draw on.
    fn span(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        self.rows[from].first()..self.rows[to - 1].last() + 1
    }

    fn worker(&self, band: usize, confidence: bool) -> Worker {
        let (height, width) = self.geometry.original;
        let spans = (0..height).step_by(band).map(|y| self.span(y, (y + band).min(height)).len());
        Worker {
            wide: vec![0.0; self.geometry.resized.1],
            rows: vec![0.0; spans.max().unwrap_or(0) * width],
            best: vec![0.0; band * width],
            sums: vec![0.0; if confidence { band * width } else { 0 }],
        }
    }

    /// Gives the pixels of the output rows from `from` on, as many as `map` holds, to classes.
    fn assign(&self, isa: Isa, logits: &ClassLogits<'_>, from: usize, worker: &mut Worker, map: &mut [u16]) {
        let width = self.geometry.original.1;
        let Worker { wide, rows, best, sums } = worker;
        let span = self.span(from, from + map.len() / width);
        best[..map.len()].fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        map.fill(0);
        let narrow = logits.size.1;
        for class in 0..logits.classes {
            let plane = &logits.values[class * logits.size.0 * narrow..];
            for (row, out) in span.clone().zip(rows.chunks_exact_mut(width)) {
                resample(&self.columns[0], &plane[row * narrow..][..narrow], wide);
                resample(&self.columns[1], wide, out);
            }
            for (y, map) in map.chunks_exact_mut(width).enumerate() {
                let taps = &self.rows[from + y];
                let rows = taps.at().map(|row| &rows[(row - span.start) * width..][..width]);
                let best = &mut best[y * width..][..width];
                match sums.is_empty() {
                    true => compare(isa, &rows, taps, class as u16, best, map),
                    false => {
                        let sums = &mut sums[y * width..][..width];
                        compare_and_add(isa, &rows, taps, class as u16, best, sums, map);
                    }
                }
            }
        }
    }
}

simd! {
    /// Pixels whose logit of `class` is larger than all before it become its own. NaN never is.
    fn compare(isa, rows: &[&[f32]; 4], taps: &RowTaps, class: u16, best: &mut [f32], map: &mut [u16]) {
        let width = best.len();
        let rows = rows.map(|row| &row[..width]);
        let map = &mut map[..width];
        for x in 0..width {
            let v = blend4(&rows, taps, x);
            let wins = v > best[x];
            best[x] = if wins { v } else { best[x] };
            map[x] = if wins { class } else { map[x] };
        }
    }
}

simd! {
    /// As [`compare`], and adds up the exponentials of all logits relative to the largest so far.
    #[allow(clippy::too_many_arguments)]
    fn compare_and_add(
        isa, rows: &[&[f32]; 4], taps: &RowTaps, class: u16, best: &mut [f32], sums: &mut [f32], map: &mut [u16],
    ) {
        let width = best.len();
        let rows = rows.map(|row| &row[..width]);
        let (sums, map) = (&mut sums[..width], &mut map[..width]);
        for x in 0..width {
            let v = blend4(&rows, taps, x);
            let wins = v > best[x];
            // The first class meets -inf: the sum is 0 then, whatever its exponential.
            let ratio = if wins { best[x] - v } else { v - best[x] };
            let exponential = exp(ratio);
            sums[x] = if wins { sums[x] * exponential + 1.0 } else { sums[x] + exponential };
            best[x] = if wins { v } else { best[x] };
            map[x] = if wins { class } else { map[x] };
        }
    }
}

impl SemanticPostprocessor {
    /// A postprocessor, with or without confidences.
    pub fn new(confidence: bool) -> Self {
        SemanticPostprocessor { confidence, ..SemanticPostprocessor::default() }
    }

    /// Whether results hold a confidence.
    pub fn has_confidence(&self) -> bool {
        self.confidence
    }

    /// Makes the map of one image, replacing what `result` held and reusing its memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if logits and sizes do not fit each other, or for no class or more than 65536.
    pub fn run(
        &mut self,
        logits: &ClassLogits<'_>,
        geometry: &Geometry,
        result: &mut SemanticResult,
    ) -> Result<()> {
        let ClassLogits { classes, size, values } = *logits;
        if values.len() != classes * size.0 * size.1 || !(1..=MAX_CLASSES).contains(&classes) {
            return Err(Error::Shape {
                op: "postprocess",
                value: "seg_logits".into(),
                reason: format!("{} logits of {classes} classes at {size:?}", values.len()),
            });
        }
        if !self.sampler.as_ref().is_some_and(|s| (s.logits, s.geometry) == (size, *geometry)) {
            self.sampler = Some(Sampler::new(size, *geometry)?);
            self.workers.clear();
        }
        let sampler = self.sampler.as_ref().expect("was made above");
        let isa = Isa::detect();
        let (height, width) = geometry.original;
        let band = (BAND_PIXELS / width).clamp(4, 64).min(height);
        let confidence = self.confidence;
        self.workers.fill(|| sampler.worker(band, confidence));
        let workers = &self.workers;
        (result.height, result.width) = (height, width);
        result.map.resize(height * width, 0);
        result.confidence.resize(if confidence { height * width } else { 0 }, 0.0);
        self.counts.clear();
        self.counts.resize(height.div_ceil(band) * classes, 0);
        let work = |index: usize, map: &mut [u16], counts: &mut [usize], confidence: &mut [f32]| {
            workers.lend(|worker| {
                sampler.assign(isa, logits, index * band, worker, map);
                // The largest logit's own exponential is 1.
                confidence.iter_mut().zip(&worker.sums).for_each(|(to, sum)| *to = 1.0 / sum);
            });
            map.iter().for_each(|&class| counts[class as usize] += 1);
        };
        let bands = result.map.par_chunks_mut(band * width).zip(self.counts.par_chunks_mut(classes));
        let bands = bands.enumerate();
        if confidence {
            let confidences = result.confidence.par_chunks_mut(band * width);
            bands.zip(confidences).for_each(|((i, (map, counts)), to)| work(i, map, counts, to));
        } else {
            bands.for_each(|(i, (map, counts))| work(i, map, counts, &mut []));
        }
        self.add_up(classes, result);
        Ok(())
    }

    /// As [`SemanticPostprocessor::run`], with the pixels already given to classes by a GPU.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not over the photo's pixels.
    pub fn run_assigned(
        &mut self,
        assigned: &AssignedClasses<'_>,
        geometry: &Geometry,
        result: &mut SemanticResult,
    ) -> Result<()> {
        let AssignedClasses { classes, map, confidence } = *assigned;
        let (height, width) = geometry.original;
        let pixels = height * width;
        let wanted = if self.confidence { pixels } else { 0 };
        if map.len() != pixels || confidence.len() != wanted {
            return Err(Error::Shape {
                op: "postprocess",
                value: "classes".into(),
                reason: format!(
                    "{} pixels, {} confidences for {height}x{width}",
                    map.len(),
                    confidence.len()
                ),
            });
        }
        (result.height, result.width) = (height, width);
        result.map.resize(pixels, 0);
        result.confidence.clear();
        result.confidence.extend_from_slice(confidence);
        self.counts.clear();
        self.counts.resize(pixels.div_ceil(BAND_PIXELS) * classes, 0);
        let last = classes.saturating_sub(1) as u16;
        let bands = result.map.par_chunks_mut(BAND_PIXELS).zip(map.par_chunks(BAND_PIXELS));
        bands.zip(self.counts.par_chunks_mut(classes.max(1))).for_each(|((to, from), counts)| {
            for (to, &class) in to.iter_mut().zip(from) {
                *to = class.min(last);
                counts[*to as usize] += 1;
            }
        });
        self.add_up(classes, result);
        Ok(())
    }

    /// Areas, of the counts of all bands.
    fn add_up(&self, classes: usize, result: &mut SemanticResult) {
        result.areas.clear();
        result.areas.resize(classes, 0);
        for band in self.counts.chunks_exact(classes) {
            result.areas.iter_mut().zip(band).for_each(|(area, count)| *area += count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What upstream does, in double precision: two whole maps a class.
    fn truth(logits: &ClassLogits<'_>, geometry: &Geometry) -> Vec<Vec<f64>> {
        let resize = |x: &[f64], from: (usize, usize), to: (usize, usize)| -> Vec<f64> {
            let taps = |input: usize, output: usize, at: usize| {
                let place = ((at as f64 + 0.5) * input as f64 / output as f64 - 0.5).max(0.0);
                let low = (place as usize).min(input - 1);
                (low, (low + 1).min(input - 1), place - low as f64)
            };
            let value = |i: usize| {
                let (top, bottom, v) = taps(from.0, to.0, i / to.1);
                let (left, right, h) = taps(from.1, to.1, i % to.1);
                let row = |y: usize| (1.0 - h) * x[y * from.1 + left] + h * x[y * from.1 + right];
                (1.0 - v) * row(top) + v * row(bottom)
            };
            (0..to.0 * to.1).map(value).collect()
        };
        let plane = logits.size.0 * logits.size.1;
        let planes = logits.values.chunks_exact(plane);
        let maps = planes.map(|x| {
            let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let inside = resize(&x, logits.size, geometry.padded);
            resize(&inside, geometry.resized, geometry.original)
        });
        maps.collect()
    }

    #[test]
    fn classes_and_confidence_are_those_of_whole_maps() {
        for (size, resized, original) in [
            ((5, 7), (37, 53), (61, 90)),
            ((5, 7), (40, 56), (40, 56)),
            ((9, 4), (33, 15), (11, 5)),
            ((1, 1), (3, 4), (6, 8)),
            ((2, 50), (8, 400), (1, 5000)),
        ] {
            let classes = 7;
            let wave = |i: usize| ((i * i % 977) as f32 * 0.37).sin() * 4.0;
            let values: Vec<f32> = (0..classes * size.0 * size.1).map(wave).collect();
            let logits = ClassLogits { classes, size, values: &values };
            let geometry = Geometry { original, resized, padded: resized };
            let mut result = SemanticResult::default();
            SemanticPostprocessor::new(true).run(&logits, &geometry, &mut result).unwrap();
            let maps = truth(&logits, &geometry);
            for (pixel, (&class, &confidence)) in result.map.iter().zip(&result.confidence).enumerate() {
                let best = maps.iter().map(|map| map[pixel]).fold(f64::NEG_INFINITY, f64::max);
                assert!(maps[class as usize][pixel] >= best - 1e-5, "{size:?} pixel {pixel}");
                let sum: f64 = maps.iter().map(|map| (map[pixel] - best).exp()).sum();
                assert!((f64::from(confidence) - 1.0 / sum).abs() < 1e-5, "{confidence} for {}", 1.0 / sum);
            }
            assert_eq!(result.areas.iter().sum::<usize>(), original.0 * original.1);
            let present = result.present();
            assert!(present.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{present:?}");
            let mut plain = SemanticResult::default();
            SemanticPostprocessor::new(false).run(&logits, &geometry, &mut plain).unwrap();
            assert_eq!((plain.map, plain.confidence.len()), (result.map, 0));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let geometry = Geometry { original: (4, 4), resized: (4, 4), padded: (4, 4) };
        let run = |classes: usize, size: (usize, usize), len: usize| {
            let values = vec![0.0; len];
            let logits = ClassLogits { classes, size, values: &values };
            let outcome =
                SemanticPostprocessor::new(false).run(&logits, &geometry, &mut SemanticResult::default());
            outcome.map_err(|error| error.to_string())
        };
        assert!(run(3, (2, 2), 11).unwrap_err().contains("11 logits of 3 classes"));
        assert!(run(0, (2, 2), 0).unwrap_err().contains("0 classes"));
        assert!(run(1, (0, 2), 0).unwrap_err().contains("a size is zero"));
        assert_eq!(run(2, (2, 2), 8), Ok(()));
    }
}
