//! Layers as the official checkpoints name them.

use crate::error::Result;
use crate::graph::{Builder, Layout, ValueId};
use crate::ops::activation::Activation;
use crate::ops::dropout::DropKind;
use crate::ops::epilogue::Epilogue;
use crate::ops::{
    Activate, BatchNorm, Conv2d, DeformConv2d, Dropout, Fill, GroupNorm, LayerNorm, Linear, MatMul,
    PixelShuffle, Reshape, Role,
};

/// Epsilon of the norms in ResNet, neck and heads.
const EPS: f32 = 1e-5;

/// Geometry of a square convolution.
#[derive(Clone, Copy)]
pub(in crate::model) struct Conv {
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Step between taps.
    pub dilation: usize,
}

impl Conv {
    pub fn new(c_out: usize, kernel: usize, stride: usize) -> Self {
        Conv { c_out, kernel, stride, dilation: 1 }
    }

    /// With taps so far apart.
    pub fn dilated(self, dilation: usize) -> Self {
        Conv { dilation, ..self }
    }
}

/// `{prefix}.weight` without bias, "same" padding.
pub(in crate::model) fn conv(b: &mut Builder, prefix: &str, x: ValueId, conv: Conv) -> Result<ValueId> {
    let (op, weight) = conv_parts(b, prefix, x, conv)?;
    b.node(prefix, op, &[x, weight])
}

/// `{prefix}.weight` and `{prefix}.bias`, "same" padding.
pub(in crate::model) fn conv_bias(b: &mut Builder, prefix: &str, x: ValueId, conv: Conv) -> Result<ValueId> {
    conv_bias_for(b, prefix, prefix, x, conv, Role::Map)
}

/// As [`conv_bias`], as the value `name` of this role: a layer may be applied to several maps.
pub(in crate::model) fn conv_bias_for(
    b: &mut Builder,
    name: &str,
    prefix: &str,
    x: ValueId,
    conv: Conv,
    role: Role,
) -> Result<ValueId> {
    let (op, weight) = conv_parts(b, prefix, x, conv)?;
    let bias = b.param(&format!("{prefix}.bias"), &[conv.c_out], Layout::Plain)?;
    b.node(name, Conv2d { epilogue: Epilogue::BIAS, role, ..op }, &[x, weight, bias])
}

/// A transposed convolution whose stride is its kernel's size, so that every pixel becomes a block by itself,
/// and ReLU: `{prefix}.weight` `[C, C_out, factor, factor]` and `{prefix}.bias`. It is a 1x1 convolution to
/// all pixels of the block, which are then put in their places.
pub(in crate::model) fn conv_transpose_relu(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    c_out: usize,
    factor: usize,
) -> Result<ValueId> {
    let (map, block) = (b.shape(x), factor * factor);
    let weight =
        b.param(&format!("{prefix}.weight"), &[map[3], c_out, factor, factor], Layout::Transposed)?;
    let bias = b.param(&format!("{prefix}.bias"), &[c_out], Layout::Plain)?;
    // The bias of a channel for each pixel of the block: a product with ones, which a plan computes once.
    let column =
        b.node(&format!("{prefix}.bias.column"), Reshape { shape: [1, c_out, 1].into() }, &[bias])?;
    let ones = b.node(&format!("{prefix}.ones"), Fill { shape: [1, 1, block].into(), value: 1.0 }, &[])?;
    let each = b.node(&format!("{prefix}.bias.each"), MatMul::new(Role::Weight), &[column, ones])?;
    let bias = b.node(&format!("{prefix}.bias.row"), Reshape { shape: [c_out * block].into() }, &[each])?;
    let conv = Conv2d { epilogue: Epilogue::BIAS, ..Conv2d::new() };
    let blocks = b.node(&format!("{prefix}.blocks"), conv, &[x, weight, bias])?;
    let blocks = relu(b, &format!("{prefix}.blocks"), blocks)?;
    let size = [map[1] * factor, map[2] * factor];
    b.node(prefix, PixelShuffle { factor, size }, &[blocks])
}

/// `{prefix}.weight` `[C_out, C]` and `{prefix}.bias` of a linear layer, over every pixel of a map.
pub(in crate::model) fn linear_map(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    c_out: usize,
) -> Result<ValueId> {
    let weight = pointwise_weight(b, prefix, x, c_out)?;
    let bias = b.param(&format!("{prefix}.bias"), &[c_out], Layout::Plain)?;
    b.node(prefix, Conv2d { epilogue: Epilogue::BIAS, ..Conv2d::new() }, &[x, weight, bias])
}

