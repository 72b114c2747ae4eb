//! Panoptic results: every pixel to one segment, as upstream merges things and stuff.
//!
//! Objects are the thing proposals followed by one kernel for each stuff class. A thing takes its best thing
//! class; the stuff object of class `c` takes only its own. Each pixel goes to the object with the largest
//! `score * mask` (once, over all objects, dropped ones included; equal: lower index). Objects are then
//! visited by descending score (equal: lower index first): a thing below the score threshold is skipped, and
//! so is an object whose won pixels A are less than `overlap_threshold` of its own mask B (pixels with
//! probability >= 0.5), or that has none of either. The others get the won pixels as one segment with the
//! value `label + 1000 * counter`. Pixels that nobody got hold the number of classes (void).

use rayon::prelude::*;

use super::mask_resize::{Alignment, MaskSampler, RowTaps, Scratch, blend2, blend4, sigmoid_scores};
use super::preprocess::Geometry;
use super::worker_pool::WorkerPool;
use super::{HeadOutput, sampler_for};
use crate::error::{Error, Result};
use crate::isa::{Isa, simd};

/// Pixels that one task takes, so that its best scores and indices stay in the second-level cache.
const BAND_PIXELS: usize = 40_960;
/// Factor between labels and segment counters in the panoptic map.
pub const INSTANCE_OFFSET: u32 = 1000;

/// Numbers of the model and thresholds of the merge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanopticConfig {
    /// Thing proposals: the first objects.
    pub proposals: usize,
    /// Thing classes: the first classes.
    pub things: usize,
    /// Stuff classes: the other classes, and the other objects in the same order.
    pub stuff: usize,
    /// Least score of a thing (upstream `instance_score_thr`).
    pub score_threshold: f64,
    /// Least share of its mask that an object has to win (upstream `overlap_thr`).
    pub overlap_threshold: f64,
}

impl Default for PanopticConfig {
    /// COCO: 100 proposals, 80 things, 53 stuff classes, thresholds 0.3 and 0.6.
    fn default() -> Self {
        PanopticConfig { proposals: 100, things: 80, stuff: 53, score_threshold: 0.3, overlap_threshold: 0.6 }
    }
}

/// One segment of the panoptic map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanopticSegment {
    /// Value of its pixels in the map: `category + 1000 * counter`.
    pub id: u32,
    /// Class index.
    pub category: usize,
    /// True if the class is a thing.
    pub is_thing: bool,
    /// Class score of the object.
    pub score: f32,
    /// Pixels of the segment.
    pub area: usize,
    /// Index of the object (thing proposal or stuff kernel) it came from.
    pub query: usize,
}

/// The panoptic map, its segments, and the quantities behind them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PanopticResult {
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Segment value of each pixel, row-major; the number of classes where there is none.
    pub map: Vec<u32>,
    /// The segments, in the order of their counters.
    pub segments: Vec<PanopticSegment>,
    /// How the merge came about.
    pub trace: PanopticTrace,
}

/// Intermediate results of a merge, under upstream's names: they locate a difference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PanopticTrace {
    /// Object that wins each pixel, row-major (`argmax_ids`).
    pub argmax_ids: Vec<u32>,
    /// Score of each object (`total_scores`).
    pub total_scores: Vec<f32>,
    /// Class of each object (`total_labels`).
    pub total_labels: Vec<u32>,
    /// Objects by descending score (`sorted_inds`).
    pub sorted_inds: Vec<u32>,
    /// Pixels that each object wins, A (`mask_area`).
    pub mask_area: Vec<u32>,
    /// Pixels of each object's mask, B (`original_area`).
    pub original_area: Vec<u32>,
}

/// The pixels of a photo given to objects elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Assigned<'a> {
    /// Object of each pixel, row-major.
    pub ids: &'a [u16],
    /// Pixels that each object wins, A.
    pub won: &'a [u32],
    /// Pixels of each object's mask, B.
    pub own: &'a [u32],
    /// Score of each object.
    pub scores: &'a [f32],
    /// Class of each object.
    pub labels: &'a [u32],
}

