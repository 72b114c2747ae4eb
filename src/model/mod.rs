//! Models as graphs: K-Net, and the detectors and semantic heads that it is compared with.
//!
//! [`build`] turns a [`Config`] and an input size into a [`Graph`]. Parameters carry the names of the
//! official checkpoints, so that a converted checkpoint loads without a mapping.

pub mod backbone;
pub mod condinst;
pub mod config;
pub mod decode_head;
pub mod evidence;
pub mod head;
mod layers;
pub mod neck;
pub mod rcnn;
pub mod solov2;

pub use backbone::{Backbone, EfficientNetLite, ResNet, Stem, Swin};
pub use condinst::CondInst;
pub use config::{Classes, Config, Input, Normalization, Task, Test};
pub use decode_head::{DecodeHead, Generator, semantic_update_head};
pub use head::{Head, Objects, kernel_update_head, kernel_updator};
pub use neck::Fpn;
pub use rcnn::Rcnn;
pub use solov2::Solov2;

use crate::error::{Error, Result};
use crate::graph::{Builder, Graph, ValueId};
use crate::ops::ValueType;

/// Inputs of detectors are padded to multiples of this many pixels: the stride of the coarsest level.
pub const SIZE_DIVISOR: usize = 32;

/// Name of the network's input: normalised RGB, `[B, H, W, 3]`.
pub const IMAGE: &str = "image";
/// Name of the class logits of the last stage, `[B, N, classes]`.
pub const CLS_SCORE: &str = "cls_score";
/// Name of the mask logits of the last stage at stride 8, planar: `[B, N, H / 8, W / 8]`.
pub const MASK_PREDS: &str = "mask_preds";

/// Name of the class logits of a semantic model at the size of its features, planar: `[B, classes, h, w]`.
pub const SEG_LOGITS: &str = "seg_logits";

/// Name of the mask logits of the detections of a one-stage detector, best first, planar: `[B, N, h, w]`.
pub const MASK_LOGITS: &str = "mask_logits";

/// How a tap is laid out upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapLayout {
    /// A feature map: `[B, H, W, C]` here, `[B, C, H, W]` upstream.
    Features,
    /// The same order of elements, possibly under another shape: planar masks, scores.
    Same,
    /// Object features: `[B, N, C]` here, `[B, N, C, 1, 1]` upstream.
    Objects,
    /// Kernels: `[B, N, C]` here, `[B, N, 1, C]` upstream.
    Kernels,
    /// Object features: `[B, N, C]` here, `[B * N, 1, C]` upstream.
    ObjectRows,
    /// `[B, N, C]` here, `[B * N, C]` upstream.
    Rows,
    /// Boxes: `[B, N, 4]` here, `[B * N, 5]` upstream, the index of the image before each.
    Regions,
}

/// An intermediate value by its name in the reference data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// For example `backbone.C2` or `s1.mask_preds`.
    pub name: String,
    /// The value.
    pub value: ValueId,
    /// Layout upstream.
    pub layout: TapLayout,
}

/// Taps gathered while a model is built.
#[derive(Debug)]
pub(crate) struct Taps {
    found: Vec<Tap>,
    mode: TapMode,
}

impl Taps {
    fn new(mode: TapMode) -> Taps {
        Taps { found: Vec::new(), mode }
    }

    pub(crate) fn push(&mut self, name: impl Into<String>, value: ValueId, layout: TapLayout) {
        self.found.push(Tap { name: name.into(), value, layout });
    }

    /// Stage `stage`, from 0, begins.
    pub(crate) fn stage(&self, b: &mut Builder, stage: usize) {
        if self.mode == TapMode::Stages {
            b.segment(&format!("stage {stage}"));
        }
    }

    /// Those that were asked for.
    fn wanted(self) -> Vec<Tap> {
        let predictions = ["seg_preds", "cls_score", "mask_preds", ".logits"];
        let wanted = |tap: &Tap| match self.mode {
            TapMode::Off => false,
            TapMode::All => true,
            TapMode::Predictions => predictions.iter().any(|name| tap.name.ends_with(name)),
            TapMode::Stages => [CLS_SCORE, MASK_PREDS, SEG_LOGITS].iter().any(|name| {
                let stage = stage_of(&tap.name);
                stage.is_some_and(|stage| is_stage_output(&tap.name, stage, name))
            }),
        };
        self.found.into_iter().filter(wanted).collect()
    }
}

