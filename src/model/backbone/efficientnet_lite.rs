//! EfficientNet-Lite (Tan and Le, 2019, without squeeze-excite and with ReLU6; the Lite variants of Google's
//! TPU models): inverted bottlenecks of an expanding 1x1, a depthwise 3x3 or 5x5 and a projecting 1x1
//! convolution.
//!
//! Parameters are named as in the `state_dict` of the Python package `efficientnet_lite_pytorch`, after
//! `backbone.`. Padding is TensorFlow's "same" for the size of the map at hand. (The package fixes it for its
//! own image size, 224 or 260, which may differ by a pixel on maps of other sizes.)

use super::Part;
use crate::error::{Error, Result};
use crate::graph::{Builder, Graph, Layout, ValueId};
use crate::model::evidence::Evidence;
use crate::model::layers::{Norm, activation, linear, norm};
use crate::model::{IMAGE, Normalization};
use crate::ops::activation::Activation;
use crate::ops::binary::BinaryKind;
use crate::ops::{Binary, Conv2d, GlobalAvgPool, ValueType};
use serde::{Deserialize, Serialize};

/// Prefix of all parameters.
const PREFIX: &str = "backbone";
/// Epsilon of every batch norm.
const EPS: f32 = 1e-3;
/// Channels after the stem, in every variant.
const STEM: usize = 32;
/// Channels of the classifier's last map, in every variant.
const HEAD: usize = 1280;
/// Channel counts are rounded to multiples of this.
const DIVISOR: usize = 8;

/// An EfficientNet-Lite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNetLite {
    /// 0 or 2.
    pub variant: usize,
    /// Stride of the coarsest level: 32, or 16 or 8 where the later stages keep the map's size and dilate
    /// their filters instead, as semantic heads over the last level want it. The weights are the same.
    #[serde(default = "plain_stride", skip_serializing_if = "is_plain_stride")]
    pub output_stride: usize,
}

/// Stride of the last level where nothing else is said.
const STRIDE: usize = 32;

fn plain_stride() -> usize {
    STRIDE
}
fn is_plain_stride(stride: &usize) -> bool {
    *stride == STRIDE
}

/// Repeated blocks of one width.
#[derive(Clone, Copy, Debug)]
struct Stage {
    blocks: usize,
    kernel: usize,
    /// Of the first block; the others have 1.
    stride: usize,
    /// Of the depthwise convolutions. In the first block of a stage that gave up its stride it is that of the
    /// stage before, whose pixels are so far apart.
    dilation: usize,
    /// Width of the depthwise convolution by that of the block's input.
    expansion: usize,
    c_out: usize,
}

/// The stages of Lite0.
const STAGES: [Stage; 7] = [
    Stage { blocks: 1, kernel: 3, stride: 1, dilation: 1, expansion: 1, c_out: 16 },
    Stage { blocks: 2, kernel: 3, stride: 2, dilation: 1, expansion: 6, c_out: 24 },
    Stage { blocks: 2, kernel: 5, stride: 2, dilation: 1, expansion: 6, c_out: 40 },
    Stage { blocks: 3, kernel: 3, stride: 2, dilation: 1, expansion: 6, c_out: 80 },
    Stage { blocks: 3, kernel: 5, stride: 1, dilation: 1, expansion: 6, c_out: 112 },
    Stage { blocks: 4, kernel: 5, stride: 2, dilation: 1, expansion: 6, c_out: 192 },
    Stage { blocks: 1, kernel: 3, stride: 1, dilation: 1, expansion: 6, c_out: 320 },
];

