//! One kernel update stage of a semantic model (upstream `KernelUpdateHead` of `knet/seg`).

use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::Config;
use crate::model::head::{Objects, branch, interact, kernel_updator, match_size};
use crate::model::layers::{Conv, conv_bias, linear};
use crate::ops::{MaskConv, Reshape, SoftMaskPool};

/// Everything a stage computes.
#[derive(Clone, Copy, Debug)]
pub struct SemanticStageOutput {
    /// Refined kernels (after the feed-forward norm) and class logits, with the stage's untransformed
    /// features.
    pub objects: Objects,
    /// Features after the stage's own 1x1 convolution, `[B, H, W, C]`.
    pub feat_transform: ValueId,
    /// Gathered features, `[B, N, C]`.
    pub x_feat: ValueId,
    /// Result of the kernel updator, `[B, N C / D, D]` for an updator of D channels.
    pub updated_rows: ValueId,
    /// Kernels after self-attention and its norm, `[B, N, C]`.
    pub attended: ValueId,
    /// What the features are multiplied with, `[B, N, C]`.
    pub mask_kernels: ValueId,
}

/// The stage whose parameters start with `prefix`: as that of a detector
/// ([`kernel_update_head`](crate::model::kernel_update_head)) but for how features are gathered, softly over
/// the classes of a pixel, and that there is no class branch: kernel n is that of class n. Kernels wider than
/// the updator, of `updator_channels`, go through it in pieces: rows n C / D to n C / D + C / D - 1 are the
/// channels of kernel n.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the parts do not fit together.
pub fn semantic_update_head(
    b: &mut Builder,
    config: &Config,
    updator_channels: usize,
    prefix: &str,
    objects: Objects,
) -> Result<SemanticStageOutput> {
    let name = |part: &str| format!("{prefix}.{part}");
    let channels = b.shape(objects.features).last();
    let x = conv_bias(b, &name("feat_transform.conv"), objects.features, Conv::new(channels, 1, 1))?;
    let masks = match_size(b, &name("resized_masks"), objects.masks, x)?;
    let x_feat = b.node(&name("x_feat"), SoftMaskPool, &[masks, x])?;
    let mut rows = |what: &str, value: ValueId, width: usize| {
        let shape = b.shape(value);
        let shape = [shape[0], shape[1] * shape[2] / width, width].into();
        b.node(&name(what), Reshape { shape }, &[value])
    };
    let gathered = rows("x_feat.rows", x_feat, updator_channels)?;
    let kernels = rows("kernels.rows", objects.kernels, updator_channels)?;
    let updated_rows = kernel_updator(b, &name("kernel_update_conv"), gathered, kernels)?;
    let shape = b.shape(x_feat);
    let updated = b.node(&name("kernel_update_conv.kernels"), Reshape { shape }, &[updated_rows])?;
    let interaction = interact(b, prefix, updated, &config.head)?;
    let mask = branch(b, &name("mask_fcs"), interaction.kernels)?;
    let mask_kernels = linear(b, &name("fc_mask"), mask, channels)?;
    let masks = b.node(&name("mask_preds"), MaskConv { bias: false }, &[mask_kernels, x])?;
    Ok(SemanticStageOutput {
        objects: Objects { features: objects.features, kernels: interaction.kernels, masks },
        feat_transform: x,
        x_feat,
        updated_rows,
        attended: interaction.attended,
        mask_kernels,
    })
}
