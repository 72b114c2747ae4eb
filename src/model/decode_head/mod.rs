//! The heads of semantic models: a generator makes features, first class maps and, of its classifier's own
//! weights, a kernel for each class; K-Net's stages then refine kernels and maps. Without stages it is the
//! plain head, such as PSPNet's.
//!
//! Parameters are named as in mmseg: `decode_head.kernel_generate_head.*` and
//! `decode_head.kernel_update_head.0.*`, or `decode_head.*` of a plain head.

mod aspp;
mod fcn;
mod psp;
mod update;
mod uper;

pub use update::semantic_update_head;

use super::config::in_range;
use super::evidence::Evidence;
use super::head::Objects;
use super::layers::{Conv, conv_bn_relu, dropout};
use super::{Config, TapLayout, Taps};
use crate::error::Result;
use crate::graph::passes::Part;
use crate::graph::{Builder, Layout, ValueId};
use crate::ops::dropout::DropKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{Concat, MaskConv, Reshape, Resize};
use serde::{Deserialize, Serialize};

/// What the names of a decode head's parameters start with.
const PREFIX: &str = "decode_head";

/// What those of its generator start with, where stages follow.
const GENERATED: &str = "decode_head.kernel_generate_head";

/// What the names of the auxiliary head's parameters start with.
pub const AUXILIARY_PREFIX: &str = "auxiliary_head.";

/// What the names of its stages' parameters start with.
pub(super) const STAGES: &str = "decode_head.kernel_update_head.";

/// Name of the layer that makes the first class maps.
pub(super) fn classifier(config: &Config) -> String {
    format!("{}.conv_seg", generator_prefix(config.head.stages))
}

/// The stretch that a value of this name belongs to, if it is a head's. Of what generates features, the
/// convolutions are more work than all else of the model; of a stage, those of a pixel are little.
pub(super) fn stretch(name: &str) -> Option<Part<'_>> {
    if let Some(rest) = name.strip_prefix(STAGES) {
        let end = rest.find('.').unwrap_or(rest.len());
        return Some(Part::Whole(&name[..STAGES.len() + end]));
    }
    let prefixes = [GENERATED, PREFIX, AUXILIARY_PREFIX.trim_end_matches('.')];
    let is_below = |prefix: &&str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    prefixes.into_iter().find(is_below).map(Part::Light)
}

/// What the names of a generator's parameters start with, in a head of so many stages.
fn generator_prefix(stages: usize) -> &'static str {
    if stages == 0 { PREFIX } else { GENERATED }
}

/// What makes the first class maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generator {
    /// Fully convolutional network (Long et al., 2015): two convolutions over C5.
    Fcn,
    /// Pyramid pooling (Zhao et al., 2017) of C5.
    Psp,
    /// Atrous spatial pyramid pooling of C5 (DeepLabV3; Chen et al., 2017).
    Aspp,
    /// Pyramid pooling and a feature pyramid over C2 to C5 (UPerNet; Xiao et al., 2018).
    Uper,
}

impl Generator {
    /// All of them.
    pub const ALL: [Generator; 4] = [Generator::Fcn, Generator::Psp, Generator::Aspp, Generator::Uper];

    /// Name within that of a model, such as `pspnet` of `knet_s3_pspnet_r50-d8`.
    pub fn name(self) -> &'static str {
        match self {
            Generator::Fcn => "fcn",
            Generator::Psp => "pspnet",
            Generator::Aspp => "deeplabv3",
            Generator::Uper => "upernet",
        }
    }

    /// The parameter, below its head, that no other generator has.
    fn mark(self) -> &'static str {
        match self {
            Generator::Fcn => "conv_cat.conv.weight",
            Generator::Psp => "bottleneck.conv.weight",
            Generator::Aspp => "image_pool.1.conv.weight",
            Generator::Uper => "fpn_bottleneck.conv.weight",
        }
    }

    /// Features over the levels C2 to C5, of as many channels.
    fn features(self, generate: &mut Generate<'_>, levels: &[ValueId]) -> Result<ValueId> {
        match self {
            Generator::Fcn => fcn::features(generate, levels[3]),
            Generator::Psp => psp::features(generate, levels[3], "feats"),
            Generator::Aspp => aspp::features(generate, levels[3]),
            Generator::Uper => uper::features(generate, levels),
        }
    }
}

