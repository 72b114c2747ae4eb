//! Two-stage detectors: Mask R-CNN (He et al., 2017) and Cascade Mask R-CNN (Cai and Vasconcelos, 2019), as
//! mmdet has them. A region proposal network finds boxes, heads of boxes say what is in each and move it, and
//! heads of masks find the pixels of what is left.
//!
//! All shapes are fixed: there is room for so many proposals and detections, with a count of those there are;
//! the places after those hold boxes without area.

mod bbox_head;
mod mask_head;
mod rpn;

use super::config::{in_range, is_share};
use super::evidence::Evidence;
use super::layers::activation;
use super::{Config, TapLayout, Taps};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::ops::activation::Activation;
use crate::ops::max_pool2d::MaxPool2d;
use crate::ops::non_max_suppression::{Groups, NonMaxSuppression};
use crate::ops::{DecodeBoxes, Mean, Reshape, RoiAlign, Role, ScaleBoxes, Slice, Softmax, ValueType};
use bbox_head::BoxHead;
use serde::{Deserialize, Serialize};

/// Name of the second input: where the photo is in the network's input, as [`crate::ops::decode_boxes`] says
/// it.
pub const IMAGE_INFO: &str = "image_info";
/// Name of the boxes of the detections, best first, in pixels of the photo: `[B, N, 4]`.
pub const DET_BOXES: &str = "det_boxes";
/// Name of their scores, `[B, N]`.
pub const DET_SCORES: &str = "det_scores";
/// Name of their classes, `[B, N]`.
pub const DET_LABELS: &str = "det_labels";
/// Name of how many there are, `[B]`.
pub const DET_COUNT: &str = "det_count";
/// Name of the probabilities of their masks, `[B N, 28, 28]`.
pub const MASK_PROBS: &str = "mask_probs";

/// What the names of the parameters of its heads start with.
const HEADS: &str = "roi_head";

/// Most box heads in a row.
const MOST_STAGES: usize = 8;

/// Pixels between those of the finest level.
const STRIDE: usize = 4;

/// Boxes of up to twice this side are looked for in the finest level.
const FINEST: f32 = 56.0;

/// Units of what the box heads of a cascade say of boxes, from the first on; those after the third are as
/// that.
const STDS: [[f32; 4]; 3] = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]];

/// What a two-stage detector has in place of kernels and their rounds. The pyramid says how wide its features
/// are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rcnn {
    /// Box heads in a row, each with a mask head. One moves a box for each class by itself (Mask R-CNN);
    /// several, a cascade, move it for all classes at once.
    pub stages: usize,
    /// Most boxes that the region proposal network gives, and most that it takes of each level.
    pub proposals: usize,
    /// Width of the two layers of a box head.
    pub hidden_channels: usize,
    /// Detections score more.
    pub score_threshold: f32,
}

impl Default for Rcnn {
    /// As in the official Mask R-CNN.
    fn default() -> Self {
        Rcnn { stages: 1, proposals: 1000, hidden_channels: 1024, score_threshold: 0.05 }
    }
}

impl Rcnn {
    /// A sentence on a field that cannot be.
    pub(super) fn validate(&self) -> Result<(), String> {
        in_range([
            ("stages", self.stages),
            ("proposals", self.proposals),
            ("hidden_channels", self.hidden_channels),
        ])?;
        if self.stages > MOST_STAGES {
            return Err(format!("stages is {}, must be 1 to {MOST_STAGES}", self.stages));
        }
        is_share("score_threshold", self.score_threshold)
    }

