//! One kernel update stage (K-Net, section 3.2, equations 3 to 6; upstream `KernelUpdateHead`).

use super::{Head, Objects};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::Config;
use crate::model::layers::{
    Conv, conv_bias, layer_norm, linear, linear_named, linear_no_bias, relu, sigmoid,
};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{Attention, Binary, MaskConv, MaskPool, Reshape, Resize, Slice};

/// Everything a stage computes.
#[derive(Clone, Copy, Debug)]
pub struct StageOutput {
    /// Refined kernels (after the feed-forward norm) and masks, with the stage's untransformed features.
    pub objects: Objects,
    /// Class logits, `[B, N, classes]`.
    pub cls_score: ValueId,
    /// Features after the stage's own 1x1 convolution, `[B, H, W, C]`.
    pub feat_transform: ValueId,
    /// Grouped features, `[B, N, C]`.
    pub x_feat: ValueId,
    /// Result of the kernel updator, `[B, N, C]`.
    pub obj_feat_updator: ValueId,
    /// Kernels after self-attention and its norm, `[B, N, C]`.
    pub obj_feat_attn: ValueId,
}

/// The stage whose parameters start with `prefix`.
///
/// 1. Pool: every kernel sums the (transformed) features of the pixels its mask owns.
/// 2. Update: the [`kernel_updator`] mixes kernel and grouped feature by two learned gates.
/// 3. Interact: self-attention over the kernels of an image, then a feed-forward network.
/// 4. Predict: class logits, and new mask logits as the product of a mask kernel with the features.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the parts do not fit together.
pub fn kernel_update_head(
    b: &mut Builder,
    config: &Config,
    prefix: &str,
    objects: Objects,
) -> Result<StageOutput> {
    let channels = config.neck.channels;
    let name = |part: &str| format!("{prefix}.{part}");
    let x = conv_bias(b, &name("feat_transform.conv"), objects.features, Conv::new(channels, 1, 1))?;
    let masks = match_size(b, &name("resized_masks"), objects.masks, x)?;
    let x_feat = b.node(&name("x_feat"), MaskPool, &[masks, x])?;
    let updated = kernel_updator(b, &name("kernel_update_conv"), x_feat, objects.kernels)?;

    let Interaction { attended, kernels } = interact(b, prefix, updated, &config.head)?;
    let cls = branch(b, &name("cls_fcs"), kernels)?;
    let cls_score = linear(b, &name("fc_cls"), cls, config.classes.count())?;
    let mask = branch(b, &name("mask_fcs"), kernels)?;
    let mask_kernels = linear(b, &name("fc_mask"), mask, channels)?;
    let masks = b.node(&name("mask_preds"), MaskConv { bias: false }, &[mask_kernels, x])?;
    Ok(StageOutput {
        objects: Objects { features: objects.features, kernels, masks },
        cls_score,
        feat_transform: x,
        x_feat,
        obj_feat_updator: updated,
        obj_feat_attn: attended,
    })
}

/// What the kernels of an image make of each other, `[B, N, C]` each.
#[derive(Clone, Copy)]
pub(in crate::model) struct Interaction {
    /// After self-attention and its norm.
    pub attended: ValueId,
    /// After the feed-forward network and its norm.
    pub kernels: ValueId,
}

/// Self-attention over the kernels of an image, then a feed-forward network, each added to what comes in and
/// normalised.
pub(in crate::model) fn interact(
    b: &mut Builder,
    prefix: &str,
    updated: ValueId,
    head: &Head,
) -> Result<Interaction> {
    let channels = b.shape(updated).last();
    let name = |part: &str| format!("{prefix}.{part}");
    let add = Binary { kind: BinaryKind::Add };
    let attention = name("attention.attn");
    let in_proj = |field: &str| format!("{attention}.in_proj_{field}");
    let qkv = linear_named(b, &in_proj("qkv"), &in_proj("weight"), &in_proj("bias"), updated, 3 * channels)?;
    let mixed = b.node(&attention, Attention { heads: head.heads }, &[qkv])?;
    let mixed = linear(b, &format!("{attention}.out_proj"), mixed, channels)?;
    let mixed = b.node(&name("attention"), add, &[mixed, updated])?;
    let attended = layer_norm(b, &name("attention_norm"), mixed)?;

    let hidden = linear(b, &name("ffn.layers.0.0"), attended, head.feedforward_channels)?;
    let hidden = relu(b, &name("ffn.layers.0.1"), hidden)?;
    let hidden = linear(b, &name("ffn.layers.1"), hidden, channels)?;
    let hidden = b.node(&name("ffn"), add, &[hidden, attended])?;
    let kernels = layer_norm(b, &name("ffn_norm"), hidden)?;
    Ok(Interaction { attended, kernels })
}