/// Turns network outputs into panoptic maps. Keeps its tables and memory, so that a call for the sizes of the
/// previous one allocates nothing.
#[derive(Debug)]
pub struct PanopticPostprocessor {
    config: PanopticConfig,
    sampler: Option<MaskSampler>,
    probabilities: Vec<f32>,
    /// Areas A and B of each object, per band.
    counts: Vec<u32>,
    value_of: Vec<u32>,
    workers: WorkerPool<Worker>,
}

/// Memory of one thread.
#[derive(Debug)]
struct Worker {
    scratch: Scratch,
    /// Largest `score * mask` so far of each pixel of the band.
    best: Vec<f32>,
    /// Smallest of each row of `best`.
    floor: Vec<f32>,
}

impl PanopticPostprocessor {
    /// A postprocessor for one configuration.
    pub fn new(config: PanopticConfig) -> Self {
        PanopticPostprocessor {
            config,
            sampler: None,
            probabilities: Vec::new(),
            counts: Vec::new(),
            value_of: Vec::new(),
            workers: WorkerPool::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &PanopticConfig {
        &self.config
    }

    /// Makes the panoptic map of one image, replacing what `result` held and reusing its memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if the outputs do not fit each other, the configuration or `geometry`.
    pub fn run(&mut self, head: &HeadOutput, geometry: &Geometry, result: &mut PanopticResult) -> Result<()> {
        head.check()?;
        let mut probabilities = std::mem::take(&mut self.probabilities);
        probabilities.resize(head.class_logits.len(), 0.0);
        sigmoid_scores(Isa::detect(), head.class_logits, &mut probabilities);
        let head = HeadOutput { class_logits: &probabilities, ..*head };
        let outcome = self.run_probabilities(&head, geometry, result);
        self.probabilities = probabilities;
        outcome
    }

    /// As [`PanopticPostprocessor::run`], with class probabilities in place of class logits.
    ///
    /// # Errors
    /// As [`PanopticPostprocessor::run`].
    pub fn run_probabilities(
        &mut self,
        head: &HeadOutput,
        geometry: &Geometry,
        result: &mut PanopticResult,
    ) -> Result<()> {
        head.check()?;
        let PanopticConfig { proposals, things, stuff, .. } = self.config;
        if head.objects != proposals + stuff || head.classes != things + stuff || head.classes == 0 {
            return Err(Error::Shape {
                op: "panoptic merge",
                value: "cls_score".into(),
                reason: format!(
                    "[{}, {}] is not [{proposals} proposals + {stuff}, {things} things + {stuff} stuff classes]",
                    head.objects, head.classes
                ),
            });
        }
        if sampler_for(&mut self.sampler, head.mask_size, geometry, Alignment::Centres)? {
            self.workers.clear();
        }
        (result.height, result.width) = geometry.original;
        classify(&self.config, head, &mut result.trace);
        self.assign(head, geometry, &mut result.trace);
        self.merge(result);
        Ok(())
    }

    /// As [`PanopticPostprocessor::run`], with the pixels already given to objects by a GPU.
    ///
    /// # Errors
    /// [`Error::Shape`] if the parts do not fit each other, the configuration or `geometry`.
    pub fn run_assigned(
        &mut self,
        assigned: &Assigned<'_>,
        geometry: &Geometry,
        result: &mut PanopticResult,
    ) -> Result<()> {
        let PanopticConfig { proposals, things, stuff, .. } = self.config;
        let (height, width) = geometry.original;
        let objects = proposals + stuff;
        let per_object = [assigned.won, assigned.own, assigned.labels].map(<[u32]>::len);
        let sound = per_object == [objects; 3] && assigned.scores.len() == objects;
        let known = |label: &u32| (*label as usize) < things + stuff;
        if !sound || assigned.ids.len() != height * width || !assigned.labels.iter().all(known) {
            return Err(Error::Shape {
                op: "panoptic merge",
                value: "assignment".into(),
                reason: format!(
                    "{} pixels and {per_object:?} objects of {} classes are not {height}x{width} and {objects}",
                    assigned.ids.len(),
                    things + stuff
                ),
            });
        }
        (result.height, result.width) = geometry.original;
        let trace = &mut result.trace;
        let refill = |to: &mut Vec<u32>, from: &[u32]| {
            to.clear();
            to.extend_from_slice(from);
        };
        refill(&mut trace.mask_area, assigned.won);
        refill(&mut trace.original_area, assigned.own);
        refill(&mut trace.total_labels, assigned.labels);
        trace.total_scores.clear();
        trace.total_scores.extend_from_slice(assigned.scores);
        trace.argmax_ids.resize(height * width, 0);
        let last = objects.saturating_sub(1) as u32;
        let parts = trace.argmax_ids.par_chunks_mut(1 << 16).zip(assigned.ids.par_chunks(1 << 16));
        parts.for_each(|(to, from)| {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = u32::from(from).min(last));
        });
        rank(trace);
        self.merge(result);
        Ok(())
    }

    /// Gives each pixel to an object and counts A and B.
    fn assign(&mut self, head: &HeadOutput, geometry: &Geometry, trace: &mut PanopticTrace) {
        let isa = Isa::detect();
        let sampler = self.sampler.as_ref().expect("was made by the caller");
        let (height, width) = geometry.original;
        let band = (BAND_PIXELS / width).clamp(4, 64).min(height);
        let objects = head.objects;
        trace.argmax_ids.resize(height * width, 0);
        self.counts.clear();
        self.counts.resize(height.div_ceil(band) * 2 * objects, 0);

        self.workers.fill(|| Worker {
            scratch: sampler.scratch(band),
            best: vec![0.0; band * width],
            floor: vec![0.0; band],
        });
        let workers = &self.workers;
        let scores = &trace.total_scores;
        let bands =
            trace.argmax_ids.par_chunks_mut(band * width).zip(self.counts.par_chunks_mut(2 * objects));
        bands.enumerate().for_each(|(i, (ids, counts))| {
            let (won, own) = counts.split_at_mut(objects);
            workers.lend(|worker| assign_band(isa, sampler, head, scores, i * band, width, ids, own, worker));
            for &id in ids.iter() {
                won[id as usize] += 1;
            }
        });

        for areas in [&mut trace.mask_area, &mut trace.original_area] {
            areas.clear();
            areas.resize(objects, 0);
        }
        for band in self.counts.chunks_exact(2 * objects) {
            for k in 0..objects {
                trace.mask_area[k] += band[k];
                trace.original_area[k] += band[objects + k];
            }
        }
    }

    /// Turns won pixels into segments.
    fn merge(&mut self, result: &mut PanopticResult) {
        let PanopticConfig { proposals, things, stuff, score_threshold, overlap_threshold } = self.config;
        let trace = &result.trace;
        result.segments.clear();
        self.value_of.clear();
        self.value_of.resize(proposals + stuff, (things + stuff) as u32);
        for &query in &trace.sorted_inds {
            let query = query as usize;
            let (score, label) = (trace.total_scores[query], trace.total_labels[query]);
            let is_thing = (label as usize) < things;
            if is_thing && f64::from(score) < score_threshold {
                continue;
            }
            let (won, own) = (trace.mask_area[query], trace.original_area[query]);
            // Doubles, as upstream's Python numbers are: a share of exactly 0.6 has to pass.
            if won == 0 || own == 0 || f64::from(won) / f64::from(own) < overlap_threshold {
                continue;
            }
            let id = label + INSTANCE_OFFSET * result.segments.len() as u32;
            self.value_of[query] = id;
            let (category, area) = (label as usize, won as usize);
            result.segments.push(PanopticSegment { id, category, is_thing, score, area, query });
        }
        let value_of = &self.value_of;
        result.map.resize(trace.argmax_ids.len(), 0);
        let rows = result.map.par_chunks_mut(1 << 16).zip(trace.argmax_ids.par_chunks(1 << 16));
        rows.for_each(|(map, ids)| {
            for (value, &id) in map.iter_mut().zip(ids) {
                *value = value_of[id as usize];
            }
        });
    }
}

/// Score, class and rank of every object.
fn classify(config: &PanopticConfig, head: &HeadOutput, trace: &mut PanopticTrace) {
    trace.total_scores.clear();
    trace.total_labels.clear();
    for (object, row) in head.class_logits.chunks_exact(head.classes).enumerate() {
        let mut label = 0;
        if object < config.proposals {
            for class in 1..config.things {
                if row[class] > row[label] {
                    label = class;
                }
            }
        } else {
            label = config.things + object - config.proposals;
        }
        // Without thing classes a proposal is nothing and wins no pixel.
        let nothing = object < config.proposals && config.things == 0;
        trace.total_scores.push(if nothing { 0.0 } else { row[label] });
        trace.total_labels.push(label as u32);
    }
    rank(trace);
}

/// Orders the objects by descending score; equal scores: lower index first.
fn rank(trace: &mut PanopticTrace) {
    let scores = &trace.total_scores;
    trace.sorted_inds.clear();
    trace.sorted_inds.extend(0..scores.len() as u32);
    trace
        .sorted_inds
        .sort_unstable_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then_with(|| a.cmp(&b)));
}

