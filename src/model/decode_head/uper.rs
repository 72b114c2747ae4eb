//! UPerNet (Xiao et al., 2018), as mmseg's `UPerHead`: pyramid pooling of the coarsest level at the top of a
//! feature pyramid, all levels of which meet at the finest one's size.

use super::{Generate, psp};
use crate::error::Result;
use crate::graph::ValueId;
use crate::model::TapLayout;
use crate::model::layers::Conv;
use crate::ops::Binary;
use crate::ops::binary::BinaryKind;

/// Features at the size of the first of `levels`, C2 to C5.
pub(super) fn features(generate: &mut Generate<'_>, levels: &[ValueId]) -> Result<ValueId> {
    let channels = generate.channels;
    let last = levels.len() - 1;
    let mut merged = Vec::new();
    for (level, &x) in levels[..last].iter().enumerate() {
        let name = format!("lateral_convs.{level}");
        merged.push(generate.conv(&name, &name, x, Conv::new(channels, 1, 1))?);
    }
    merged.push(psp::features(generate, levels[last], "bottleneck")?);
    for level in (0..last).rev() {
        let above = generate.resized(&format!("topdown.{level}"), merged[level + 1], merged[level])?;
        let name = format!("{}.topdown.{level}", generate.prefix);
        let add = Binary { kind: BinaryKind::Add };
        merged[level] = generate.b.node(&name, add, &[merged[level], above])?;
        let tap = format!("{}.topdown.{level}", generate.tap);
        generate.taps.push(tap, merged[level], TapLayout::Features);
    }
    let mut outputs = Vec::new();
    for (level, &x) in merged.iter().enumerate() {
        let name = format!("fpn_convs.{level}");
        // The top has had its 3x3 convolution: the bottleneck of the pooling.
        let y = match level == last {
            true => x,
            false => generate.conv(&name, &name, x, Conv::new(channels, 3, 1))?,
        };
        outputs.push(generate.resized(&name, y, merged[0])?);
    }
    let all = generate.concat("fpn_outs", &outputs)?;
    generate.conv("fpn_bottleneck", "feats", all, Conv::new(channels, 3, 1))
}