/// The stage that a tap is of, from 0.
fn stage_of(tap: &str) -> Option<usize> {
    tap.strip_prefix('s')?.split_once('.')?.0.parse().ok()
}

/// Whether an output of a graph of [`TapMode::Stages`] is what stage `stage`, from 0, has in place of the
/// network's own output `name`.
pub(crate) fn is_stage_output(output: &str, stage: usize, name: &str) -> bool {
    let tap = if name == SEG_LOGITS { "logits" } else { name };
    stage_of(output) == Some(stage) && output.split_once('.').is_some_and(|(_, of)| of == tap)
}

/// A built model.
#[derive(Debug)]
pub struct Network {
    /// The graph, not yet optimised. Its outputs are [`CLS_SCORE`] and [`MASK_PREDS`], or [`SEG_LOGITS`] of a
    /// semantic model, or detections and masks of another detector ([`rcnn`], [`solov2`], [`condinst`]), then
    /// the taps.
    pub graph: Graph,
    /// Intermediate values, all of them outputs of the graph too if they were asked for; otherwise empty.
    pub taps: Vec<Tap>,
}

/// Which intermediate values become outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapMode {
    /// None: the graph computes the final scores and masks only.
    Off,
    /// All of them, for comparison with PyTorch.
    All,
    /// The class and mask logits of every stage, each stage a segment of its own: a run may end after any.
    /// What comes before the first stage is in its segment.
    Stages,
    /// What training's losses look at: semantic logits, and the class and mask logits of every round.
    Predictions,
}

/// Builds the network for `batch` images of `size` (height, width), both multiples of
/// [`Config::size_divisor`].
///
/// # Errors
/// [`Error::Usage`] if the configuration or the size cannot be; [`Error::Shape`] if parts do not fit.
pub fn build(config: &Config, batch: usize, size: [usize; 2], taps: TapMode) -> Result<Network> {
    config.validate()?;
    let divisor = config.size_divisor();
    if size.iter().any(|&s| s == 0 || !s.is_multiple_of(divisor)) {
        let [h, w] = size;
        return Err(Error::usage(format!("network size {h}x{w} is not a multiple of {divisor}")));
    }
    let mut b = Builder::new();
    let mut found = Taps::new(taps);
    let image = b.input(IMAGE, ValueType::map([batch, size[0], size[1], 3]));
    let levels = config.backbone.build(&mut b, image)?;
    for (i, &level) in levels.iter().enumerate() {
        found.push(format!("backbone.C{}", i + 2), level, TapLayout::Features);
    }
    match &config.decode_head {
        Some(head) => {
            let logits = head.build(config, &mut b, &levels, &mut found)?;
            b.output(SEG_LOGITS, logits);
        }
        None => {
            let first = if config.condinst.is_some() { CondInst::FIRST_LEVEL } else { 0 };
            let pyramid = config.neck.build(&mut b, &levels[first..])?;
            for (i, &level) in pyramid.iter().enumerate() {
                found.push(format!("fpn.P{}", first + i + 2), level, TapLayout::Features);
            }
            if let Some(rcnn) = &config.rcnn {
                rcnn.build(config, &mut b, &pyramid, &mut found)?;
            } else if let Some(solov2) = &config.solov2 {
                solov2.build(config, &mut b, &pyramid, &mut found)?;
            } else if let Some(condinst) = &config.condinst {
                condinst.build(config, &mut b, &pyramid, &mut found)?;
            } else {
                let [cls_score, mask_preds] = Head::build(config, &mut b, &pyramid, &mut found)?;
                b.output(CLS_SCORE, cls_score);
                b.output(MASK_PREDS, mask_preds);
            }
        }
    }
    let taps = found.wanted();
    for tap in &taps {
        b.output(&tap.name, tap.value);
    }
    Ok(Network { graph: b.finish()?, taps })
}