/// A fully connected layer without bias, a norm and ReLU: what comes before a prediction.
pub(in crate::model) fn branch(b: &mut Builder, prefix: &str, kernels: ValueId) -> Result<ValueId> {
    let channels = b.shape(kernels).last();
    let y = linear_no_bias(b, &format!("{prefix}.0"), kernels, channels)?;
    let y = layer_norm(b, &format!("{prefix}.1"), y)?;
    relu(b, &format!("{prefix}.2"), y)
}

/// The gated kernel update (upstream `KernelUpdator`), per object:
///
/// `result = ReLU(LN(W (update_gate * param_out + input_gate * input_out)))`, where the grouped feature gives
/// `[param_in | param_out]`, the kernel gives `[input_in | input_out]`, and both gates are a sigmoid of a
/// norm of a linear function of `param_in * input_in`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the parts do not fit together.
pub fn kernel_updator(b: &mut Builder, prefix: &str, x_feat: ValueId, kernels: ValueId) -> Result<ValueId> {
    let channels = b.shape(kernels).last();
    let name = |part: &str| format!("{prefix}.{part}");
    let add = Binary { kind: BinaryKind::Add };
    let mul = Binary { kind: BinaryKind::Mul };
    let halves = |b: &mut Builder, layer: &str, x: ValueId| {
        let both = linear(b, &name(layer), x, 2 * channels)?;
        let axis = b.shape(both).rank() - 1;
        let mut half = |part: &str, start| {
            b.node(&name(&format!("{layer}.{part}")), Slice { axis, start, len: channels }, &[both])
        };
        Ok((half("in", 0)?, half("out", channels)?))
    };
    let (param_in, param_out) = halves(b, "dynamic_layer", x_feat)?;
    let (input_in, input_out) = halves(b, "input_layer", kernels)?;
    // Kernels that all images of a batch share have a first axis of 1: they come second.
    let gate = b.node(&name("gate"), mul, &[param_in, input_in])?;
    let gated = |b: &mut Builder, layer: &str, norm: &str, value_norm: &str, value: ValueId| {
        let g = linear(b, &name(layer), gate, channels)?;
        let g = layer_norm(b, &name(norm), g)?;
        let g = sigmoid(b, &name(norm), g)?;
        let value = layer_norm(b, &name(value_norm), value)?;
        b.node(&name(&format!("{layer}.applied")), mul, &[g, value])
    };
    let from_input = gated(b, "input_gate", "input_norm_in", "input_norm_out", input_out)?;
    let from_param = gated(b, "update_gate", "norm_in", "norm_out", param_out)?;
    let mixed = b.node(&name("mixed"), add, &[from_param, from_input])?;
    let y = linear(b, &name("fc_layer"), mixed, channels)?;
    let y = layer_norm(b, &name("fc_norm"), y)?;
    relu(b, &name("fc_norm"), y)
}

/// Masks `[B, N, h, w]` at the size of the features `[B, H, W, C]`: resized bilinearly if they differ.
pub(in crate::model) fn match_size(
    b: &mut Builder,
    name: &str,
    masks: ValueId,
    x: ValueId,
) -> Result<ValueId> {
    let (from, to) = (b.shape(masks), b.shape(x));
    if from.rank() != 4 || to.rank() != 4 || (from[2] == to[1] && from[3] == to[2]) {
        return Ok(masks);
    }
    let planes = b.node(
        &format!("{name}.planes"),
        Reshape { shape: [from[0] * from[1], from[2], from[3], 1].into() },
        &[masks],
    )?;
    let mode = ResizeMode::Bilinear { align_corners: false };
    let resized = b.node(name, Resize { mode, size: [to[1], to[2]], step: None }, &[planes])?;
    b.node(&format!("{name}.masks"), Reshape { shape: [from[0], from[1], to[1], to[2]].into() }, &[resized])
}