/// The stages: widths and depths of Lite0 times the variant's factors; the first and the last stage keep
/// their depth. Where the stride would pass the one asked for, dilation takes its place.
fn stages(EfficientNetLite { variant, output_stride }: EfficientNetLite) -> Result<[Stage; 7], String> {
    // In tenths, so that rounding is exact.
    let (width, depth) = match variant {
        0 => (10, 10),
        2 => (11, 12),
        _ => return Err(format!("EfficientNet-Lite variant {variant} is not 0 or 2")),
    };
    if ![8, 16, 32].contains(&output_stride) {
        return Err(format!("output stride {output_stride} of EfficientNet-Lite is not 8, 16 or 32"));
    }
    let mut stages = STAGES;
    // The stem's is 2.
    let mut stride = 2;
    for (i, stage) in stages.iter_mut().enumerate() {
        stage.c_out = scaled_channels(stage.c_out, width);
        if i > 0 && i + 1 < STAGES.len() {
            stage.blocks = (stage.blocks * depth).div_ceil(10);
        }
        stride *= stage.stride;
        stage.dilation = stride.div_ceil(output_stride);
        if stage.dilation > 1 {
            stage.stride = 1;
        }
    }
    Ok(stages)
}

/// `channels * tenths / 10` to the nearest multiple of [`DIVISOR`], but never more than a tenth below.
fn scaled_channels(channels: usize, tenths: usize) -> usize {
    let exact = channels * tenths;
    let rounded = ((exact + 10 * DIVISOR / 2) / (10 * DIVISOR) * DIVISOR).max(DIVISOR);
    if 100 * rounded < 9 * exact { rounded + DIVISOR } else { rounded }
}

impl Part for EfficientNetLite {
    const NORMALIZATION: Normalization = Normalization::SYMMETRIC;
    const SMALL: bool = true;
    /// `backbone._blocks`: all blocks, from level to level.
    const STRETCH: usize = 2;

    const CLASSIFIER: &'static [&'static str] = &["backbone._conv_head.", "backbone._bn1.", "backbone._fc."];

    fn name(&self) -> String {
        format!("efficientnet_lite{}", self.variant)
    }

    fn short_name(&self) -> String {
        let dilated =
            if self.output_stride < STRIDE { format!("-d{}", self.output_stride) } else { String::new() };
        format!("lite{}{dilated}", self.variant)
    }

    fn named(short: &str) -> Option<Self> {
        let (plain, output_stride) = match short.split_once("-d") {
            Some((plain, stride)) => (plain, stride.parse().ok().filter(|&stride| stride < STRIDE)?),
            None => (short, STRIDE),
        };
        let variant = plain.strip_prefix("lite")?.parse().ok()?;
        let part = EfficientNetLite { variant, output_stride };
        part.validate().is_ok().then_some(part)
    }

    fn validate(&self) -> Result<(), String> {
        stages(*self).map(|_| ())
    }

    fn strides(&self) -> [usize; 4] {
        [4, 8, 16, 32].map(|stride| stride.min(self.output_stride))
    }

    /// The last maps of each stride (24, 40, 112 and 320 channels in Lite0; 24, 48, 120 and 352 in Lite2),
    /// all of them results of a projection, which no activation follows.
    fn build(&self, b: &mut Builder, image: ValueId) -> Result<Vec<ValueId>> {
        let stem = Geometry { stride: 2, ..Geometry::new(STEM, 3) };
        let x = conv_norm(b, &format!("{PREFIX}._conv_stem"), &format!("{PREFIX}._bn0"), image, stem)?;
        let mut x = relu6(b, &format!("{PREFIX}._bn0"), x)?;
        let (mut levels, mut index, mut spacing) = (Vec::new(), 0, 1);
        for (stage, plain) in stages(*self).map_err(Error::usage)?.into_iter().zip(STAGES) {
            // A level ends where the stride grows, or would. The stem's own stride, 2, is no level.
            if plain.stride > 1 && index > 1 {
                levels.push(x);
            }
            for repeat in 0..stage.blocks {
                let first = Stage { dilation: spacing, ..stage };
                let rest = Stage { stride: 1, ..stage };
                let block_stage = if repeat == 0 { first } else { rest };
                x = block(b, &format!("{PREFIX}._blocks.{index}"), x, block_stage)?;
                index += 1;
            }
            spacing = stage.dilation;
        }
        levels.push(x);
        Ok(levels)
    }

    fn recognise(found: &Evidence<'_>, _: &mut Vec<String>) -> Result<Option<Self>, String> {
        Ok(found.has(&format!("{PREFIX}._conv_stem.weight")).then(|| of_blocks(found, &format!("{PREFIX}."))))
    }

    fn recognise_classifier(found: &Evidence<'_>) -> Option<(Self, usize)> {
        let classes = found.dim("_fc.weight", 0).filter(|_| found.has("_conv_stem.weight"))?;
        Some((of_blocks(found, ""), classes))
    }

    fn classifier(&self, batch: usize, size: [usize; 2], classes: usize) -> Option<Result<Graph>> {
        Some(EfficientNetLite::classifier(*self, batch, size, classes))
    }
}