    /// What the name of a model of so many stages starts with.
    pub(super) fn name(&self) -> &'static str {
        if self.stages == 1 { "mask_rcnn" } else { "cascade_mask_rcnn" }
    }

    /// The one that the name of a model starts with, and the rest of the name.
    pub(super) fn named(name: &str) -> Option<(Rcnn, &str)> {
        [1, 3].into_iter().find_map(|stages| {
            let rcnn = Rcnn { stages, ..Rcnn::default() };
            Some((rcnn, name.strip_prefix(rcnn.name())?.strip_prefix('_')?))
        })
    }

    /// What the names of the parameters of a stage's head start with: `bbox_head` or `mask_head`.
    fn prefix(&self, head: &str, stage: usize) -> String {
        if self.stages == 1 { format!("{HEADS}.{head}") } else { format!("{HEADS}.{head}.{stage}") }
    }

    /// What tensors show of a two-stage detector, of the width of its pyramid, and of the number of its
    /// classes; `None` if it is none.
    pub(super) fn recognise(found: &Evidence<'_>) -> Option<(Rcnn, usize, usize)> {
        let channels = found.dim(rpn::FIRST, 0)?;
        let classifier = |stage: usize| format!("{HEADS}.bbox_head.{stage}.fc_cls.weight");
        let cascade = (0..=MOST_STAGES).take_while(|&stage| found.has(&classifier(stage))).count();
        let rcnn = Rcnn { stages: cascade.max(1), ..Rcnn::default() };
        // A cascade of one stage has the names of a cascade, which this has no word for.
        let first = if cascade == 0 { format!("{HEADS}.bbox_head") } else { format!("{HEADS}.bbox_head.0") };
        let classes = found.dim(&format!("{first}.fc_cls.weight"), 0)?.checked_sub(1)?;
        let hidden_channels = found.dim(&format!("{first}.shared_fcs.0.weight"), 0)?;
        Some((Rcnn { hidden_channels, ..rcnn }, channels, classes))
    }

    /// First axes of tensors that a configuration claims: the tensor, what its rows are, and how many.
    pub(super) fn rows(&self, config: &Config) -> Vec<(String, &'static str, usize)> {
        let last = self.prefix("bbox_head", self.stages - 1);
        vec![
            (rpn::FIRST.to_string(), "channels", config.neck.channels),
            (format!("{last}.fc_cls.weight"), "classes and background", config.classes.count() + 1),
            (format!("{last}.shared_fcs.0.weight"), "hidden channels", self.hidden_channels),
        ]
    }

    /// The detections over a pyramid P2..P5, as outputs of the graph.
    pub(super) fn build(
        &self,
        config: &Config,
        b: &mut Builder,
        pyramid: &[ValueId],
        taps: &mut Taps,
    ) -> Result<()> {
        let batch = b.shape(pyramid[0])[0];
        let image = b.input(IMAGE_INFO, ValueType::exact([batch, 4]));
        let proposals = rpn::proposals(self, b, pyramid, image, taps)?;
        let found = self.detections(config, b, pyramid, image, proposals, taps)?;
        let probabilities = self.masks(config, b, pyramid, image, &found, taps)?;
        b.output(DET_BOXES, found.boxes);
        b.output(DET_SCORES, found.scores);
        b.output(DET_LABELS, found.labels);
        b.output(DET_COUNT, found.count);
        b.output(MASK_PROBS, probabilities);
        Ok(())
    }

    /// The best boxes after all box heads, whose class logits are averaged.
    fn detections(
        &self,
        config: &Config,
        b: &mut Builder,
        pyramid: &[ValueId],
        image: ValueId,
        proposals: Detections,
        taps: &mut Taps,
    ) -> Result<Detections> {
        let classes = config.classes.count();
        let align = RoiAlign { size: bbox_head::BINS, stride: STRIDE, finest: FINEST, role: Role::Rows };
        let (mut rois, mut logits) = (proposals.boxes, Vec::new());
        for stage in 0..self.stages {
            let prefix = self.prefix("bbox_head", stage);
            let moved = if self.stages == 1 { classes } else { 1 };
            let head = BoxHead { prefix: &prefix, hidden_channels: self.hidden_channels, classes, moved };
            let features = b.node(&format!("{prefix}.features"), align, &[pyramid, &[rois]].concat())?;
            let [cls_score, bbox_pred] = head.build(b, rois, features)?;
            taps.push(format!("stage{stage}.rois"), rois, TapLayout::Regions);
            taps.push(format!("stage{stage}.cls_score"), cls_score, TapLayout::Rows);
            taps.push(format!("stage{stage}.bbox_pred"), bbox_pred, TapLayout::Rows);
            logits.push(cls_score);
            let decode = DecodeBoxes { stds: STDS[stage.min(STDS.len() - 1)] };
            rois = b.node(&format!("{prefix}.boxes"), decode, &[rois, bbox_pred, image])?;
        }
        let logits = match logits[..] {
            [one] => one,
            _ => b.node(&format!("{HEADS}.cls_score"), Mean, &logits)?,
        };
        let scores = b.node(&format!("{HEADS}.scores"), Softmax { axis: 2 }, &[logits])?;
        // The last class is the background.
        let scores =
            b.node(&format!("{HEADS}.scores.things"), Slice { axis: 2, start: 0, len: classes }, &[scores])?;
        let shape = b.shape(scores);
        let candidates = shape[1] * classes;
        let scores = b.node(
            &format!("{HEADS}.scores.candidates"),
            Reshape { shape: [shape[0], candidates].into() },
            &[scores],
        )?;
        let boxes = b.node(&format!("{HEADS}.boxes.photo"), ScaleBoxes { to_photo: true }, &[rois, image])?;
        let suppression = NonMaxSuppression {
            iou_threshold: 0.5,
            score_threshold: self.score_threshold,
            drop_empty: false,
            groups: Groups::Interleaved(classes),
            counted: true,
            keep: config.test.max_per_image.min(candidates),
        };
        let found =
            b.nodes(&format!("{HEADS}.detections"), suppression, &[boxes, scores, proposals.count])?;
        Ok(Detections::of(&found))
    }

    /// Probabilities of the masks of detections, the mean of those of all mask heads.
    fn masks(
        &self,
        config: &Config,
        b: &mut Builder,
        pyramid: &[ValueId],
        image: ValueId,
        found: &Detections,
        taps: &mut Taps,
    ) -> Result<ValueId> {
        let scale = ScaleBoxes { to_photo: false };
        let boxes = b.node(&format!("{HEADS}.detections.boxes"), scale, &[found.boxes, image])?;
        let align = RoiAlign { size: mask_head::BINS, stride: STRIDE, finest: FINEST, role: Role::Map };
        let features = b.node(&format!("{HEADS}.mask.features"), align, &[pyramid, &[boxes]].concat())?;
        let maps = b.shape(features)[0];
        let labels = Reshape { shape: [maps].into() };
        let labels = b.node(&format!("{HEADS}.detections.classes"), labels, &[found.labels])?;
        let mut probabilities = Vec::new();
        for stage in 0..self.stages {
            let prefix = self.prefix("mask_head", stage);
            let logits = mask_head::build(b, &prefix, features, labels, config.classes.count())?;
            let name = format!("{prefix}.probabilities");
            probabilities.push(activation(b, &name, Activation::Sigmoid, logits)?);
        }
        let mean = match probabilities[..] {
            [one] => one,
            _ => b.node(&format!("{HEADS}.mask.probabilities"), Mean, &probabilities)?,
        };
        taps.push("final.mask_prob28", mean, TapLayout::Same);
        Ok(mean)
    }
}

/// Results of a [`NonMaxSuppression`].
struct Detections {
    boxes: ValueId,
    scores: ValueId,
    labels: ValueId,
    count: ValueId,
}

impl Detections {
    fn of(results: &[ValueId]) -> Detections {
        Detections { boxes: results[0], scores: results[1], labels: results[2], count: results[3] }
    }
}

/// The level above the pyramid: every other pixel of the last.
pub(super) fn coarsest(b: &mut Builder, last: ValueId) -> Result<ValueId> {
    b.node("neck.coarsest", MaxPool2d { kernel: [1; 2], stride: [2; 2], padding: [0; 2] }, &[last])
}
