//! K-Net as graphs.
//!
//! [`build`] turns a [`Config`] and an input size into a [`Graph`]. Parameters carry the names of the
//! official checkpoints, so that a converted checkpoint loads without a mapping.

pub mod backbone;
pub mod config;
pub mod decode_head;
pub mod evidence;
pub mod head;
mod layers;
pub mod neck;

pub use backbone::{Backbone, EfficientNetLite, ResNet, Stem, Swin};
pub use config::{Classes, Config, Input, Normalization, Task, Test};
pub use decode_head::{DecodeHead, Generator, semantic_update_head};
pub use head::{Head, Objects, kernel_update_head, kernel_updator};
pub use neck::Fpn;

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
#[derive(Debug, Default)]
pub(crate) struct Taps(Vec<Tap>);

impl Taps {
    pub(crate) fn push(&mut self, name: impl Into<String>, value: ValueId, layout: TapLayout) {
        self.0.push(Tap { name: name.into(), value, layout });
    }
}

/// A built model.
#[derive(Debug)]
pub struct Network {
    /// The graph, not yet optimised. Its outputs are [`CLS_SCORE`] and [`MASK_PREDS`], or [`SEG_LOGITS`] of a
    /// semantic model, then the taps.
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
    let mut found = Taps::default();
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
            let pyramid = config.neck.build(&mut b, &levels)?;
            for (i, &level) in pyramid.iter().enumerate() {
                found.push(format!("fpn.P{}", i + 2), level, TapLayout::Features);
            }
            let [cls_score, mask_preds] = Head::build(config, &mut b, &pyramid, &mut found)?;
            b.output(CLS_SCORE, cls_score);
            b.output(MASK_PREDS, mask_preds);
        }
    }
    let taps = match taps {
        TapMode::Off => Vec::new(),
        TapMode::All => found.0,
        TapMode::Predictions => {
            let predicts = |tap: &Tap| {
                ["seg_preds", "cls_score", "mask_preds", ".logits"]
                    .iter()
                    .any(|name| tap.name.ends_with(name))
            };
            found.0.into_iter().filter(predicts).collect()
        }
    };
    for tap in &taps {
        b.output(&tap.name, tap.value);
    }
    Ok(Network { graph: b.finish()?, taps })
}
