//! The region proposal network (Ren et al., *Faster R-CNN*, 2015), over the levels of a pyramid.

use super::{Detections, Rcnn, STRIDE, coarsest};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::layers::{Conv, conv_bias_for, relu, sigmoid};
use crate::model::{TapLayout, Taps};
use crate::ops::non_max_suppression::{Groups, NonMaxSuppression};
use crate::ops::{Concat, DecodeAnchors, Reshape, Role, TopK};

/// Name of the weights that no other detector has.
pub(super) const FIRST: &str = "rpn_head.rpn_conv.weight";

/// Anchors of a pixel.
const ANCHORS: usize = 3;

/// The best boxes of all levels: of each the best anchors, moved, then those that do not overlap others of
/// their level.
pub(super) fn proposals(
    rcnn: &Rcnn,
    b: &mut Builder,
    pyramid: &[ValueId],
    image: ValueId,
    taps: &mut Taps,
) -> Result<Detections> {
    let top = coarsest(b, pyramid[pyramid.len() - 1])?;
    taps.push(format!("fpn.P{}", pyramid.len() + 2), top, TapLayout::Features);
    let (mut boxes, mut scores, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (level, &map) in pyramid.iter().chain([&top]).enumerate() {
        let name = |part: &str| format!("rpn_head.{part}.{level}");
        let layer = |b: &mut Builder, part: &str, x: ValueId, conv: Conv, role: Role| {
            conv_bias_for(b, &name(part), &format!("rpn_head.{part}"), x, conv, role)
        };
        let channels = b.shape(map)[3];
        let x = layer(b, "rpn_conv", map, Conv::new(channels, 3, 1), Role::Map)?;
        let x = relu(b, &name("rpn_conv"), x)?;
        let cls = layer(b, "rpn_cls", x, Conv::new(ANCHORS, 1, 1), Role::Exact)?;
        let reg = layer(b, "rpn_reg", x, Conv::new(4 * ANCHORS, 1, 1), Role::Exact)?;
        taps.push(format!("rpn.cls.L{level}"), cls, TapLayout::Features);
        taps.push(format!("rpn.reg.L{level}"), reg, TapLayout::Features);
        let score = sigmoid(b, &name("score"), cls)?;
        let shape = b.shape(score);
        let anchors = shape[1] * shape[2] * shape[3];
        let score = b.node(&name("scores"), Reshape { shape: [shape[0], anchors].into() }, &[score])?;
        let k = rcnn.proposals.min(anchors);
        let best = b.nodes(&name("best"), TopK { k }, &[score])?;
        let decode = DecodeAnchors { stride: STRIDE << level, scale: 8.0, ratios: [0.5, 1.0, 2.0] };
        boxes.push(b.node(&name("boxes"), decode, &[reg, best[1], image])?);
        scores.push(best[0]);
        counts.push(k);
    }
    let boxes = b.node("rpn_head.boxes", Concat { axis: 1 }, &boxes)?;
    let scores = b.node("rpn_head.scores", Concat { axis: 1 }, &scores)?;
    let suppression = NonMaxSuppression {
        iou_threshold: 0.7,
        // All but NaN: a score is a probability.
        score_threshold: -1.0,
        drop_empty: true,
        keep: rcnn.proposals.min(counts.iter().sum()),
        groups: Groups::Consecutive(counts),
        counted: false,
    };
    let found = Detections::of(&b.nodes("rpn_head.proposals", suppression, &[boxes, scores])?);
    taps.push("rpn.proposals", with_scores(b, &found)?, TapLayout::Rows);
    Ok(found)
}

/// Boxes and scores as `[B, N, 5]`.
fn with_scores(b: &mut Builder, found: &Detections) -> Result<ValueId> {
    let shape = b.shape(found.scores);
    let column = Reshape { shape: [shape[0], shape[1], 1].into() };
    let column = b.node("rpn_head.proposals.score", column, &[found.scores])?;
    b.node("rpn_head.proposals.scored", Concat { axis: 2 }, &[found.boxes, column])
}