/// The variant by its number of blocks: Lite0 has blocks 0 to 15, Lite2 0 to 22.
fn of_blocks(found: &Evidence<'_>, prefix: &str) -> EfficientNetLite {
    let more = found.has(&format!("{prefix}_blocks.16._project_conv.weight"));
    EfficientNetLite::new(if more { 2 } else { 0 })
}

impl EfficientNetLite {
    /// The one of a variant, at strides 4 to 32.
    pub fn new(variant: usize) -> Self {
        EfficientNetLite { variant, output_stride: STRIDE }
    }

    /// The ImageNet classifier: the backbone for `batch` images of `size` (height, width), a 1x1 convolution
    /// to 1280 channels, their mean over the map and a linear layer to `classes`.
    ///
    /// The graph takes [`IMAGE`] `[batch, H, W, 3]`, normalised by [`Normalization::SYMMETRIC`], and gives
    /// `logits` `[batch, classes]` and the levels `C2`..`C5` of the backbone.
    ///
    /// # Errors
    /// [`Error::Usage`] for a variant that is not 0 or 2, or a size without pixels.
    pub fn classifier(self, batch: usize, size: [usize; 2], classes: usize) -> Result<Graph> {
        if size.contains(&0) {
            return Err(Error::usage(format!("an image of {}x{} has no pixels", size[0], size[1])));
        }
        let mut b = Builder::new();
        let image = b.input(IMAGE, ValueType::map([batch, size[0], size[1], 3]));
        let levels = self.build(&mut b, image)?;
        let last = levels[levels.len() - 1];
        let head = Geometry::new(HEAD, 1);
        let norm = format!("{PREFIX}._bn1");
        let x = conv_norm(&mut b, &format!("{PREFIX}._conv_head"), &norm, last, head)?;
        let x = relu6(&mut b, &norm, x)?;
        let x = b.node(&format!("{PREFIX}._avg_pooling"), GlobalAvgPool, &[x])?;
        let logits = linear(&mut b, &format!("{PREFIX}._fc"), x, classes)?;
        b.output("logits", logits);
        for (level, value) in (2..).zip(levels) {
            b.output(&format!("C{level}"), value);
        }
        b.finish()
    }
}

/// An inverted bottleneck; the input is added to the result if it has its shape.
fn block(b: &mut Builder, p: &str, input: ValueId, stage: Stage) -> Result<ValueId> {
    let c_in = b.shape(input).last();
    let width = c_in * stage.expansion;
    let mut x = input;
    if stage.expansion > 1 {
        let expand = Geometry::new(width, 1);
        x = conv_norm(b, &format!("{p}._expand_conv"), &format!("{p}._bn0"), x, expand)?;
        x = relu6(b, &format!("{p}._bn0"), x)?;
    }
    let Stage { kernel, stride, dilation, .. } = stage;
    let depthwise = Geometry { stride, dilation, groups: width, ..Geometry::new(width, kernel) };
    x = conv_norm(b, &format!("{p}._depthwise_conv"), &format!("{p}._bn1"), x, depthwise)?;
    x = relu6(b, &format!("{p}._bn1"), x)?;
    let project = Geometry::new(stage.c_out, 1);
    x = conv_norm(b, &format!("{p}._project_conv"), &format!("{p}._bn2"), x, project)?;
    if stage.stride == 1 && c_in == stage.c_out {
        x = b.node(&format!("{p}.add"), Binary { kind: BinaryKind::Add }, &[x, input])?;
    }
    Ok(x)
}

/// A square convolution with "same" padding.
#[derive(Clone, Copy)]
struct Geometry {
    c_out: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    groups: usize,
}

