//! A mask head: convolutions over the features of a detection, at twice the size in the end.

use crate::error::Result;
use crate::graph::{Builder, Layout, ValueId};
use crate::model::layers::{Conv, conv_bias, conv_transpose_relu, relu};
use crate::ops::ClassConv;

/// Bins along a side of the features it reads; its masks have twice as many.
pub(super) const BINS: usize = 14;

/// Mask logits `[N, 28, 28]` of features `[N, 14, 14, C]` for their own classes alone: upstream's
/// `FCNMaskHead` computes those of all.
pub(super) fn build(
    b: &mut Builder,
    prefix: &str,
    features: ValueId,
    labels: ValueId,
    classes: usize,
) -> Result<ValueId> {
    let channels = b.shape(features)[3];
    let mut x = features;
    for layer in 0..4 {
        let name = format!("{prefix}.convs.{layer}.conv");
        let y = conv_bias(b, &name, x, Conv::new(channels, 3, 1))?;
        x = relu(b, &name, y)?;
    }
    let x = conv_transpose_relu(b, &format!("{prefix}.upsample"), x, channels, 2)?;
    let name = format!("{prefix}.conv_logits");
    let weight = b.param(&format!("{name}.weight"), &[classes, channels, 1, 1], Layout::Matrix)?;
    let bias = b.param(&format!("{name}.bias"), &[classes], Layout::Plain)?;
    b.node(&name, ClassConv, &[x, weight, bias, labels])
}