/// As [`linear_map`], of a layer without bias.
pub(in crate::model) fn linear_map_no_bias(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    c_out: usize,
) -> Result<ValueId> {
    let weight = pointwise_weight(b, prefix, x, c_out)?;
    b.node(prefix, Conv2d::new(), &[x, weight])
}

fn pointwise_weight(b: &mut Builder, prefix: &str, x: ValueId, c_out: usize) -> Result<ValueId> {
    let c_in = b.shape(x).last();
    b.param(&format!("{prefix}.weight"), &[c_out, c_in], Layout::Pointwise)
}

/// mmcv's `DeformConv2dPack`: `{prefix}.weight` without bias, and the convolution of the same geometry that
/// gives its offsets, `{prefix}.conv_offset.weight` and `.bias`.
fn deform_conv(b: &mut Builder, prefix: &str, x: ValueId, geometry: Conv) -> Result<ValueId> {
    let (conv, weight) = conv_parts(b, prefix, x, geometry)?;
    let offsets = Conv { c_out: 2 * geometry.kernel * geometry.kernel, ..geometry };
    let offset = {
        let prefix = format!("{prefix}.conv_offset");
        conv_bias_for(b, &prefix, &prefix, x, offsets, Role::Exact)?
    };
    b.node(prefix, DeformConv2d { conv }, &[x, weight, offset])
}

fn conv_parts(b: &mut Builder, prefix: &str, x: ValueId, conv: Conv) -> Result<(Conv2d, ValueId)> {
    let c_in = b.shape(x).last();
    let shape = [conv.c_out, c_in, conv.kernel, conv.kernel];
    let weight = b.param(&format!("{prefix}.weight"), &shape, Layout::Filter)?;
    let op = Conv2d::with(conv.stride, conv.dilation * (conv.kernel / 2));
    Ok((Conv2d { dilation: [conv.dilation; 2], ..op }, weight))
}

/// A batch norm: its parameters are `{prefix}.weight`, `.bias`, `.running_mean` and `.running_var`.
#[derive(Clone, Copy)]
pub(in crate::model) struct Norm<'a> {
    pub prefix: &'a str,
    /// Added to the variance.
    pub eps: f32,
}

/// A frozen batch norm over the channels of a map.
pub(in crate::model) fn norm(b: &mut Builder, norm: Norm, x: ValueId) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let mut inputs = vec![x];
    for field in ["weight", "bias", "running_mean", "running_var"] {
        inputs.push(b.param(&format!("{}.{field}", norm.prefix), &[channels], Layout::Plain)?);
    }
    b.node(norm.prefix, BatchNorm { eps: norm.eps }, &inputs)
}

/// A convolution without bias and its frozen batch norm, of separate names as in ResNet.
pub(in crate::model) fn conv_bn(
    b: &mut Builder,
    conv_prefix: &str,
    norm_prefix: &str,
    x: ValueId,
    geometry: Conv,
) -> Result<ValueId> {
    let y = conv(b, conv_prefix, x, geometry)?;
    norm(b, Norm { prefix: norm_prefix, eps: EPS }, y)
}

/// mmcv's `ConvModule` with batch norm and ReLU: `{prefix}.conv.weight`, `{prefix}.bn.*`.
pub(in crate::model) fn conv_bn_relu(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    geometry: Conv,
) -> Result<ValueId> {
    let y = conv_bn(b, &format!("{prefix}.conv"), &format!("{prefix}.bn"), x, geometry)?;
    relu(b, prefix, y)
}

/// As [`conv_bn`] of a deformable convolution.
pub(in crate::model) fn deform_conv_bn(
    b: &mut Builder,
    conv_prefix: &str,
    norm_prefix: &str,
    x: ValueId,
    geometry: Conv,
) -> Result<ValueId> {
    let y = deform_conv(b, conv_prefix, x, geometry)?;
    norm(b, Norm { prefix: norm_prefix, eps: EPS }, y)
}

/// mmcv's `ConvModule` with group norm and ReLU: `{prefix}.conv.weight`, `{prefix}.gn.*`.
pub(in crate::model) fn conv_gn_relu(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    geometry: Conv,
    groups: usize,
) -> Result<ValueId> {
    let y = conv(b, &format!("{prefix}.conv"), x, geometry)?;
    gn_relu(b, prefix, prefix, y, groups)
}