/// The head of a semantic model. How wide its features are, and how many stages refine it and how wide those
/// are inside, is said by the fields that detectors have, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeHead {
    /// What makes the first class maps.
    #[serde(rename = "type")]
    pub generator: Generator,
    /// Width of the kernel updator. A kernel that is wider is updated in pieces of so many channels, each by
    /// itself; it divides the kernels' width.
    #[serde(default = "default_channels", skip_serializing_if = "is_default_channels")]
    pub updator_channels: usize,
    /// Width of the auxiliary head over C4, which training alone has a use for.
    #[serde(default = "default_channels", skip_serializing_if = "is_default_channels")]
    pub auxiliary_channels: usize,
}

fn default_channels() -> usize {
    256
}
fn is_default_channels(channels: &usize) -> bool {
    *channels == default_channels()
}

impl DecodeHead {
    /// One as in the official models.
    pub fn new(generator: Generator) -> Self {
        DecodeHead { generator, updator_channels: default_channels(), auxiliary_channels: default_channels() }
    }

    /// A sentence on a field that cannot be, over kernels of `channels`.
    pub(super) fn validate(&self, channels: usize) -> Result<(), String> {
        in_range([
            ("updator_channels", self.updator_channels),
            ("auxiliary_channels", self.auxiliary_channels),
        ])?;
        if !channels.is_multiple_of(self.updator_channels) {
            let updator = self.updator_channels;
            return Err(format!("{channels} channels are not a multiple of updator_channels {updator}"));
        }
        Ok(())
    }

    /// Class logits of the last stage over the levels C2 to C5, `[B, classes, H, W]`. Those of the auxiliary
    /// head are a tap.
    pub(super) fn build(
        &self,
        config: &Config,
        b: &mut Builder,
        levels: &[ValueId],
        taps: &mut Taps,
    ) -> Result<ValueId> {
        let (classes, stages) = (config.classes.count(), config.head.stages);
        let auxiliary = self.auxiliary(b, levels[2], classes)?;
        taps.push("aux.logits", auxiliary, TapLayout::Same);
        let (prefix, tap) = (generator_prefix(stages), if stages == 0 { "head" } else { "gen" });
        let channels = config.neck.channels;
        let mut generate = Generate { b, taps, prefix, tap, channels };
        let features = self.generator.features(&mut generate, levels)?;
        let (kernels, logits) = classify(b, prefix, features, classes)?;
        taps.push(format!("{tap}.feats"), features, TapLayout::Features);
        taps.push(format!("{tap}.logits"), logits, TapLayout::Same);
        let mut objects = Objects { features, kernels, masks: logits };
        for stage in 0..stages {
            taps.stage(b, stage);
            let prefix = format!("{STAGES}{stage}");
            let tap = |name: &str| format!("s{stage}.{name}");
            taps.push(tap("proposal_feat"), objects.kernels, TapLayout::Kernels);
            let out = semantic_update_head(b, config, self.updator_channels, &prefix, objects)?;
            taps.push(tap("feat_transform"), out.feat_transform, TapLayout::Features);
            taps.push(tap("x_feat"), out.x_feat, TapLayout::Same);
            taps.push(tap("kernel_updator_out"), out.updated_rows, TapLayout::ObjectRows);
            taps.push(tap("attention_norm_out"), out.attended, TapLayout::Same);
            taps.push(tap("obj_feat"), out.objects.kernels, TapLayout::Kernels);
            taps.push(tap("kernel"), out.mask_kernels, TapLayout::Kernels);
            taps.push(tap("logits"), out.objects.masks, TapLayout::Same);
            objects = out.objects;
        }
        Ok(objects.masks)
    }

    /// An FCN of one convolution over C4.
    fn auxiliary(&self, b: &mut Builder, level: ValueId, classes: usize) -> Result<ValueId> {
        let geometry = Conv::new(self.auxiliary_channels, 3, 1);
        let x = conv_bn_relu(b, "auxiliary_head.convs.0", level, geometry)?;
        Ok(classify(b, "auxiliary_head", x, classes)?.1)
    }

