//! CondInst (Tian et al., 2020), as mmdet 3 has it: an anchor-free detector of boxes, FCOS, that gives with
//! each box the parameters of a small network of its own, which finds the object's pixels in one narrow map.
//!
//! All shapes are fixed: there is room for so many candidates and detections, with a count of those there
//! are.

mod box_head;
mod mask_branch;

use super::config::{in_range, is_share};
use super::evidence::Evidence;
use super::layers::{Conv, conv_bias, relu};
use super::rcnn::{DET_BOXES, DET_COUNT, DET_LABELS, DET_SCORES, IMAGE_INFO};
use super::{Config, MASK_LOGITS, TapLayout, Taps};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::ops::{DistinctBoxes, DynamicMaskHead, GatherRows, ScaleBoxes, ValueType};
use serde::{Deserialize, Serialize};

/// Pixels between those of the levels P3..P7.
const STRIDES: [usize; 5] = [8, 16, 32, 64, 128];

/// Channels of the map that the mask heads read.
const MASK_CHANNELS: usize = 8;

/// Weights that no other detector has.
const CONTROLLER: &str = "bbox_head.controller.weight";

/// What a CondInst has in place of a K-Net's kernels and their rounds. The pyramid says how wide its features
/// and the head of boxes are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CondInst {
    /// Width of the convolutions that make the map of the mask heads.
    pub branch_channels: usize,
    /// Most pairs of a place and a class that are taken of each level.
    pub candidates: usize,
    /// Scores of pairs are above it.
    pub score_threshold: f32,
}

impl Default for CondInst {
    /// As in the official one.
    fn default() -> Self {
        CondInst { branch_channels: 128, candidates: 1000, score_threshold: 0.05 }
    }
}

impl CondInst {
    /// What the names of models start with.
    pub(super) const NAME: &'static str = "condinst";

    /// The first level of the backbone that its pyramid reads.
    pub(super) const FIRST_LEVEL: usize = 1;

    /// A sentence on a field that cannot be.
    pub(super) fn validate(&self, channels: usize) -> Result<(), String> {
        in_range([("branch_channels", self.branch_channels), ("candidates", self.candidates)])?;
        if !channels.is_multiple_of(box_head::GROUPS) {
            return Err(format!("{channels} channels are not a multiple of {}", box_head::GROUPS));
        }
        is_share("score_threshold", self.score_threshold)
    }

    /// What tensors show of a CondInst, of the width of its pyramid, and of the number of its classes; `None`
    /// if it is none.
    pub(super) fn recognise(found: &Evidence<'_>) -> Option<(CondInst, usize, usize)> {
        let channels = found.dim(CONTROLLER, 1)?;
        let branch_channels = found.dim(&format!("{}.conv_pred.weight", mask_branch::PREFIX), 1)?;
        let classes = found.dim("bbox_head.conv_cls.weight", 0)?;
        Some((CondInst { branch_channels, ..CondInst::default() }, channels, classes))
    }

    /// First axes of tensors that a configuration claims: the tensor, what its rows are, and how many.
    pub(super) fn rows(&self, config: &Config) -> Vec<(String, &'static str, usize)> {
        let branch = format!("{}.conv_branch.0.conv.weight", mask_branch::PREFIX);
        vec![
            ("bbox_head.conv_cls.weight".to_string(), "classes", config.classes.count()),
            (branch, "branch channels", self.branch_channels),
            ("neck.fpn_convs.0.conv.weight".to_string(), "channels", config.neck.channels),
        ]
    }

    /// The detections over a pyramid P3..P5, as outputs of the graph.
    pub(super) fn build(
        &self,
        config: &Config,
        b: &mut Builder,
        pyramid: &[ValueId],
        taps: &mut Taps,
    ) -> Result<()> {
        let batch = b.shape(pyramid[0])[0];
        let image = b.input(IMAGE_INFO, ValueType::exact([batch, 4]));
        let mut levels = pyramid.to_vec();
        for level in pyramid.len()..STRIDES.len() {
            let mut x = levels[level - 1];
            if level > pyramid.len() {
                x = relu(b, &format!("neck.above.{level}"), x)?;
            }
            let conv = Conv::new(config.neck.channels, 3, 2);
            levels.push(conv_bias(b, &format!("neck.fpn_convs.{level}.conv"), x, conv)?);
            taps.push(format!("fpn.P{}", level + 3), levels[level], TapLayout::Features);
        }
        let found = box_head::candidates(self, config, b, &levels, image, taps)?;
        let features = mask_branch::build(self, b, pyramid)?;
        taps.push("mask_features", features, TapLayout::Features);

        let boxes = b.node("bbox_head.boxes.photo", ScaleBoxes { to_photo: true }, &[found.boxes, image])?;
        let keep = config.test.max_per_image.min(b.shape(found.scores)[1]);
        let suppression = DistinctBoxes { iou_threshold: 0.6, keep };
        let kept = b.nodes("bbox_head.detections", suppression, &[boxes, found.scores, found.labels])?;
        let gather = |b: &mut Builder, what: &str, rows: ValueId| {
            b.node(&format!("bbox_head.detections.{what}"), GatherRows { share: 1 }, &[rows, kept[0]])
        };
        let boxes = gather(b, "boxes", boxes)?;
        let places = gather(b, "places", found.places)?;
        let parameters = gather(b, "parameters", found.parameters)?;
        let head = DynamicMaskHead { stride: STRIDES[0] };
        let masks = b.node("mask_head.masks", head, &[features, parameters, places, kept[3]])?;
        b.output(DET_BOXES, boxes);
        b.output(DET_SCORES, kept[1]);
        b.output(DET_LABELS, kept[2]);
        b.output(DET_COUNT, kept[3]);
        b.output(MASK_LOGITS, masks);
        Ok(())
    }
}
