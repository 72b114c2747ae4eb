//! What values the maps of a network have on photos, and the levels for them.

use crate::cpu::{self, Executor, Pool, Selection, Weights};
use crate::engine::backend::Backend;
use crate::engine::network::inform;
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::graph::passes::quantize::{Quantization, candidates};
use crate::image::view::ImageView;
use crate::model::TapMode;
use crate::ops::levels::Levels;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;

/// How far levels reach. Values beyond are brought to the last level.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Where the mean squared error of the values that were seen is least, of rounding and of what is cut
    /// off.
    #[default]
    Mse,
    /// So many percent of the values that were seen and are not 0, 0 to 100.
    Percentile(f64),
}

impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clip::Mse => f.write_str("least squares"),
            Clip::Percentile(percent) => write!(f, "the {percent}th percentile"),
        }
    }
}

/// Magnitudes that were seen, counted in [`BINS`] of equal width. Zeros are left out: they are at a level,
/// whatever that step is.
#[derive(Clone, Debug)]
struct Histogram {
    /// Where the last bin ends; 0 as long as nothing but zeros was seen.
    top: f32,
    counts: Vec<u64>,
    /// Whether a value was negative.
    signed: bool,
}

const BINS: usize = 2048;

impl Histogram {
    fn new() -> Histogram {
        Histogram { top: 0.0, counts: vec![0; BINS], signed: false }
    }

    /// Counts values; `false` if one is not finite.
    fn add(&mut self, values: &[f32]) -> bool {
        let (low, high) = values
            .par_chunks(1 << 14)
            .map(|part| {
                // An infinity, or NaN, makes NaN of what is 0 otherwise.
                let fold =
                    |(low, high, bad): (f32, f32, f32), &v: &f32| (low.min(v), high.max(v), bad + 0.0 * v);
                let (low, high, bad) = part.iter().fold((0.0, 0.0, 0.0), fold);
                if bad == 0.0 { (low, high) } else { (f32::NAN, f32::NAN) }
            })
            .reduce(|| (0.0, 0.0), |a, b| (least(a.0, b.0), -least(-a.1, -b.1)));
        if low.is_nan() || high.is_nan() {
            return false;
        }
        self.signed |= low < 0.0;
        let most = high.max(-low);
        if most == 0.0 {
            return true;
        }
        if self.top == 0.0 {
            self.top = most;
        }
        while self.top < most {
            self.widen();
        }
        let scale = BINS as f32 / self.top;
        let count = |part: &[f32]| {
            let mut counts = vec![0u64; BINS];
            for &v in part.iter().filter(|v| **v != 0.0) {
                counts[((v.abs() * scale) as usize).min(BINS - 1)] += 1;
            }
            counts
        };
        let parts: Vec<Vec<u64>> = values.par_chunks(1 << 20).map(count).collect();
        for part in parts {
            self.counts.iter_mut().zip(part).for_each(|(sum, count)| *sum += count);
        }
        true
    }

    /// Makes bins twice as wide.
    fn widen(&mut self) {
        self.top *= 2.0;
        for bin in 0..BINS {
            self.counts[bin] = self.counts.get(2 * bin..2 * bin + 2).map_or(0, |two| two.iter().sum());
        }
    }

    /// How far levels for these values reach.
    fn reach(&self, clip: Clip) -> f32 {
        match clip {
            Clip::Percentile(percent) => {
                let all: u64 = self.counts.iter().sum();
                let wanted = (all as f64 * percent / 100.0).ceil() as u64;
                let mut seen = 0;
                let bin = self.counts.iter().position(|count| {
                    seen += count;
                    seen >= wanted
                });
                self.end(bin.unwrap_or(BINS - 1))
            }
            Clip::Mse => {
                let errors = (0..BINS).map(|bin| (bin, self.error(self.end(bin)))).skip(BINS / 64);
                let best = errors.min_by(|a, b| a.1.total_cmp(&b.1));
                self.end(best.map_or(BINS - 1, |(bin, _)| bin))
            }
        }
    }

