//! Feature pyramid (Lin et al., 2017) as K-Net uses it: no norm, no activation, no extra level.

use super::layers::{Conv, conv_bias};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{Binary, Resize};

/// Levels P2..P5 of `channels` each, from C2..C5: lateral 1x1, top-down nearest upsampling, output 3x3.
pub(super) fn fpn(b: &mut Builder, levels: &[ValueId], channels: usize) -> Result<Vec<ValueId>> {
    let mut merged: Vec<ValueId> = Vec::new();
    for (i, &level) in levels.iter().enumerate() {
        let prefix = format!("neck.lateral_convs.{i}.conv");
        merged.push(conv_bias(b, &prefix, level, Conv::new(channels, 1, 1))?);
    }
    for i in (1..levels.len()).rev() {
        let below = b.shape(merged[i - 1]);
        let size = [below[1], below[2]];
        let resize = Resize { mode: ResizeMode::Nearest, size, step: None };
        let upsampled = b.node(&format!("neck.upsample.{}", i - 1), resize, &[merged[i]])?;
        let add = Binary { kind: BinaryKind::Add };
        merged[i - 1] = b.node(&format!("neck.merged.{}", i - 1), add, &[merged[i - 1], upsampled])?;
    }
    let output = |(i, &x): (usize, &ValueId)| {
        conv_bias(b, &format!("neck.fpn_convs.{i}.conv"), x, Conv::new(channels, 3, 1))
    };
    merged.iter().enumerate().map(output).collect()
}
