//! The map that the mask heads read.

use super::{CondInst, MASK_CHANNELS};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::layers::{Conv, conv_bias, conv_bn_relu};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{Binary, Resize};

/// What the names of its parameters start with.
pub(super) const PREFIX: &str = "mask_head.mask_feature_head";

/// Convolutions over the sum.
const CONVS: usize = 4;

/// Features at stride 8 of P3..P5: each through a convolution and brought to the size of the first, added,
/// more convolutions, and few channels of that.
pub(super) fn build(condinst: &CondInst, b: &mut Builder, pyramid: &[ValueId]) -> Result<ValueId> {
    let conv = Conv::new(condinst.branch_channels, 3, 1);
    let mut sum = None;
    for (level, &map) in pyramid.iter().enumerate() {
        let name = format!("{PREFIX}.convs_all_levels.{level}.conv{level}");
        let x = conv_bn_relu(b, &name, map, conv)?;
        sum = Some(match sum {
            None => x,
            Some(sum) => {
                let first = b.shape(sum);
                let resize = Resize { mode: ResizeMode::Blocks, size: [first[1], first[2]], step: None };
                let x = b.node(&format!("{name}.enlarged"), resize, &[x])?;
                b.node(&format!("{PREFIX}.sum.{level}"), Binary { kind: BinaryKind::Add }, &[sum, x])?
            }
        });
    }
    let mut x = sum.unwrap_or(pyramid[0]);
    for layer in 0..CONVS {
        x = conv_bn_relu(b, &format!("{PREFIX}.conv_branch.{layer}"), x, conv)?;
    }
    conv_bias(b, &format!("{PREFIX}.conv_pred"), x, Conv::new(MASK_CHANNELS, 1, 1))
}
