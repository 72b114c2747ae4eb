//! Instance results, and how they are made of what a K-Net says: the best (mask, class) pairs and their bit
//! masks at the size of the photo. Those of a two-stage detector are made in `paste`, those of one that
//! chooses its masks itself in `found`.
//!
//! As upstream: the sigmoids of all class logits `[N, C]` are ranked together, the first `max_per_image` are
//! kept (equal scores: lower index first), index `i` means mask `i / C` with label `i % C`. There is no
//! suppression, so a mask may appear under several labels; it is evaluated once. A pixel belongs to a mask if
//! its twice resized probability exceeds 0.5.

mod filter;
mod found;
mod paste;

pub(crate) use filter::FilterMemory;
pub use filter::InstanceFilter;
pub use found::{FoundMasks, MaskMaker};
pub use paste::{Detections, Paster};

use rayon::prelude::*;
use std::ops::Range;

use super::bitmask::{BitMask, PixelBox};
pub use super::mask_resize::Alignment;
use super::mask_resize::{MaskSampler, RowTaps, Scratch, blend2, blend4, sigmoid, sigmoid_scores};
use super::preprocess::Geometry;
use super::worker_pool::WorkerPool;
use super::{HeadOutput, sampler_for};
use crate::error::{Error, Result};
use crate::isa::{Isa, simd};
use crate::memory;

/// Output rows that are prepared together: a multiple of 8, so that bands start on a byte of the mask.
const BAND: usize = 64;

/// From this many bytes on, masks are compared with the memory there is.
const ASKED_FOR: usize = 256 << 20;

/// What counts as a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceConfig {
    /// Number of pairs kept (upstream `max_per_img`).
    pub max_per_image: usize,
    /// Pairs that score lower are dropped; upstream keeps all (0).
    pub min_score: f32,
    /// Only this many objects, the first, are looked at: all of an instance model, the things of a panoptic
    /// one.
    pub proposals: usize,
    /// Only this many classes, the first, are looked at.
    pub things: usize,
    /// A pair's score is multiplied by the quality of its mask: the mean probability of the pixels with a
    /// positive logit, at the resolution of the logits (0 for a mask without such a pixel). Upstream does
    /// not.
    pub mask_score: bool,
}

impl Default for InstanceConfig {
    fn default() -> Self {
        InstanceConfig {
            max_per_image: 100,
            min_score: 0.0,
            proposals: usize::MAX,
            things: usize::MAX,
            mask_score: false,
        }
    }
}

/// One (mask, class) pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Instance {
    /// Class index, `0..C`.
    pub label: usize,
    /// Sigmoid of the class logit, times the quality of the mask if [`InstanceConfig::mask_score`] asks for
    /// it.
    pub score: f32,
    /// Index of the object (instance kernel) that made the mask.
    pub mask_index: usize,
    /// Position of its mask in [`InstanceResult::masks`]; instances of the same object share it.
    pub slot: usize,
    /// Pixels of the mask.
    pub area: usize,
    /// The smallest box that holds every pixel of the mask, or those of its larger parts if
    /// [`InstanceFilter::box_parts`] is set.
    pub bbox: PixelBox,
}

/// Instances by descending score, and their masks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceResult {
    instances: Vec<Instance>,
    masks: Vec<MaskSlot>,
    used: usize,
    /// Of a detector that finds boxes, that of each object.
    boxes: Vec<[f32; 4]>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct MaskSlot {
    object: usize,
    mask: BitMask,
    area: usize,
    /// Outside of its rows the mask is empty, whatever becomes of the mask: so little of it has to be cleared
    /// for the next photo.
    bbox: PixelBox,
}

impl MaskSlot {
    /// Takes the slot for the mask of `object`, of `(height, width)` pixels: it holds none outside of the
    /// rows that it gives, and within them what an earlier result left.
    fn claim(&mut self, object: usize, (height, width): (usize, usize)) -> Range<usize> {
        self.object = object;
        if (self.mask.height(), self.mask.width()) != (height, width) {
            self.mask.reset(height, width);
            self.bbox = PixelBox::default();
        }
        self.bbox.y..self.bbox.y + self.bbox.height
    }
}

impl InstanceResult {
    /// The instances, best first.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// The mask of an instance of this result, at the size of the photo.
    ///
    /// # Panics
    /// If the instance is of another result with more masks.
    pub fn mask(&self, instance: &Instance) -> &BitMask {
        assert!(instance.slot < self.used, "an instance of another result");
        &self.masks[instance.slot].mask
    }

    /// The box that a two-stage detector found for an instance: left, top, right and bottom in pixels of the
    /// photo. [`Instance::bbox`] is that of the mask. `None` of a K-Net, which finds no boxes.
    pub fn detector_box(&self, instance: &Instance) -> Option<[f32; 4]> {
        self.boxes.get(instance.mask_index).copied()
    }