    /// Where a bin ends.
    fn end(&self, bin: usize) -> f32 {
        self.top * ((bin + 1) as f32 / BINS as f32)
    }

    /// The sum of squared errors of levels that reach so far.
    fn error(&self, reach: f32) -> f64 {
        let step = f64::from(Levels::up_to(reach, self.signed).step);
        let width = f64::from(self.top) / BINS as f64;
        let each = |(bin, &count): (usize, &u64)| {
            let value = (bin as f64 + 0.5) * width;
            let beyond = (value - f64::from(reach)).max(0.0);
            // Rounding to a step is off by its width over the root of twelve.
            count as f64 * if beyond > 0.0 { beyond * beyond } else { step * step / 12.0 }
        };
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(each).sum()
    }

    /// The share of values, zeros aside, that levels which reach so far cut off.
    fn beyond(&self, reach: f32) -> f64 {
        let all: u64 = self.counts.iter().sum();
        let first = (f64::from(reach) / f64::from(self.top) * BINS as f64).round() as usize;
        let beyond: u64 = self.counts.iter().skip(first).sum();
        if all == 0 { 0.0 } else { beyond as f64 / all as f64 }
    }
}

/// The lesser, or NaN if one is.
fn least(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// Levels of one layer's map.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The levels.
    pub levels: Levels,
    /// Largest magnitude that was seen.
    pub most: f32,
    /// Share of the values, zeros aside, that are beyond the last level.
    pub beyond: f64,
}

/// What the maps of a model's layers are on the photos that it was shown.
pub struct Calibration {
    session: Session,
    /// Names of the layers that stay as they are begin so.
    keep: Vec<String>,
    seen: BTreeMap<String, Histogram>,
    photos: usize,
    /// The network of the last photo's size.
    network: Option<Watched>,
}

/// A network at a size of its input.
struct Watched {
    size: (usize, usize),
    executor: Executor,
    /// For each step the filters' name, if its map is to be seen.
    keys: Vec<Option<String>>,
}

impl Calibration {
    /// Of the model of `session`, which computes on the CPU in f32, but for layers whose filters' names begin
    /// with one of `keep`.
    pub fn new(session: Session, keep: &[String]) -> Calibration {
        Calibration { session, keep: keep.to_vec(), seen: BTreeMap::new(), photos: 0, network: None }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Looks at the maps of one photo.
    ///
    /// # Errors
    /// As [`Session::segment`]; [`Error::Usage`] naming the first layer whose map is not finite; then nothing
    /// of the photo counts.
    pub fn show<'a>(&mut self, image: impl Into<ImageView<'a>>) -> Result<()> {
        let image = image.into();
        let geometry = self.session.geometry(&image)?;
        if self.network.as_ref().is_none_or(|network| network.size != geometry.padded) {
            // The old one's memory first.
            self.network = None;
            self.network = Some(self.prepare(geometry.padded)?);
        }
        let Some(Watched { executor, keys, .. }) = &mut self.network else { return Ok(()) };
        let Session { pool, preprocessor, .. } = &mut self.session;
        let mut seen = self.seen.clone();
        pool.run(|| {
            preprocessor.run(image, executor.input_mut(0))?;
            inform(executor, &geometry);
            for (step, key) in keys.iter().enumerate() {
                if let Some(key) = key
                    && !seen.entry(key.clone()).or_insert_with(Histogram::new).add(executor.operand(step, 0))
                {
                    return Err(Error::usage(format!("the map that `{key}` reads is not finite")));
                }
                executor.run_step(step);
            }
            Ok(())
        })?;
        self.seen = seen;
        self.photos += 1;
        Ok(())
    }

