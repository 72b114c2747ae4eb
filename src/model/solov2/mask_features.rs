//! The map that kernels are applied to.

use super::{FEATURE_GROUPS, Solov2, resized, with_coordinates};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::layers::{Conv, conv_gn_relu};
use crate::ops::Binary;
use crate::ops::binary::BinaryKind;

/// What the names of its parameters start with.
const PREFIX: &str = "mask_head.mask_feature_head";

/// Features at stride 4 of P2..P5, the last with coordinates: each brought there by convolutions and
/// doublings, added, and a 1x1 convolution.
pub(super) fn build(solov2: &Solov2, b: &mut Builder, pyramid: &[ValueId]) -> Result<ValueId> {
    let hidden = solov2.feature_channels;
    let mut sum = None;
    for (level, &map) in pyramid.iter().enumerate() {
        let mut x = map;
        if level + 1 == pyramid.len() {
            x = with_coordinates(b, &format!("{PREFIX}.last"), x)?;
        }
        for step in 0..level.max(1) {
            let name = format!("{PREFIX}.convs_all_levels.{level}.conv{step}");
            x = conv_gn_relu(b, &name, x, Conv::new(hidden, 3, 1), FEATURE_GROUPS)?;
            if level > 0 {
                let shape = b.shape(x);
                x = resized(b, &format!("{name}.doubled"), x, [2 * shape[1], 2 * shape[2]])?;
            }
        }
        sum = Some(match sum {
            None => x,
            Some(sum) => {
                b.node(&format!("{PREFIX}.sum.{level}"), Binary { kind: BinaryKind::Add }, &[sum, x])?
            }
        });
    }
    let sum = sum.unwrap_or(pyramid[0]);
    let conv = Conv::new(solov2.mask_channels, 1, 1);
    conv_gn_relu(b, &format!("{PREFIX}.conv_pred"), sum, conv, FEATURE_GROUPS)
}
