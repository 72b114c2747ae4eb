//! Instances of a two-stage detector: boxes that it found, each with its score and class, and a bit mask that
//! is pasted into the photo.

#[cfg(feature = "cuda")]
pub mod gpu;

use super::HostOutputs;
use crate::error::Result;
use crate::image::instance::{Detections, InstanceResult, Paster};
use crate::image::preprocess::Geometry;
use crate::model::rcnn::{DET_BOXES, DET_COUNT, DET_LABELS, DET_SCORES, MASK_PROBS};

/// The detections of photos of one size.
#[derive(Default)]
pub(super) struct Boxes {
    min_score: f32,
    paster: Paster,
}

impl Boxes {
    /// Of those that score at least so much.
    pub fn new(min_score: f32) -> Boxes {
        Boxes { min_score, ..Boxes::default() }
    }

    /// The least score of those that count.
    #[cfg(feature = "cuda")]
    pub fn min_score(&self) -> f32 {
        self.min_score
    }

    /// See [`Postprocess::reads`](super::Postprocess::reads).
    pub fn reads(&self) -> &'static [&'static str] {
        &[DET_BOXES, DET_SCORES, DET_LABELS, DET_COUNT, MASK_PROBS]
    }

    /// See [`Postprocess::on_host`](super::Postprocess::on_host).
    pub fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut InstanceResult,
    ) -> Result<()> {
        let [boxes, scores, labels, count] = [DET_BOXES, DET_SCORES, DET_LABELS, DET_COUNT]
            .map(|name| network(name).map(|(_, values)| values));
        let (shape, probabilities) = network(MASK_PROBS)?;
        let (boxes, scores) = (boxes?, scores?);
        // Indices come as the bytes of floats.
        let (labels, count) =
            (bytemuck::cast_slice::<f32, i32>(labels?), bytemuck::cast_slice::<f32, i32>(count?));
        let count = count.first().map_or(0, |&count| count.max(0) as usize).min(scores.len());
        let cells = shape[1] * shape[2];
        let detections = Detections {
            boxes: &boxes[..4 * count],
            scores: &scores[..count],
            labels: &labels[..count],
            mask_size: (shape[1], shape[2]),
            probabilities: &probabilities[..cells * count],
        };
        self.paster.run(&detections, geometry, self.min_score, found)
    }
}
