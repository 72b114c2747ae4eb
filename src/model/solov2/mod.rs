//! SOLOv2 (Wang et al., 2020), as mmdet has it: every cell of five grids says what is at its place and gives
//! the kernel of a mask, a 1x1 convolution over one map of features; masks of one class that overlap lower
//! each other's scores.
//!
//! All shapes are fixed. The kernels of so many best cells and classes become masks, where the official code
//! takes all above the threshold: with no more than those above it, both are the same.

mod mask_features;

use super::config::{in_range, is_share};
use super::evidence::Evidence;
use super::layers::{Conv, conv_bias_for, conv_gn_relu_for, sigmoid};
use super::rcnn::{DET_COUNT, DET_LABELS, DET_SCORES, coarsest};
use super::{Config, MASK_LOGITS, TapLayout, Taps};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::ops::resize::ResizeMode;
use crate::ops::{
    Concat, Coordinates, GatherRows, LocalMaxima, MaskConv, MatrixNms, Reshape, Resize, Role, TopK,
};
use serde::{Deserialize, Serialize};

/// Cells along a side of the grid of each level.
const GRIDS: [usize; 5] = [40, 36, 24, 16, 12];

/// Pixels that a mask of each level must exceed.
const LEAST_PIXELS: [usize; 5] = [8, 8, 16, 32, 32];

/// Groups of the norms.
const FEATURE_GROUPS: usize = 32;

/// Convolutions before what is said of a cell.
const CONVS: usize = 4;

/// Weights that no other detector has.
const KERNEL: &str = "mask_head.conv_kernel.weight";

/// What a SOLOv2 has in place of a K-Net's kernels and their rounds. The pyramid says how wide its features
/// are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Solov2 {
    /// Width of the convolutions over the grids.
    pub hidden_channels: usize,
    /// Width of the convolutions that make the map of features.
    pub feature_channels: usize,
    /// Width of that map, and length of a kernel.
    pub mask_channels: usize,
    /// Most kernels that become masks.
    pub candidates: usize,
    /// Scores of cells are above it.
    pub score_threshold: f32,
    /// What is left of a score must reach it.
    pub least_score: f32,
}

impl Default for Solov2 {
    /// As in the official one.
    fn default() -> Self {
        Solov2 {
            hidden_channels: 512,
            feature_channels: 128,
            mask_channels: 256,
            candidates: 500,
            score_threshold: 0.1,
            least_score: 0.05,
        }
    }
}

impl Solov2 {
    /// What the names of models start with.
    pub(super) const NAME: &'static str = "solov2";

    /// A sentence on a field that cannot be.
    pub(super) fn validate(&self) -> Result<(), String> {
        let widths = [
            ("hidden_channels", self.hidden_channels),
            ("feature_channels", self.feature_channels),
            ("mask_channels", self.mask_channels),
        ];
        in_range(widths)?;
        in_range([("candidates", self.candidates)])?;
        if let Some((field, width)) = widths.iter().find(|(_, width)| !width.is_multiple_of(FEATURE_GROUPS)) {
            return Err(format!("{field} is {width}, must be a multiple of {FEATURE_GROUPS}"));
        }
        is_share("score_threshold", self.score_threshold)?;
        is_share("least_score", self.least_score)
    }

    /// What tensors show of a SOLOv2, of the width of its pyramid, and of the number of its classes; `None`
    /// if it is none.
    pub(super) fn recognise(found: &Evidence<'_>) -> Option<(Solov2, usize, usize)> {
        let mask_channels = found.dim(KERNEL, 0)?;
        let hidden_channels = found.dim(KERNEL, 1)?;
        let features = "mask_head.mask_feature_head.convs_all_levels.0.conv0.conv.weight";
        let feature_channels = found.dim(features, 0)?;
        let classes = found.dim("mask_head.conv_cls.weight", 0)?;
        let channels = found.dim(features, 1)?;
        let solov2 = Solov2 { hidden_channels, feature_channels, mask_channels, ..Solov2::default() };
        Some((solov2, channels, classes))
    }