    fn prepare(&self, size: (usize, usize)) -> Result<Watched> {
        let (selection, weights) = on_cpu(&self.session.backend)?;
        let model = self.session.model();
        let (graph, _) = model.graph(size, TapMode::Off, model.config().head.stages)?;
        let layers: BTreeMap<&str, String> = candidates(&graph)
            .into_iter()
            .filter(|layer| !self.keep.iter().any(|start| layer.key.starts_with(start.as_str())))
            .map(|layer| (graph.value(graph.nodes()[layer.node].outputs[0]).name.as_str(), layer.key))
            .collect();
        if layers.is_empty() {
            return Err(Error::usage(format!(
                "{} has no layer that could be quantized",
                model.config().name
            )));
        }
        let plan = cpu::plan(&graph, Selection { bf16: None, ..selection })?;
        let keys = plan.steps.iter().map(|step| layers.get(step.name.as_str()).cloned()).collect();
        let executor = self.session.pool.run(|| Executor::new(plan, weights))?;
        Ok(Watched { size, executor, keys })
    }

    /// Photos that were looked at.
    pub fn photos(&self) -> usize {
        self.photos
    }

    /// The levels of each layer's map, by the name of its filters.
    ///
    /// # Errors
    /// [`Error::Usage`] if no photo was shown.
    pub fn levels(&self, clip: Clip) -> Result<BTreeMap<String, Found>> {
        if self.photos == 0 {
            return Err(Error::usage("no photo to find levels on"));
        }
        let found = self.seen.par_iter().map(|(key, seen)| {
            let reach = seen.reach(clip);
            let levels = Levels::up_to(reach, seen.signed);
            (key.clone(), Found { levels, most: seen.top, beyond: seen.beyond(reach) })
        });
        Ok(found.collect())
    }
}

/// The levels alone.
pub fn quantization(found: &BTreeMap<String, Found>) -> Quantization {
    found.iter().map(|(key, found)| (key.clone(), found.levels)).collect()
}

pub(super) fn on_cpu(backend: &Backend) -> Result<(Selection, &Weights)> {
    backend.cpu().ok_or_else(|| Error::usage("levels are found on the CPU"))
}

/// The pool of a session, for work beside it.
pub(super) fn pool(session: &Session) -> &Pool {
    &session.pool
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        assert!(histogram.add(values));
        histogram
    }

    #[test]
    fn even_values_keep_their_reach() {
        let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 1000.0).collect();
        let histogram = shown(&values);
        assert!(!histogram.signed);
        let reach = histogram.reach(Clip::Mse);
        assert!((9.8..=10.0).contains(&reach), "{reach}");
        let half = histogram.reach(Clip::Percentile(50.0));
        assert!((4.99..=5.01).contains(&half), "{half}");
        assert!((histogram.beyond(half) - 0.5).abs() < 1e-3);
    }

    #[test]
    fn one_value_far_away_is_cut_off() {
        // A million values up to 1 and one of 100: rounding all of them coarsely costs more than one.
        let mut values: Vec<f32> = (1..=1_000_000).map(|i| i as f32 / 1e6 - 0.5).collect();
        values.push(100.0);
        let histogram = shown(&values);
        assert!(histogram.signed);
        let reach = histogram.reach(Clip::Mse);
        // Rounding of a million values to levels up to 100 adds up to 5e4; the one that is cut off to 1e4.
        assert!(reach < 50.0, "{reach}");
        assert!((histogram.reach(Clip::Percentile(100.0)) - 100.0).abs() < 1e-3);
    }

    #[test]
    fn later_values_may_be_larger() {
        let mut histogram = shown(&[0.5, 1.0, 0.0]);
        assert!(histogram.add(&[7.9, -3.0]));
        assert_eq!(histogram.counts.iter().sum::<u64>(), 4);
        assert_eq!((histogram.top, histogram.signed), (8.0, true));
        assert!(!histogram.add(&[f32::INFINITY]) && !histogram.add(&[1.0, f32::NAN]));
    }

    #[test]
    fn nothing_but_zeros_has_levels() {
        let histogram = shown(&[0.0; 100]);
        for clip in [Clip::Mse, Clip::Percentile(99.9)] {
            let levels = Levels::up_to(histogram.reach(clip), histogram.signed);
            assert_eq!(levels, Levels { step: 1.0, signed: false });
        }
        assert_eq!(histogram.beyond(histogram.reach(Clip::Mse)), 0.0);
    }
}