    /// Refuses masks of `size` (height, width) that there is no memory for. Those of an earlier result are
    /// used again.
    fn reserve(&self, count: usize, (height, width): (usize, usize)) -> Result<()> {
        let mask = (height * width).div_ceil(8);
        let kept = self.masks.iter().filter(|slot| slot.mask.bytes().len() >= mask).count();
        let needed = count.saturating_sub(kept).saturating_mul(mask);
        // To ask the system costs more than a few small masks do.
        if needed < ASKED_FOR {
            Ok(())
        } else {
            memory::check("a result with masks at the size of the photo", needed)
        }
    }

    /// Replaces what the result held by those detections, best first, that score at least `min_score`. Each
    /// has a mask of `size` (height, width), which [`InstanceResult::draw`] makes, and a box of four sides
    /// where there are some. Memory is used again.
    fn take_detections(
        &mut self,
        (scores, labels, boxes): (&[f32], &[i32], &[f32]),
        min_score: f32,
        size: (usize, usize),
    ) -> Result<()> {
        let count = scores.iter().take_while(|&&score| score >= min_score).count();
        self.reserve(count, size)?;
        self.instances.clear();
        self.boxes.clear();
        self.boxes.extend(boxes.as_chunks::<4>().0.iter().take(count));
        if self.masks.len() < count {
            self.masks.resize_with(count, MaskSlot::default);
        }
        self.used = count;
        for (slot, (&score, &label)) in scores.iter().zip(labels).take(count).enumerate() {
            let label = label.max(0) as usize;
            self.instances.push(Instance { label, score, mask_index: slot, slot, ..Instance::default() });
        }
        Ok(())
    }

    /// Makes the mask of every detection: `draw` is given its number and an empty mask.
    fn draw(&mut self, size: (usize, usize), draw: impl Fn(usize, &mut BitMask) + Sync) {
        self.masks[..self.used].par_iter_mut().enumerate().for_each(|(index, slot)| {
            let stale = slot.claim(index, size);
            slot.mask.clear_rows(stale);
            draw(index, &mut slot.mask);
            slot.area = slot.mask.area();
            slot.bbox = slot.mask.bbox();
        });
        self.measure();
    }

    /// Gives every instance the area and box of its mask.
    fn measure(&mut self) {
        for instance in &mut self.instances {
            let slot = &self.masks[instance.slot];
            (instance.area, instance.bbox) = (slot.area, slot.bbox);
        }
    }

    /// The distinct masks, in order of first use.
    pub fn masks(&self) -> impl ExactSizeIterator<Item = &BitMask> {
        self.masks[..self.used].iter().map(|slot| &slot.mask)
    }
}

/// Copies the mask at a place, laid out as [`BitMask::bytes`], over one that is empty outside of these rows.
pub type CopyMask<'a> = dyn Fn(usize, Range<usize>, &mut [u8]) -> Result<()> + Sync + 'a;

/// Instances that a GPU has ranked and whose masks it has made at the size of the photo.
pub struct Ranked<'a> {
    /// Number of classes C.
    pub classes: usize,
    /// Scores, best first.
    pub scores: &'a [f32],
    /// `object * C + class` of each.
    pub pairs: &'a [i32],
    /// Place of the mask of each; [`u32::MAX`]: it is dropped, as are all after it.
    pub places: &'a [u32],
    /// Of a detector that finds boxes, that of each instance; else none.
    pub boxes: &'a [[f32; 4]],
    /// Where the masks are.
    pub copy_mask: &'a CopyMask<'a>,
    /// Area and box of the mask at a place.
    pub extent: &'a (dyn Fn(usize) -> (usize, PixelBox) + Sync),
}