    /// First axes of tensors that a configuration claims: the tensor, what its rows are, and how many.
    pub(super) fn rows(&self, config: &Config) -> Vec<(String, &'static str, usize)> {
        vec![
            (KERNEL.to_string(), "mask channels", self.mask_channels),
            ("mask_head.conv_cls.weight".to_string(), "classes", config.classes.count()),
            ("mask_head.cls_convs.0.conv.weight".to_string(), "hidden channels", self.hidden_channels),
            ("neck.fpn_convs.0.conv.weight".to_string(), "channels", config.neck.channels),
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
        let classes = config.classes.count();
        let top = coarsest(b, pyramid[pyramid.len() - 1])?;
        taps.push(format!("fpn.P{}", pyramid.len() + 2), top, TapLayout::Features);
        let features = mask_features::build(self, b, pyramid)?;
        taps.push("mask_features", features, TapLayout::Features);
        let (scores, kernels) = self.cells(b, &[pyramid, &[top]].concat(), classes, taps)?;

        let shape = b.shape(scores);
        let candidates = self.candidates.min(shape[1]);
        let best = b.nodes("mask_head.best", TopK { k: candidates }, &[scores])?;
        let gather = GatherRows { share: classes };
        let kernels = b.node("mask_head.best.kernels", gather, &[kernels, best[1]])?;
        let masks = b.node("mask_head.masks", MaskConv { bias: false }, &[kernels, features])?;
        let keep = config.test.max_per_image.min(candidates);
        let suppression = MatrixNms {
            classes,
            least_pixels: GRIDS
                .into_iter()
                .zip(LEAST_PIXELS)
                .map(|(side, least)| (side * side, least))
                .collect(),
            score_threshold: self.score_threshold,
            sigma: 2.0,
            least_score: self.least_score,
            keep,
        };
        let found = b.nodes("mask_head.detections", suppression, &[masks, best[0], best[1]])?;
        b.output(DET_SCORES, found[0]);
        b.output(DET_LABELS, found[2]);
        b.output(DET_COUNT, found[3]);
        let shape = b.shape(masks);
        let planes = Reshape { shape: [shape[0], shape[1], shape[2] * shape[3]].into() };
        let planes = b.node("mask_head.masks.planes", planes, &[masks])?;
        let kept = b.node("mask_head.detections.planes", GatherRows { share: 1 }, &[planes, found[1]])?;
        let maps = Reshape { shape: [shape[0], keep, shape[2], shape[3]].into() };
        let kept = b.node("mask_head.detections.masks", maps, &[kept])?;
        b.output(MASK_LOGITS, kept);
        Ok(())
    }

    /// The scores of the cells of all grids `[B, cells classes]`, where no neighbour has a better one, and
    /// their kernels `[B, cells, C]`.
    fn cells(
        &self,
        b: &mut Builder,
        levels: &[ValueId],
        classes: usize,
        taps: &mut Taps,
    ) -> Result<(ValueId, ValueId)> {
        let (mut scores, mut kernels) = (Vec::new(), Vec::new());
        for (level, (&map, grid)) in levels.iter().zip(GRIDS).enumerate() {
            // The finest and the coarsest level come at the size of their neighbours.
            let like = b.shape(levels[level.clamp(1, levels.len() - 2)]);
            let map = match level == 0 || level + 1 == levels.len() {
                true => resized(b, &format!("mask_head.level.{level}"), map, [like[1], like[2]])?,
                false => map,
            };
            let cells = resized(b, &format!("mask_head.grid.{level}"), map, [grid; 2])?;
            let coordinates = Coordinates { height: like[1], width: like[2] };
            let coordinates = b.node(&format!("mask_head.coordinates.{level}"), coordinates, &[])?;
            let coordinates =
                resized(b, &format!("mask_head.grid.coordinates.{level}"), coordinates, [grid; 2])?;
            let placed = format!("mask_head.grid.placed.{level}");
            let placed = b.node(&placed, Concat { axis: 3 }, &[cells, coordinates])?;

            let cls = self.tower(b, "cls_convs", level, cells)?;
            let cls = self.said(b, "conv_cls", level, cls, classes, Role::Exact)?;
            taps.push(format!("cls.L{level}"), cls, TapLayout::Features);
            let score = sigmoid(b, &format!("mask_head.score.{level}"), cls)?;
            let score = b.node(&format!("mask_head.peaks.{level}"), LocalMaxima { size: 2 }, &[score])?;
            let batch = b.shape(score)[0];
            let row = Reshape { shape: [batch, grid * grid * classes].into() };
            scores.push(b.node(&format!("mask_head.scores.{level}"), row, &[score])?);

            let kernel = self.tower(b, "kernel_convs", level, placed)?;
            let kernel = self.said(b, "conv_kernel", level, kernel, self.mask_channels, Role::Rows)?;
            taps.push(format!("kernel.L{level}"), kernel, TapLayout::Features);
            let rows = Reshape { shape: [batch, grid * grid, self.mask_channels].into() };
            kernels.push(b.node(&format!("mask_head.kernels.{level}"), rows, &[kernel])?);
        }
        let scores = b.node("mask_head.scores", Concat { axis: 1 }, &scores)?;
        let kernels = b.node("mask_head.kernels", Concat { axis: 1 }, &kernels)?;
        Ok((scores, kernels))
    }

    fn tower(&self, b: &mut Builder, part: &str, level: usize, x: ValueId) -> Result<ValueId> {
        let conv = Conv::new(self.hidden_channels, 3, 1);
        (0..CONVS).try_fold(x, |x, layer| {
            let prefix = format!("mask_head.{part}.{layer}");
            conv_gn_relu_for(b, &format!("{prefix}.level.{level}"), &prefix, x, conv, FEATURE_GROUPS)
        })
    }

    fn said(
        &self,
        b: &mut Builder,
        part: &str,
        level: usize,
        x: ValueId,
        channels: usize,
        role: Role,
    ) -> Result<ValueId> {
        let prefix = format!("mask_head.{part}");
        conv_bias_for(b, &format!("{prefix}.level.{level}"), &prefix, x, Conv::new(channels, 3, 1), role)
    }
}

/// A map at another size, bilinearly between the centres of its pixels.
fn resized(b: &mut Builder, name: &str, x: ValueId, size: [usize; 2]) -> Result<ValueId> {
    let mode = ResizeMode::Bilinear { align_corners: false };
    b.node(name, Resize { mode, size, step: None }, &[x])
}

/// A map with two more channels, where its pixels are.
fn with_coordinates(b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
    let map = b.shape(x);
    let coordinates = Coordinates { height: map[1], width: map[2] };
    let coordinates = b.node(&format!("{name}.coordinates"), coordinates, &[])?;
    b.node(&format!("{name}.placed"), Concat { axis: 3 }, &[x, coordinates])
}