/// Arg-max over all objects for the output rows of one band that starts at row `from`; `own` receives B.
#[allow(clippy::too_many_arguments)]
fn assign_band(
    isa: Isa,
    sampler: &MaskSampler,
    head: &HeadOutput,
    scores: &[f32],
    from: usize,
    width: usize,
    ids: &mut [u32],
    own: &mut [u32],
    worker: &mut Worker,
) {
    let Worker { scratch, best, floor } = worker;
    let rows = ids.len() / width;
    // Score 0 everywhere belongs to object 0, as the first of equals.
    ids.fill(0);
    best[..ids.len()].fill(0.0);
    floor[..rows].fill(0.0);
    for object in 0..head.objects {
        let score = scores[object];
        // A row matters if it may hold a mask pixel or a new best. Blending can exceed its largest input by a
        // few units in the last place only, which the margins cover; NaN peaks count as mattering.
        let matters = |peak: f32, floor: f32| !(peak < 0.4999 && peak * score * 1.0001 < floor);
        sampler.prepare(isa, head.mask(object), from, from + rows, scratch, |y, peak| {
            matters(peak, floor[y - from])
        });
        for y in 0..rows {
            if !matters(sampler.peak(from + y, scratch), floor[y]) {
                continue;
            }
            let (sources, taps) = sampler.row(from + y, scratch);
            let best = &mut best[y * width..][..width];
            let ids = &mut ids[y * width..][..width];
            let run = if sampler.two_taps() { contend2 } else { contend4 };
            let (inside, lowest) = run(isa, &sources, taps, score, object as u32, best, ids);
            own[object] += inside;
            floor[y] = lowest;
        }
    }
}

