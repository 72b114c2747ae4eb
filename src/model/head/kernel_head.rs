//! The kernel head: first masks, first object features (K-Net, section 3.2; upstream `ConvKernelHead`).

use super::Objects;
use super::semantic_fpn::semantic_fpn;
use crate::error::Result;
use crate::graph::{Builder, Layout, ValueId};
use crate::model::layers::{Conv, conv_gn_relu};
use crate::model::{Config, TapLayout, Taps};
use crate::ops::binary::BinaryKind;
use crate::ops::{Binary, Concat, MaskConv, MaskPool, Reshape, Slice};
use crate::tensor::Shape;

/// Features, instance (and stuff) kernels and masks that the update stages start from.
///
/// The initial feature of instance kernel n is the kernel itself plus the sum of the features over the
/// pixels where its mask logit is positive. For panoptic models the semantic maps and kernels of the stuff
/// classes are appended as they are.
pub(in crate::model) fn kernel_head(
    b: &mut Builder,
    config: &Config,
    pyramid: &[ValueId],
    taps: &mut Taps,
) -> Result<Objects> {
    let channels = config.neck.channels;
    let [loc, sem] = semantic_fpn(b, config, pyramid)?;
    taps.push("rpn.sfpn_out0_loc", loc, TapLayout::Features);
    taps.push("rpn.sfpn_out1_sem", sem, TapLayout::Features);
    let geometry = Conv::new(channels, 1, 1);
    let loc = conv_gn_relu(b, "rpn_head.loc_convs.0", loc, geometry, config.head.norm_groups)?;
    let sem = conv_gn_relu(b, "rpn_head.seg_convs.0", sem, geometry, config.head.norm_groups)?;
    taps.push("rpn.loc_feats", loc, TapLayout::Features);
    taps.push("rpn.semantic_feats", sem, TapLayout::Features);
    let add = Binary { kind: BinaryKind::Add };
    let features = b.node("rpn_head.x_feats", add, &[sem, loc])?;
    taps.push("rpn.x_feats", features, TapLayout::Features);

    let upstream = [config.head.proposals, channels, 1, 1];
    let init = b.param("rpn_head.init_kernels.weight", &upstream, Layout::Matrix)?;
    let init = b.node(
        "rpn_head.init_kernels",
        Reshape { shape: [1, config.head.proposals, channels].into() },
        &[init],
    )?;
    let mut masks = b.node("rpn_head.mask_preds", MaskConv { bias: false }, &[init, loc])?;
    let pooled = b.node("rpn_head.x_feat", MaskPool, &[masks, features])?;
    let mut kernels = b.node("rpn_head.proposal_feats", add, &[pooled, init])?;

    let classes = config.classes.count();
    let seg = SemanticKernels::new(b, classes, channels)?;
    let seg_preds = seg.maps(b, "rpn_head.seg_preds", sem, 0, classes)?;
    taps.push("rpn.seg_preds", seg_preds, TapLayout::Same);
    if config.classes.stuff > 0 {
        // Only the stuff maps are computed for inference: the full `seg_preds` is dead unless tapped.
        let (start, len) = (config.classes.things, config.classes.stuff);
        let stuff_masks = seg.maps(b, "rpn_head.stuff_masks", sem, start, len)?;
        masks = b.node("rpn_head.all_masks", Concat { axis: 1 }, &[masks, stuff_masks])?;
        let stuff_kernels = seg.kernels(b, "rpn_head.stuff_kernels", start, len)?;
        kernels = b.node("rpn_head.all_kernels", Concat { axis: 1 }, &[kernels, stuff_kernels])?;
    }
    taps.push("rpn.mask_preds", masks, TapLayout::Same);
    taps.push("rpn.proposal_feats", kernels, TapLayout::Objects);
    Ok(Objects { features, kernels, masks })
}

/// `rpn_head.conv_seg`: one kernel and one bias per class.
struct SemanticKernels {
    weight: ValueId,
    bias: ValueId,
    channels: usize,
}

impl SemanticKernels {
    fn new(b: &mut Builder, classes: usize, channels: usize) -> Result<Self> {
        let weight = b.param("rpn_head.conv_seg.weight", &[classes, channels, 1, 1], Layout::Matrix)?;
        let bias = b.param("rpn_head.conv_seg.bias", &[classes], Layout::Plain)?;
        Ok(SemanticKernels { weight, bias, channels })
    }

    /// Kernels of `len` classes from `start`, `[1, len, C]`.
    fn kernels(&self, b: &mut Builder, name: &str, start: usize, len: usize) -> Result<ValueId> {
        let rows = b.node(&format!("{name}.rows"), Slice { axis: 0, start, len }, &[self.weight])?;
        b.node(name, Reshape { shape: Shape::new(&[1, len, self.channels]) }, &[rows])
    }

    /// Semantic logits of `len` classes from `start`, planar: `[B, len, H, W]`.
    fn maps(&self, b: &mut Builder, name: &str, x: ValueId, start: usize, len: usize) -> Result<ValueId> {
        let kernels = self.kernels(b, &format!("{name}.kernels"), start, len)?;
        let bias = b.node(&format!("{name}.bias"), Slice { axis: 0, start, len }, &[self.bias])?;
        b.node(name, MaskConv { bias: true }, &[kernels, x, bias])
    }
}
