//! A box head: two linear layers over the features of a box, then its class and how to move it.

use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::layers::{linear, linear_of_map, relu};
use crate::ops::Reshape;

/// Bins along a side of the features it reads.
pub(super) const BINS: usize = 7;

/// Upstream's `Shared2FCBBoxHead`.
pub(super) struct BoxHead<'a> {
    pub prefix: &'a str,
    pub hidden_channels: usize,
    /// Classes without the background.
    pub classes: usize,
    /// Boxes that one becomes: one for each class, or one.
    pub moved: usize,
}

impl BoxHead<'_> {
    /// Class logits `[B, N, classes + 1]`, the background's last, and deltas `[B, N, 4 moved]` of boxes
    /// `[B, N, 4]` with these features, `[B N, 7, 7, C]`.
    pub fn build(&self, b: &mut Builder, rois: ValueId, features: ValueId) -> Result<[ValueId; 2]> {
        let (boxes, map, prefix) = (b.shape(rois), b.shape(features), self.prefix);
        let flat = Reshape { shape: [boxes[0], boxes[1], map[1] * map[2] * map[3]].into() };
        let mut x = b.node(&format!("{prefix}.flat"), flat, &[features])?;
        for layer in 0..2 {
            let name = format!("{prefix}.shared_fcs.{layer}");
            x = match layer {
                0 => linear_of_map(b, &name, x, self.hidden_channels, map[3])?,
                _ => linear(b, &name, x, self.hidden_channels)?,
            };
            x = relu(b, &name, x)?;
        }
        let cls_score = linear(b, &format!("{prefix}.fc_cls"), x, self.classes + 1)?;
        let bbox_pred = linear(b, &format!("{prefix}.fc_reg"), x, 4 * self.moved)?;
        Ok([cls_score, bbox_pred])
    }
}