impl InstanceResult {
    /// Replaces what the result held by ranked instances, reusing its memory; masks are of `size` (height,
    /// width). Of each mask only rows that have pixels, or had some in the result before, are touched.
    ///
    /// # Errors
    /// [`Error::Shape`] if the parts do not fit each other; [`Error::Memory`] if there is too little for the
    /// masks.
    pub fn assemble(&mut self, ranked: &Ranked<'_>, size: (usize, usize)) -> Result<()> {
        self.instances.clear();
        self.boxes.clear();
        self.used = 0;
        for ((&score, &pair), &place) in ranked.scores.iter().zip(ranked.pairs).zip(ranked.places) {
            if place == u32::MAX {
                break;
            }
            let (slot, pair) = (place as usize, pair.max(0) as usize);
            if slot >= ranked.places.len() || slot > self.used || ranked.classes == 0 {
                let reason = format!("place {place} of {} after {}", ranked.places.len(), self.used);
                return Err(Error::Shape { op: "postprocess", value: "masks".into(), reason });
            }
            if slot == self.used {
                if self.masks.len() == self.used {
                    self.masks.push(MaskSlot::default());
                }
                self.masks[slot].object = pair / ranked.classes;
                self.used += 1;
            }
            let (mask_index, label) = (pair / ranked.classes, pair % ranked.classes);
            self.instances.push(Instance { label, score, mask_index, slot, ..Instance::default() });
        }
        self.boxes.extend_from_slice(ranked.boxes.get(..self.instances.len()).unwrap_or_default());
        self.reserve(self.used, size)?;
        self.masks[..self.used].par_iter_mut().enumerate().try_for_each(|(place, slot)| {
            let stale = slot.claim(slot.object, size);
            (ranked.copy_mask)(place, stale, slot.mask.bytes_mut())?;
            (slot.area, slot.bbox) = (ranked.extent)(place);
            Ok(())
        })?;
        self.measure();
        Ok(())
    }
}

/// Turns network outputs into instances. Keeps its tables and memory, so that a call for the sizes of the
/// previous one allocates nothing.
#[derive(Debug, Default)]
pub struct InstancePostprocessor {
    config: InstanceConfig,
    sampler: Option<MaskSampler>,
    scores: Vec<f32>,
    ranking: Vec<u32>,
    slot_of: Vec<u32>,
    workers: WorkerPool<Worker>,
}

/// Memory of one thread.
#[derive(Debug)]
struct Worker {
    scratch: Scratch,
    /// One byte a pixel for eight output rows.
    flags: Vec<u8>,
}

impl InstancePostprocessor {
    /// A postprocessor for one configuration.
    pub fn new(config: InstanceConfig) -> Self {
        InstancePostprocessor { config, ..Default::default() }
    }

    /// The configuration.
    pub fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// Makes the instances of one image, replacing what `result` held and reusing its memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if the outputs do not fit each other or `geometry`; [`Error::Memory`] if there is too
    /// little for the masks.
    pub fn run(&mut self, head: &HeadOutput, geometry: &Geometry, result: &mut InstanceResult) -> Result<()> {
        head.check()?;
        let isa = Isa::detect();
        if sampler_for(&mut self.sampler, head.mask_size, geometry, Alignment::Centres)? {
            self.workers.clear();
        }
        self.scores.resize(head.class_logits.len(), 0.0);
        sigmoid_scores(isa, head.class_logits, &mut self.scores);
        if self.config.mask_score && head.classes > 0 {
            // Each object's score is a sum over its own pixels in a fixed order, so threads change no bit.
            self.scores.par_chunks_mut(head.classes).enumerate().for_each(|(object, scores)| {
                let quality = mask_quality(isa, head.mask(object));
                scores.iter_mut().for_each(|score| *score *= quality);
            });
        }
        self.select(head.objects, head.classes, geometry, result)?;

        let width = geometry.original.1;
        let sampler = self.sampler.as_ref().expect("was just made");
        self.workers.fill(|| Worker { scratch: sampler.scratch(BAND), flags: vec![0; 8 * width] });
        let workers = &self.workers;
        result.masks[..result.used].par_iter_mut().for_each(|slot| {
            workers.lend(|worker| fill_mask(isa, sampler, head.mask(slot.object), &mut slot.mask, worker));
            slot.area = slot.mask.area();
            slot.bbox = slot.mask.bbox();
        });
        result.measure();
        Ok(())
    }

    /// Ranks the scores and gives every pair that is kept its place in the result, and every mask one of its
    /// own.
    fn select(
        &mut self,
        objects: usize,
        classes: usize,
        geometry: &Geometry,
        result: &mut InstanceResult,
    ) -> Result<()> {
        rank(&self.scores, classes, self.config, &mut self.ranking);
        self.slot_of.clear();
        self.slot_of.resize(objects, u32::MAX);
        result.reserve(self.ranking.len().min(objects), geometry.original)?;
        result.instances.clear();
        result.boxes.clear();
        result.used = 0;
        for &i in &self.ranking {
            let (object, label) = (i as usize / classes, i as usize % classes);
            if self.slot_of[object] == u32::MAX {
                if result.masks.len() == result.used {
                    result.masks.push(MaskSlot::default());
                }
                let slot = &mut result.masks[result.used];
                let stale = slot.claim(object, geometry.original);
                slot.mask.clear_rows(stale);
                self.slot_of[object] = result.used as u32;
                result.used += 1;
            }
            result.instances.push(Instance {
                label,
                score: self.scores[i as usize],
                mask_index: object,
                slot: self.slot_of[object] as usize,
                ..Instance::default()
            });
        }
        Ok(())
    }
}