/// As [`conv_gn_relu`], as values of this name: a layer may be applied to several maps.
pub(in crate::model) fn conv_gn_relu_for(
    b: &mut Builder,
    name: &str,
    prefix: &str,
    x: ValueId,
    geometry: Conv,
    groups: usize,
) -> Result<ValueId> {
    let (op, weight) = conv_parts(b, &format!("{prefix}.conv"), x, geometry)?;
    let y = b.node(&format!("{name}.conv"), op, &[x, weight])?;
    gn_relu(b, name, prefix, y, groups)
}

/// Group norm, `{prefix}.gn.*`, and ReLU.
pub(in crate::model) fn gn_relu(
    b: &mut Builder,
    name: &str,
    prefix: &str,
    x: ValueId,
    groups: usize,
) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let [weight, bias] = affine(b, &format!("{prefix}.gn"), channels)?;
    let norm = GroupNorm { groups, eps: EPS, activation: None };
    let y = b.node(&format!("{name}.gn"), norm, &[x, weight, bias])?;
    relu(b, name, y)
}

/// `{prefix}.weight` `[n, K]` and `{prefix}.bias`.
pub(in crate::model) fn linear(b: &mut Builder, prefix: &str, x: ValueId, n: usize) -> Result<ValueId> {
    linear_named(b, prefix, &format!("{prefix}.weight"), &format!("{prefix}.bias"), x, n)
}

/// As [`linear`], over the features of a map, `[.., T C]`, which upstream reads channel by channel.
pub(in crate::model) fn linear_of_map(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    n: usize,
    channels: usize,
) -> Result<ValueId> {
    let layout = Layout::Flattened(channels);
    let weight = b.param(&format!("{prefix}.weight"), &[n, b.shape(x).last()], layout)?;
    let bias = b.param(&format!("{prefix}.bias"), &[n], Layout::Plain)?;
    b.node(prefix, Linear { epilogue: Epilogue::BIAS }, &[x, weight, bias])
}

/// A linear layer whose parameters do not follow the usual names.
pub(in crate::model) fn linear_named(
    b: &mut Builder,
    name: &str,
    weight: &str,
    bias: &str,
    x: ValueId,
    n: usize,
) -> Result<ValueId> {
    let k = b.shape(x).last();
    let weight = b.param(weight, &[n, k], Layout::Plain)?;
    let bias = b.param(bias, &[n], Layout::Plain)?;
    b.node(name, Linear { epilogue: Epilogue::BIAS }, &[x, weight, bias])
}

/// `{prefix}.weight` alone.
pub(in crate::model) fn linear_no_bias(
    b: &mut Builder,
    prefix: &str,
    x: ValueId,
    n: usize,
) -> Result<ValueId> {
    let k = b.shape(x).last();
    let weight = b.param(&format!("{prefix}.weight"), &[n, k], Layout::Plain)?;
    b.node(prefix, Linear::default(), &[x, weight])
}

/// `{prefix}.weight`, `{prefix}.bias` over the last axis.
pub(in crate::model) fn layer_norm(b: &mut Builder, prefix: &str, x: ValueId) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let affine = affine(b, prefix, channels)?;
    b.node(prefix, LayerNorm { eps: EPS, activation: None }, &[x, affine[0], affine[1]])
}

/// ReLU.
pub(in crate::model) fn relu(b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
    activation(b, &format!("{name}.relu"), Activation::Relu, x)
}

/// Any pointwise activation, as the value `name`.
pub(in crate::model) fn activation(
    b: &mut Builder,
    name: &str,
    activation: Activation,
    x: ValueId,
) -> Result<ValueId> {
    b.node(name, Activate { activation }, &[x])
}

/// Where training drops channels or paths.
pub(in crate::model) fn dropout(b: &mut Builder, name: &str, kind: DropKind, x: ValueId) -> Result<ValueId> {
    b.node(&format!("{name}.dropout"), Dropout { kind }, &[x])
}

/// Sigmoid.
pub(in crate::model) fn sigmoid(b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
    activation(b, &format!("{name}.sigmoid"), Activation::Sigmoid, x)
}

fn affine(b: &mut Builder, prefix: &str, channels: usize) -> Result<[ValueId; 2]> {
    let weight = b.param(&format!("{prefix}.weight"), &[channels], Layout::Plain)?;
    let bias = b.param(&format!("{prefix}.bias"), &[channels], Layout::Plain)?;
    Ok([weight, bias])
}
