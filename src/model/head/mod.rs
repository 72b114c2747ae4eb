//! The head: kernels that find their pixels, in rounds (K-Net, Zhang et al., 2021).

mod kernel_head;
mod kernel_update_head;
mod semantic_fpn;

pub(super) use kernel_update_head::{branch, interact, match_size};
pub use kernel_update_head::{kernel_update_head, kernel_updator};

use super::config::in_range;
use super::decode_head;
use super::evidence::Evidence;
use super::{Config, TapLayout, Taps};
use crate::error::{Error, Result};
use crate::graph::{Builder, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What the names of a stage's parameters start with.
const STAGES: &str = "roi_head.mask_head.";

/// Most stages of a model; the paper's have three.
const MOST_STAGES: usize = 256;

/// The kernel head and its update stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Head {
    /// Number of instance kernels.
    pub proposals: usize,
    /// Number of kernel update stages.
    pub stages: usize,
    /// Hidden width of the feed-forward network of a stage.
    pub feedforward_channels: usize,
    /// Attention heads of a stage.
    pub heads: usize,
    /// Groups of every group norm.
    pub norm_groups: usize,
}

impl Default for Head {
    /// As in the official models.
    fn default() -> Self {
        Head { proposals: 100, stages: 3, feedforward_channels: 2048, heads: 8, norm_groups: 32 }
    }
}

/// What one stage hands to the next.
#[derive(Clone, Copy, Debug)]
pub struct Objects {
    /// Features the masks are read from, `[B, H, W, C]`; every stage starts again from the same.
    pub features: ValueId,
    /// One kernel (object feature) per object, `[B, N, C]`.
    pub kernels: ValueId,
    /// Mask logits, `[B, N, H, W]`.
    pub masks: ValueId,
}

impl Head {
    /// A sentence on a field that cannot be, over a pyramid of `channels`.
    pub(super) fn validate(&self, channels: usize) -> Result<(), String> {
        if self.stages == 0 {
            return Err(format!("stages is 0, must be 1 to {MOST_STAGES}"));
        }
        in_range([("proposals", self.proposals)])?;
        self.validate_stages(channels)?;
        if !channels.is_multiple_of(self.norm_groups) {
            return Err(format!("{channels} channels are not a multiple of norm_groups"));
        }
        Ok(())
    }

    /// As [`Head::validate`], of what all kernel update stages have, over kernels of `channels`. There may be
    /// no stage.
    pub(super) fn validate_stages(&self, channels: usize) -> Result<(), String> {
        // A graph grows by as many steps a stage, and planning by their square.
        if self.stages > MOST_STAGES {
            return Err(format!("stages is {}, must be 1 to {MOST_STAGES}", self.stages));
        }
        in_range([
            ("feedforward_channels", self.feedforward_channels),
            ("heads", self.heads),
            ("norm_groups", self.norm_groups),
        ])?;
        if !channels.is_multiple_of(self.heads) {
            return Err(format!("{channels} channels are not a multiple of heads"));
        }
        Ok(())
    }

    /// Whether tensors of the one fit the other but for the number of kernels.
    pub fn same_network(&self, other: &Head) -> bool {
        Head { proposals: 0, ..*self } == Head { proposals: 0, ..*other }
    }

    /// Class logits `[B, N, classes]` and mask logits `[B, N, H / 8, W / 8]` of the last stage.
    pub(super) fn build(
        config: &Config,
        b: &mut Builder,
        pyramid: &[ValueId],
        taps: &mut Taps,
    ) -> Result<[ValueId; 2]> {
        let mut objects = kernel_head::kernel_head(b, config, pyramid, taps)?;
        let mut cls_score = None;
        for stage in 0..config.head.stages {
            taps.stage(b, stage);
            let out = kernel_update_head(b, config, &format!("{STAGES}{stage}"), objects)?;
            let tap = |name: &str| format!("s{stage}.{name}");
            taps.push(tap("x_feat"), out.x_feat, TapLayout::Same);
            taps.push(tap("feat_transform"), out.feat_transform, TapLayout::Features);
            taps.push(tap("obj_feat_updator"), out.obj_feat_updator, TapLayout::ObjectRows);
            taps.push(tap("obj_feat_attn"), out.obj_feat_attn, TapLayout::Same);
            taps.push(tap("obj_feat_out"), out.objects.kernels, TapLayout::Objects);
            taps.push(tap("cls_score"), out.cls_score, TapLayout::Same);
            taps.push(tap("mask_preds"), out.objects.masks, TapLayout::Same);
            objects = out.objects;
            cls_score = Some(out.cls_score);
        }
        let cls_score = cls_score.ok_or_else(|| Error::usage("a model needs at least one stage"))?;
        Ok([cls_score, objects.masks])
    }

    /// What tensors of the first stage and the kernels show of a model: the head, the width that it reads,
    /// and the number of classes. What they do not show is as in the official models.
    ///
    /// # Errors
    /// The name of a tensor that such a model has, and this one has not.
    pub(super) fn recognise(found: &Evidence<'_>) -> Result<(Head, usize, usize), String> {
        let need = |name: &str, axis: usize| found.dim(name, axis).ok_or_else(|| name.to_string());
        let kernels = "rpn_head.init_kernels.weight";
        let (proposals, channels) = (need(kernels, 0)?, need(kernels, 1)?);
        let classes = need(&format!("{STAGES}0.fc_cls.weight"), 0)?;
        let feedforward_channels = need(&format!("{STAGES}0.ffn.layers.0.0.weight"), 0)?;
        let stages = (0..).take_while(|i| found.has(&format!("{STAGES}{i}.fc_cls.weight"))).count();
        Ok((Head { proposals, stages, feedforward_channels, ..Head::default() }, channels, classes))
    }

    /// Number of stages that parameters of these names are of.
    pub fn count_stages<'a>(names: impl Iterator<Item = &'a str>) -> usize {
        let stage = |name: &'a str| {
            let number = name.strip_prefix(STAGES).or_else(|| name.strip_prefix(decode_head::STAGES))?;
            number.split('.').next()
        };
        names.filter_map(stage).collect::<BTreeSet<&str>>().len()
    }

    /// First axes of tensors that a configuration claims: the tensor, what its rows are, and how many.
    pub(super) fn rows(config: &Config) -> Vec<(String, &'static str, usize)> {
        let (stages, classifier) = match config.decode_head {
            Some(_) => (decode_head::STAGES, decode_head::classifier(config)),
            None => (STAGES, format!("{STAGES}0.fc_cls")),
        };
        let first = |part: &str| format!("{stages}0.{part}");
        let mut rows = vec![
            (format!("{classifier}.weight"), "classes", config.classes.count()),
            (first("fc_mask.weight"), "channels", config.neck.channels),
            (first("ffn.layers.0.0.weight"), "feed-forward channels", config.head.feedforward_channels),
        ];
        if config.decode_head.is_none() {
            rows.insert(0, ("rpn_head.init_kernels.weight".to_string(), "kernels", config.head.proposals));
        }
        rows
    }
}