simd! {
    /// Mean of `sigmoid(x)` over the logits `x > 0`; 0 if there are none. NaN logits are not counted.
    fn mask_quality(isa, logits: &[f32]) -> f32 {
        let (mut sums, mut counts) = ([0f32; 16], [0f32; 16]);
        let (mut sum, mut count) = (0f64, 0f64);
        // Rows of sixteen sums, emptied into doubles before they grow long enough to round coarsely.
        for block in logits.chunks(16 * 256) {
            for lanes in block.chunks(16) {
                for (lane, &x) in lanes.iter().enumerate() {
                    let inside = x > 0.0;
                    sums[lane] += if inside { sigmoid(x) } else { 0.0 };
                    counts[lane] += if inside { 1.0 } else { 0.0 };
                }
            }
            sum += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
            count += counts.iter().map(|&c| f64::from(c)).sum::<f64>();
            (sums, counts) = ([0.0; 16], [0.0; 16]);
        }
        if count > 0.0 { (sum / count) as f32 } else { 0.0 }
    }
}

/// Leaves in `ranking` the indices of the scores to keep, best first.
fn rank(scores: &[f32], classes: usize, config: InstanceConfig, ranking: &mut Vec<u32>) {
    let best_first =
        |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then_with(|| a.cmp(b));
    ranking.clear();
    let allowed = |&i: &u32| {
        let (object, class) = (i as usize / classes, i as usize % classes);
        object < config.proposals && class < config.things
    };
    ranking.extend((0..scores.len() as u32).filter(allowed));
    if config.max_per_image == 0 {
        ranking.clear();
    } else if ranking.len() > config.max_per_image {
        ranking.select_nth_unstable_by(config.max_per_image - 1, best_first);
        ranking.truncate(config.max_per_image);
    }
    ranking.sort_unstable_by(best_first);
    let kept = ranking.partition_point(|&i| scores[i as usize] >= config.min_score);
    ranking.truncate(kept);
}

fn fill_mask(isa: Isa, sampler: &MaskSampler, logits: &[f32], mask: &mut BitMask, worker: &mut Worker) {
    let (height, width) = (mask.height(), mask.width());
    let Worker { scratch, flags } = worker;
    // A blend of probabilities up to 0.5 is at most 0.5, in float32 too: two-tap weights add up to 1 at most,
    // after rounding. NaN peaks fail the test and are looked at.
    let crosses = |peak: f32| {
        !matches!(peak.partial_cmp(&0.5), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal))
    };
    for from in (0..height).step_by(BAND) {
        let to = (from + BAND).min(height);
        sampler.prepare(isa, logits, from, to, scratch, |_, peak| crosses(peak));
        for group in (from..to).step_by(8) {
            let rows = group..(group + 8).min(to);
            let count = rows.len() * width;
            if !rows.clone().any(|y| crosses(sampler.peak(y, scratch))) {
                continue; // the mask is empty
            }
            for (y, out) in rows.zip(flags.chunks_exact_mut(width)) {
                if !crosses(sampler.peak(y, scratch)) {
                    out.fill(0);
                    continue;
                }
                let (sources, taps) = sampler.row(y, scratch);
                if sampler.two_taps() {
                    threshold2(isa, &sources, taps, out);
                } else {
                    threshold4(isa, &sources, taps, out);
                }
            }
            let padded = count.next_multiple_of(8);
            flags[count..padded].fill(0);
            pack(isa, &flags[..padded], &mut mask.bytes_mut()[group * width / 8..][..padded / 8]);
        }
    }
}

#[inline(always)]
fn threshold(rows: &[&[f32]; 4], out: &mut [u8], value: impl Fn(&[&[f32]; 4], usize) -> f32) {
    let n = out.len();
    let rows = rows.map(|row| &row[..n]);
    for x in 0..n {
        out[x] = u8::from(value(&rows, x) > 0.5);
    }
}

simd! {
    fn threshold2(isa, rows: &[&[f32]; 4], taps: &RowTaps, out: &mut [u8]) {
        threshold(rows, out, |rows, x| blend2(rows, taps, x));
    }
}

simd! {
    fn threshold4(isa, rows: &[&[f32]; 4], taps: &RowTaps, out: &mut [u8]) {
        threshold(rows, out, |rows, x| blend4(rows, taps, x));
    }
}

simd! {
    /// Eight 0/1 bytes to one, the first in the top bit: the product moves byte `i` to bit `63 - i` without
    /// carries.
    fn pack(isa, flags: &[u8], out: &mut [u8]) {
        for (out, eight) in out.iter_mut().zip(flags.as_chunks::<8>().0) {
            *out = (u64::from_le_bytes(*eight).wrapping_mul(0x8040_2010_0804_0201) >> 56) as u8;
        }
    }
}
