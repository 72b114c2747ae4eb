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
}

/// Repeated blocks of one width.
#[derive(Clone, Copy, Debug)]
struct Stage {
    blocks: usize,
    kernel: usize,
    /// Of the first block; the others have 1.
    stride: usize,
    /// Width of the depthwise convolution by that of the block's input.
    expansion: usize,
    c_out: usize,
}

/// The stages of Lite0.
const STAGES: [Stage; 7] = [
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 1, c_out: 16 },
    Stage { blocks: 2, kernel: 3, stride: 2, expansion: 6, c_out: 24 },
    Stage { blocks: 2, kernel: 5, stride: 2, expansion: 6, c_out: 40 },
    Stage { blocks: 3, kernel: 3, stride: 2, expansion: 6, c_out: 80 },
    Stage { blocks: 3, kernel: 5, stride: 1, expansion: 6, c_out: 112 },
    Stage { blocks: 4, kernel: 5, stride: 2, expansion: 6, c_out: 192 },
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 6, c_out: 320 },
];

/// The stages of a variant: widths and depths of Lite0 times the variant's factors; the first and the last
/// stage keep their depth.
fn stages(variant: usize) -> Result<[Stage; 7], String> {
    // In tenths, so that rounding is exact.
    let (width, depth) = match variant {
        0 => (10, 10),
        2 => (11, 12),
        _ => return Err(format!("EfficientNet-Lite variant {variant} is not 0 or 2")),
    };
    let mut stages = STAGES;
    for (i, stage) in stages.iter_mut().enumerate() {
        stage.c_out = scaled_channels(stage.c_out, width);
        if i > 0 && i + 1 < STAGES.len() {
            stage.blocks = (stage.blocks * depth).div_ceil(10);
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
    const CLASSIFIER: &'static [&'static str] = &["backbone._conv_head.", "backbone._bn1.", "backbone._fc."];

    fn name(&self) -> String {
        format!("efficientnet_lite{}", self.variant)
    }

    fn short_name(&self) -> String {
        format!("lite{}", self.variant)
    }

    fn named(short: &str) -> Option<Self> {
        match short {
            "lite0" => Some(EfficientNetLite { variant: 0 }),
            "lite2" => Some(EfficientNetLite { variant: 2 }),
            _ => None,
        }
    }

    fn validate(&self) -> Result<(), String> {
        stages(self.variant).map(|_| ())
    }

    fn strides(&self) -> [usize; 4] {
        [4, 8, 16, 32]
    }

    /// The last maps of each stride (24, 40, 112 and 320 channels in Lite0; 24, 48, 120 and 352 in Lite2),
    /// all of them results of a projection, which no activation follows.
    fn build(&self, b: &mut Builder, image: ValueId) -> Result<Vec<ValueId>> {
        let stem = Geometry { c_out: STEM, kernel: 3, stride: 2, groups: 1 };
        let x = conv_norm(b, &format!("{PREFIX}._conv_stem"), &format!("{PREFIX}._bn0"), image, stem)?;
        let mut x = relu6(b, &format!("{PREFIX}._bn0"), x)?;
        let (mut levels, mut index) = (Vec::new(), 0);
        for stage in stages(self.variant).map_err(Error::usage)? {
            // A level ends where the stride grows. The stem's own stride, 2, is no level.
            if stage.stride > 1 && index > 1 {
                levels.push(x);
            }
            for repeat in 0..stage.blocks {
                let stride = if repeat == 0 { stage.stride } else { 1 };
                x = block(b, &format!("{PREFIX}._blocks.{index}"), x, Stage { stride, ..stage })?;
                index += 1;
            }
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
    EfficientNetLite { variant: if more { 2 } else { 0 } }
}

impl EfficientNetLite {
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
        let head = Geometry { c_out: HEAD, kernel: 1, stride: 1, groups: 1 };
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
        let expand = Geometry { c_out: width, kernel: 1, stride: 1, groups: 1 };
        x = conv_norm(b, &format!("{p}._expand_conv"), &format!("{p}._bn0"), x, expand)?;
        x = relu6(b, &format!("{p}._bn0"), x)?;
    }
    let depthwise = Geometry { c_out: width, kernel: stage.kernel, stride: stage.stride, groups: width };
    x = conv_norm(b, &format!("{p}._depthwise_conv"), &format!("{p}._bn1"), x, depthwise)?;
    x = relu6(b, &format!("{p}._bn1"), x)?;
    let project = Geometry { c_out: stage.c_out, kernel: 1, stride: 1, groups: 1 };
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
    groups: usize,
}

/// A convolution without bias, `{conv}.weight`, and its batch norm `{bn}.*`.
fn conv_norm(b: &mut Builder, conv: &str, bn: &str, x: ValueId, geometry: Geometry) -> Result<ValueId> {
    let Geometry { c_out, kernel, stride, groups } = geometry;
    let shape = b.shape(x);
    let weight = [c_out, shape.last() / groups, kernel, kernel];
    let weight = b.param(&format!("{conv}.weight"), &weight, Layout::Filter)?;
    let op = Conv2d { groups, ..Conv2d::same([shape[1], shape[2]], kernel, stride) };
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
            let stages = stages(variant).unwrap();
            (stages.map(|s| s.c_out), stages.map(|s| s.blocks))
        };
        assert_eq!(of(0), ([16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]));
        assert_eq!(of(2), ([16, 24, 48, 88, 120, 208, 352], [1, 3, 3, 4, 4, 5, 1]));
        assert!(stages(1).unwrap_err().contains("variant 1"));
    }

    #[test]
    fn levels_of_a_classifier() {
        let graph = EfficientNetLite { variant: 0 }.classifier(2, [64, 96], 10).unwrap();
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
}
