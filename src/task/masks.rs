//! Instances of a one-stage detector: masks that it has chosen, each with its score and class, and logits at
//! a fixed stride that are brought to the size of the photo.

use super::HostOutputs;
use crate::error::Result;
use crate::image::instance::{Alignment, FoundMasks, InstanceResult, MaskMaker};
use crate::image::preprocess::Geometry;
use crate::model::MASK_LOGITS;
use crate::model::rcnn::{DET_BOXES, DET_COUNT, DET_LABELS, DET_SCORES};

/// The masks of photos of one size.
pub(super) struct Masks {
    min_score: f32,
    /// Whether each has a box, too.
    boxed: bool,
    maker: MaskMaker,
}

impl Masks {
    /// Of a SOLOv2, those that score at least so much.
    pub fn of_solov2(min_score: f32) -> Masks {
        Masks { min_score, boxed: false, maker: MaskMaker::new(Alignment::Centres) }
    }

    /// Of a CondInst, which finds boxes, too.
    pub fn of_condinst(min_score: f32) -> Masks {
        Masks { min_score, boxed: true, maker: MaskMaker::new(Alignment::Pixels) }
    }

    /// See [`Postprocess::reads`](super::Postprocess::reads).
    pub fn reads(&self) -> &'static [&'static str] {
        match self.boxed {
            true => &[DET_BOXES, DET_SCORES, DET_LABELS, DET_COUNT, MASK_LOGITS],
            false => &[DET_SCORES, DET_LABELS, DET_COUNT, MASK_LOGITS],
        }
    }

    /// See [`Postprocess::on_host`](super::Postprocess::on_host).
    pub fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut InstanceResult,
    ) -> Result<()> {
        let [(_, scores), (_, labels), (_, count)] =
            [network(DET_SCORES)?, network(DET_LABELS)?, network(DET_COUNT)?];
        let (shape, logits) = network(MASK_LOGITS)?;
        // Indices come as the bytes of floats.
        let (labels, count) =
            (bytemuck::cast_slice::<f32, i32>(labels), bytemuck::cast_slice::<f32, i32>(count));
        let count = count.first().map_or(0, |&count| count.max(0) as usize).min(scores.len());
        let boxes = if self.boxed { &network(DET_BOXES)?.1[..4 * count] } else { &[] };
        let masks = FoundMasks {
            scores: &scores[..count],
            labels: &labels[..count],
            boxes,
            mask_size: (shape[2], shape[3]),
            logits: &logits[..count * shape[2] * shape[3]],
        };
        self.maker.run(&masks, geometry, self.min_score, found)
    }
}