impl Geometry {
    /// Neither strided nor dilated, over all channels.
    fn new(c_out: usize, kernel: usize) -> Self {
        Geometry { c_out, kernel, stride: 1, dilation: 1, groups: 1 }
    }
}

/// A convolution without bias, `{conv}.weight`, and its batch norm `{bn}.*`.
fn conv_norm(b: &mut Builder, conv: &str, bn: &str, x: ValueId, geometry: Geometry) -> Result<ValueId> {
    let Geometry { c_out, kernel, stride, dilation, groups } = geometry;
    let shape = b.shape(x);
    let weight = [c_out, shape.last() / groups, kernel, kernel];
    let weight = b.param(&format!("{conv}.weight"), &weight, Layout::Filter)?;
    let same = Conv2d::same([shape[1], shape[2]], dilation * (kernel - 1) + 1, stride);
    let op = Conv2d { groups, dilation: [dilation; 2], ..same };
    let y = b.node(conv, op, &[x, weight])?;
    norm(b, Norm { prefix: bn, eps: EPS }, y)
}

fn relu6(b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
    activation(b, &format!("{name}.relu6"), Activation::Relu6, x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_the_widths_and_depths_of_the_package() {
        let of = |variant| {
            let stages = stages(EfficientNetLite::new(variant)).unwrap();
            (stages.map(|s| s.c_out), stages.map(|s| s.blocks))
        };
        assert_eq!(of(0), ([16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]));
        assert_eq!(of(2), ([16, 24, 48, 88, 120, 208, 352], [1, 3, 3, 4, 4, 5, 1]));
        assert!(stages(EfficientNetLite::new(1)).unwrap_err().contains("variant 1"));
    }

    #[test]
    fn levels_of_a_classifier() {
        let graph = EfficientNetLite::new(0).classifier(2, [64, 96], 10).unwrap();
        let shapes: Vec<_> =
            graph.outputs.iter().map(|(name, id)| format!("{name} {}", graph.value(*id).ty.shape)).collect();
        assert_eq!(
            shapes,
            [
                "logits [2, 10]",
                "C2 [2, 16, 24, 24]",
                "C3 [2, 8, 12, 40]",
                "C4 [2, 4, 6, 112]",
                "C5 [2, 2, 3, 320]"
            ]
        );
    }

    #[test]
    fn strides_given_up_become_dilation() {
        let of = |output_stride| {
            let stages = stages(EfficientNetLite { output_stride, ..EfficientNetLite::new(0) }).unwrap();
            (stages.map(|s| s.stride), stages.map(|s| s.dilation))
        };
        assert_eq!(of(32), ([1, 2, 2, 2, 1, 2, 1], [1; 7]));
        assert_eq!(of(16), ([1, 2, 2, 2, 1, 1, 1], [1, 1, 1, 1, 1, 2, 2]));
        assert_eq!(of(8), ([1, 2, 2, 1, 1, 1, 1], [1, 1, 1, 2, 2, 4, 4]));

        let dilated = EfficientNetLite { output_stride: 8, ..EfficientNetLite::new(2) };
        assert_eq!((dilated.short_name().as_str(), dilated.strides()), ("lite2-d8", [4, 8, 8, 8]));
        assert_eq!(EfficientNetLite::named("lite2-d8"), Some(dilated));
        assert_eq!(EfficientNetLite::named("lite0"), Some(EfficientNetLite::new(0)));
        for none in ["lite1", "lite0-d32", "lite0-d12", "lite0-d", "r50"] {
            assert_eq!(EfficientNetLite::named(none), None, "{none}");
        }

        // What a filter of stride 2 would have seen is what the dilated ones see at every other pixel: sizes
        // stay, odd ones too.
        let graph = dilated.classifier(1, [67, 90], 10).unwrap();
        let shape =
            |name: &str| graph.outputs.iter().find(|o| o.0 == name).map(|o| graph.value(o.1).ty.shape);
        for level in ["C3", "C4", "C5"] {
            assert_eq!(shape(level).unwrap().dims()[1..3], [9, 12], "{level}");
        }
    }
}