    /// What tensors show of a semantic model: the head, the width of its features, its stages and hidden
    /// width, and the number of classes. `None` if there is no decode head.
    ///
    /// # Errors
    /// What cannot be told: a sentence.
    pub(super) fn recognise(found: &Evidence<'_>) -> Result<Option<Recognised>, String> {
        let Some(prefix) = prefix_in(found) else { return Ok(None) };
        let generator = generator(found).ok_or_else(|| {
            let known = Generator::ALL.map(Generator::name).join(", ");
            format!("not a semantic head that is known here ({known})")
        })?;
        let of = |name: &str, axis: usize| found.dim(&format!("{prefix}.{name}"), axis).unwrap_or(0);
        let (classes, channels) = (of("conv_seg.weight", 0), of("conv_seg.weight", 1));
        let stage = |index: usize, part: &str| format!("{STAGES}{index}.{part}");
        let stages = (0..).take_while(|&i| found.has(&stage(i, "fc_mask.weight"))).count();
        let updator = found.dim(&stage(0, "kernel_update_conv.dynamic_layer.weight"), 1);
        let auxiliary = found.dim("auxiliary_head.conv_seg.weight", 1);
        Ok(Some(Recognised {
            head: DecodeHead {
                generator,
                updator_channels: updator.unwrap_or(default_channels()),
                auxiliary_channels: auxiliary.unwrap_or(default_channels()),
            },
            channels,
            stages,
            feedforward_channels: found.dim(&stage(0, "ffn.layers.0.0.weight"), 0),
            classes,
        }))
    }
}

/// What the names of a file's generator start with, if it has one.
fn prefix_in(found: &Evidence<'_>) -> Option<&'static str> {
    [GENERATED, PREFIX].into_iter().find(|prefix| found.has(&format!("{prefix}.conv_seg.weight")))
}

/// The generator of a file, if it is one of these.
pub(super) fn generator(found: &Evidence<'_>) -> Option<Generator> {
    let prefix = prefix_in(found)?;
    // UPerNet and DeepLabV3 have pyramid pooling's bottleneck besides their own marks.
    let order = [Generator::Uper, Generator::Aspp, Generator::Fcn, Generator::Psp];
    order.into_iter().find(|generator| found.has(&format!("{prefix}.{}", generator.mark())))
}

/// What the tensors of a file show of its decode head.
pub(super) struct Recognised {
    pub head: DecodeHead,
    pub channels: usize,
    pub stages: usize,
    pub feedforward_channels: Option<usize>,
    pub classes: usize,
}

/// A generator at work.
pub(super) struct Generate<'a> {
    b: &'a mut Builder,
    taps: &'a mut Taps,
    /// What its parameters' names start with.
    prefix: &'a str,
    /// What its taps' names start with.
    tap: &'static str,
    /// Width of the features.
    channels: usize,
}

impl Generate<'_> {
    /// A convolution of the generator with batch norm and ReLU, as a tap.
    fn conv(&mut self, name: &str, tap: &str, x: ValueId, geometry: Conv) -> Result<ValueId> {
        let y = conv_bn_relu(self.b, &format!("{}.{name}", self.prefix), x, geometry)?;
        // The features are tapped by whoever asked for them.
        if tap != "feats" {
            self.taps.push(format!("{}.{tap}", self.tap), y, TapLayout::Features);
        }
        Ok(y)
    }

    /// A map at the size of another.
    fn resized(&mut self, name: &str, x: ValueId, like: ValueId) -> Result<ValueId> {
        let (from, to) = (self.b.shape(x), self.b.shape(like));
        if [from[1], from[2]] == [to[1], to[2]] {
            return Ok(x);
        }
        let mode = ResizeMode::Bilinear { align_corners: false };
        let resize = Resize { mode, size: [to[1], to[2]], step: None };
        self.b.node(&format!("{}.{name}.resized", self.prefix), resize, &[x])
    }

    /// Maps of one size side by side.
    fn concat(&mut self, name: &str, maps: &[ValueId]) -> Result<ValueId> {
        self.b.node(&format!("{}.{name}", self.prefix), Concat { axis: 3 }, maps)
    }
}

/// `{prefix}.conv_seg`: its weights as a kernel for each class, `[1, classes, C]`, and the class maps, which
/// training makes of features with dropped channels.
fn classify(b: &mut Builder, prefix: &str, x: ValueId, classes: usize) -> Result<(ValueId, ValueId)> {
    let channels = b.shape(x).last();
    let name = format!("{prefix}.conv_seg");
    let weight = b.param(&format!("{name}.weight"), &[classes, channels, 1, 1], Layout::Matrix)?;
    let bias = b.param(&format!("{name}.bias"), &[classes], Layout::Plain)?;
    let shape = [1, classes, channels].into();
    let x = dropout(b, &name, DropKind::Channel, x)?;
    let kernels = b.node(&format!("{name}.kernels"), Reshape { shape }, &[weight])?;
    let logits = b.node(&name, MaskConv { bias: true }, &[kernels, x, bias])?;
    Ok((kernels, logits))
}