/// Lets one object contend for a row; returns its mask pixels and the smallest of the row's best values.
#[inline(always)]
fn contend(
    rows: &[&[f32]; 4],
    score: f32,
    object: u32,
    best: &mut [f32],
    ids: &mut [u32],
    value: impl Fn(&[&[f32]; 4], usize) -> f32,
) -> (u32, f32) {
    let n = best.len();
    let rows = rows.map(|row| &row[..n]);
    let ids = &mut ids[..n];
    let (mut inside, mut lowest) = (0, u32::MAX);
    for x in 0..n {
        let mask = value(&rows, x);
        inside += u32::from(mask >= 0.5);
        let contender = score * mask;
        let wins = contender > best[x];
        let now = if wins { contender } else { best[x] };
        best[x] = now;
        ids[x] = if wins { object } else { ids[x] };
        // Of floats that are not negative the bits are in the same order.
        lowest = lowest.min(now.to_bits());
    }
    (inside, f32::from_bits(lowest))
}

simd! {
    fn contend2(isa, rows: &[&[f32]; 4], taps: &RowTaps, score: f32, object: u32, best: &mut [f32], ids: &mut [u32])
        -> (u32, f32) {
        contend(rows, score, object, best, ids, |rows, x| blend2(rows, taps, x))
    }
}

simd! {
    fn contend4(isa, rows: &[&[f32]; 4], taps: &RowTaps, score: f32, object: u32, best: &mut [f32], ids: &mut [u32])
        -> (u32, f32) {
        contend(rows, score, object, best, ids, |rows, x| blend4(rows, taps, x))
    }
}
