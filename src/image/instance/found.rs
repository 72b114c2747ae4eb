//! Masks of detections that a network has chosen by itself: each already has its score and class, and what is
//! left to do is to bring its logits to the size of the photo.

use super::super::mask_resize::{Alignment, MaskSampler};
use super::super::preprocess::Geometry;
use super::super::sampler_for;
use super::super::worker_pool::WorkerPool;
use super::{BAND, InstanceResult, Worker, fill_mask};
use crate::error::{Error, Result};
use crate::isa::Isa;

/// Detections of one photo, best first.
#[derive(Clone, Copy, Debug)]
pub struct FoundMasks<'a> {
    /// Scores, `[N]`.
    pub scores: &'a [f32],
    /// Classes, `[N]`.
    pub labels: &'a [i32],
    /// Left, top, right and bottom in pixels of the photo, `[N, 4]`; empty where none are looked for.
    pub boxes: &'a [f32],
    /// Height and width of a mask.
    pub mask_size: (usize, usize),
    /// Mask logits, planar `[N, height, width]`.
    pub logits: &'a [f32],
}

impl FoundMasks<'_> {
    fn check(&self) -> Result<()> {
        let (count, pixels) = (self.scores.len(), self.mask_size.0 * self.mask_size.1);
        let sizes = [self.labels.len(), self.boxes.len(), self.logits.len()];
        if sizes[0] == count && [0, 4 * count].contains(&sizes[1]) && sizes[2] == count * pixels {
            return Ok(());
        }
        Err(Error::Shape {
            op: "postprocess",
            value: "detections".into(),
            reason: format!("labels, boxes and mask logits of {sizes:?} values are not {count} detections"),
        })
    }
}

/// Brings masks to the size of photos. Keeps its tables and memory, so that a call for the sizes of the
/// previous one allocates nothing.
#[derive(Debug, Default)]
pub struct MaskMaker {
    alignment: Alignment,
    sampler: Option<MaskSampler>,
    workers: WorkerPool<Worker>,
}

impl MaskMaker {
    /// One of masks whose pixels lie so.
    pub fn new(alignment: Alignment) -> MaskMaker {
        MaskMaker { alignment, ..MaskMaker::default() }
    }

    /// Replaces what `result` held by those detections that score at least `min_score`, reusing its memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if the detections do not fit each other or `geometry`; [`Error::Memory`] if there is
    /// too little for the masks.
    pub fn run(
        &mut self,
        found: &FoundMasks<'_>,
        geometry: &Geometry,
        min_score: f32,
        result: &mut InstanceResult,
    ) -> Result<()> {
        found.check()?;
        let isa = Isa::detect();
        let (size, pixels) = (geometry.original, found.mask_size.0 * found.mask_size.1);
        if sampler_for(&mut self.sampler, found.mask_size, geometry, self.alignment)? {
            self.workers.clear();
        }
        let sampler = self.sampler.as_ref().expect("was just made");
        result.take_detections((found.scores, found.labels, found.boxes), min_score, size)?;
        self.workers.fill(|| Worker { scratch: sampler.scratch(BAND), flags: vec![0; 8 * size.1] });
        let workers = &self.workers;
        result.draw(size, |index, mask| {
            let logits = &found.logits[index * pixels..][..pixels];
            workers.lend(|worker| fill_mask(isa, sampler, logits, mask, worker));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(labels: &[i32], logits: &[f32], min_score: f32) -> Result<InstanceResult> {
        let geometry = Geometry { original: (32, 32), resized: (32, 32), padded: (32, 32) };
        let scores = [0.9, 0.4];
        let masks = FoundMasks { scores: &scores, labels, boxes: &[], mask_size: (8, 8), logits };
        let mut result = InstanceResult::default();
        MaskMaker::default().run(&masks, &geometry, min_score, &mut result)?;
        Ok(result)
    }

    #[test]
    fn masks_are_those_of_the_logits_and_scores_below_the_least_are_left_out() {
        let logits: Vec<f32> = (0..128).map(|i| if i < 64 && i % 8 < 4 { 5.0 } else { -5.0 }).collect();
        let result = found(&[3, 1], &logits, 0.0).unwrap();
        let [left, none] = result.instances() else { panic!("two instances") };
        assert_eq!((left.label, left.area, left.bbox.width), (3, 32 * 16, 16));
        assert_eq!((none.label, none.area), (1, 0));
        assert_eq!(result.detector_box(left), None);
        assert_eq!(found(&[3, 1], &logits, 0.5).unwrap().instances().len(), 1);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        for (labels, logits) in [(&[3][..], 128), (&[3, 1], 127)] {
            let error = found(labels, &vec![0.0; logits], 0.0).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}
