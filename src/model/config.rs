//! What varies between models. Small enough to sit in a checkpoint's metadata, so that a file describes
//! itself.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What a model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One mask per object, objects may overlap.
    Instance,
    /// Every pixel belongs to one segment: an object ("thing") or a region ("stuff").
    Panoptic,
}

impl Task {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Task::Instance => "instance",
            Task::Panoptic => "panoptic",
        }
    }
}

/// The convolutional network under the pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum BackboneConfig {
    /// ResNet of "pytorch" style (stride on the 3x3 convolution).
    #[serde(rename = "resnet")]
    ResNet {
        /// 50 or 101.
        depth: usize,
    },
    /// EfficientNet-Lite: inverted bottlenecks with ReLU6 and no squeeze-excite.
    #[serde(rename = "efficientnet_lite")]
    EfficientNetLite {
        /// 0 or 2.
        variant: usize,
    },
}

impl BackboneConfig {
    /// Name such as `resnet50` or `efficientnet_lite0`.
    pub fn name(&self) -> String {
        match self {
            BackboneConfig::ResNet { depth } => format!("resnet{depth}"),
            BackboneConfig::EfficientNetLite { variant } => format!("efficientnet_lite{variant}"),
        }
    }

    /// The configuration as JSON, for the metadata of a checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// How pixels become the network's input: `(value - mean) / std`, by channel (R, G, B) on the scale 0..255.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Subtracted.
    pub mean: [f32; 3],
    /// Divided by; positive.
    pub std: [f32; 3],
}

impl Normalization {
    /// Mean and standard deviation of ImageNet's training images: ResNet and all official models.
    pub const IMAGENET: Normalization =
        Normalization { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
    /// About -1 to 1, as EfficientNet-Lite was trained.
    pub const SYMMETRIC: Normalization = Normalization { mean: [127.0; 3], std: [128.0; 3] };

    fn is_default(&self) -> bool {
        *self == Normalization::default()
    }
}

impl Default for Normalization {
    /// [`Normalization::IMAGENET`].
    fn default() -> Self {
        Normalization::IMAGENET
    }
}

/// A K-Net.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the model.
    pub name: String,
    /// What it predicts.
    pub task: Task,
    /// Backbone.
    pub backbone: BackboneConfig,
    /// Width C of pyramid and heads. A multiple of the group-norm groups and attention heads.
    #[serde(default = "default_channels")]
    pub channels: usize,
    /// Number of instance kernels.
    #[serde(default = "default_proposals")]
    pub proposals: usize,
    /// Number of countable classes, which come first; 0 for models of regions alone (semantic segmentation).
    pub thing_classes: usize,
    /// Number of region classes, which follow; 0 for instance models.
    #[serde(default)]
    pub stuff_classes: usize,
    /// Number of kernel update stages.
    #[serde(default = "default_stages")]
    pub stages: usize,
    /// Hidden width of the feed-forward network of a stage.
    #[serde(default = "default_feedforward_channels")]
    pub feedforward_channels: usize,
    /// Attention heads of a stage.
    #[serde(default = "default_heads")]
    pub heads: usize,
    /// Groups of every group norm.
    #[serde(default = "default_norm_groups")]
    pub norm_groups: usize,
    /// Images are resized so that they fit into (short side, long side) pixels, keeping their ratio.
    #[serde(default = "default_size")]
    pub size: [usize; 2],
    /// How pixels are normalised.
    #[serde(default, skip_serializing_if = "Normalization::is_default")]
    pub normalization: Normalization,
    /// Most instances reported for an image.
    #[serde(default = "default_max_per_image")]
    pub max_per_image: usize,
    /// The score of an instance is multiplied by the quality of its mask: the mean probability of the pixels
    /// that are more likely inside than outside, at the resolution of the mask logits. Official models leave
    /// it off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mask_score: bool,
    /// Panoptic: things below this score are dropped before the merge.
    #[serde(default = "default_instance_score_threshold")]
    pub instance_score_threshold: f64,
    /// Panoptic: a segment must keep this share of its mask.
    #[serde(default = "default_overlap_threshold")]
    pub overlap_threshold: f64,
    /// Names of all classes, things first. Empty stands for COCO's names if the counts are COCO's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// Category ids of all classes in the data set they were learnt from, things first; results carry them.
    /// Empty stands for COCO's if the names are COCO's, else for the class indices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_ids: Vec<u32>,
}

fn default_channels() -> usize {
    256
}
fn default_proposals() -> usize {
    100
}
fn default_stages() -> usize {
    3
}
fn default_feedforward_channels() -> usize {
    2048
}
fn default_heads() -> usize {
    8
}
fn default_norm_groups() -> usize {
    32
}
fn default_size() -> [usize; 2] {
    [800, 1333]
}
fn default_max_per_image() -> usize {
    100
}
fn default_instance_score_threshold() -> f64 {
    0.3
}
fn default_overlap_threshold() -> f64 {
    0.6
}

/// Names [`Config::named`] knows.
pub const MODEL_NAMES: [&str; 6] = [
    "knet_s3_r50_fpn",
    "knet_s3_r101_fpn",
    "knet_s3_r50_fpn_panoptic",
    "knet_s3_r101_fpn_panoptic",
    "knet_s3_lite0_fpn",
    "knet_s3_lite2_fpn",
];

/// Most stages of a model; the paper's have three.
const MOST_STAGES: usize = 256;

impl Config {
    /// The COCO model of this name: an official one, or (`lite` in its name) one of ours, smaller and for
    /// smaller images.
    ///
    /// # Errors
    /// [`Error::Usage`] for any other name, suggesting the nearest.
    pub fn named(name: &str) -> Result<Config> {
        if !MODEL_NAMES.contains(&name) {
            let nearest = MODEL_NAMES
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let hint = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            return Err(Error::usage(format!(
                "unknown model `{name}`{hint} (known: {})",
                MODEL_NAMES.join(", ")
            )));
        }
        let panoptic = name.ends_with("_panoptic");
        let backbone = match name.split('_').nth(2) {
            Some("lite0") => BackboneConfig::EfficientNetLite { variant: 0 },
            Some("lite2") => BackboneConfig::EfficientNetLite { variant: 2 },
            Some("r101") => BackboneConfig::ResNet { depth: 101 },
            _ => BackboneConfig::ResNet { depth: 50 },
        };
        let official = Config {
            name: name.to_string(),
            task: if panoptic { Task::Panoptic } else { Task::Instance },
            backbone,
            channels: default_channels(),
            proposals: default_proposals(),
            thing_classes: 80,
            stuff_classes: if panoptic { 53 } else { 0 },
            stages: default_stages(),
            feedforward_channels: default_feedforward_channels(),
            heads: default_heads(),
            norm_groups: default_norm_groups(),
            size: default_size(),
            normalization: Normalization::IMAGENET,
            max_per_image: default_max_per_image(),
            mask_score: false,
            instance_score_threshold: default_instance_score_threshold(),
            overlap_threshold: default_overlap_threshold(),
            class_names: Vec::new(),
            class_ids: Vec::new(),
        };
        Ok(match backbone {
            BackboneConfig::ResNet { .. } => official,
            BackboneConfig::EfficientNetLite { .. } => Config {
                channels: 96,
                proposals: 16,
                feedforward_channels: 512,
                size: [320, 320],
                normalization: Normalization::SYMMETRIC,
                ..official
            },
        })
    }

    /// The configuration in the metadata of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field that is missing, unknown or of the wrong kind, or out of range.
    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config =
            serde_json::from_str(text).map_err(|e| Error::usage(format!("model configuration: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as JSON, for the metadata of a checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Things and stuff together.
    pub fn classes(&self) -> usize {
        self.thing_classes + self.stuff_classes
    }

    /// Objects each stage refines: the instance kernels, and one per stuff class.
    pub fn objects(&self) -> usize {
        self.proposals + self.stuff_classes
    }

    /// Checks every field, so that building the graph cannot fail for a reason a user would not understand.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, reason: String| {
            if ok { Ok(()) } else { Err(Error::usage(format!("model `{}`: {reason}", self.name))) }
        };
        // Each by itself first: their sum must not wrap.
        for (field, classes) in [("thing_classes", self.thing_classes), ("stuff_classes", self.stuff_classes)]
        {
            check(classes <= 1 << 16, format!("{field} is {classes}, at most 65536"))?;
        }
        // A graph grows by as many steps a stage, and planning by their square.
        check(
            (1..=MOST_STAGES).contains(&self.stages),
            format!("stages is {}, must be 1 to {MOST_STAGES}", self.stages),
        )?;
        let positive = [
            ("channels", self.channels),
            ("proposals", self.proposals),
            ("classes", self.classes()),
            ("feedforward_channels", self.feedforward_channels),
            ("heads", self.heads),
            ("norm_groups", self.norm_groups),
            ("max_per_image", self.max_per_image),
            ("size", self.size[0].min(self.size[1])),
        ];
        for (field, value) in positive {
            check((1..=1 << 16).contains(&value), format!("{field} is {value}, must be 1 to 65536"))?;
        }
        for (field, divisor) in [("heads", self.heads), ("norm_groups", self.norm_groups), ("4", 4)] {
            let channels = self.channels;
            check(
                channels.is_multiple_of(divisor),
                format!("{channels} channels are not a multiple of {field}"),
            )?;
        }
        match self.backbone {
            BackboneConfig::ResNet { depth } => {
                check(matches!(depth, 50 | 101), format!("ResNet depth {depth} is not 50 or 101"))?;
            }
            BackboneConfig::EfficientNetLite { variant } => {
                check(
                    matches!(variant, 0 | 2),
                    format!("EfficientNet-Lite variant {variant} is not 0 or 2"),
                )?;
            }
        }
        check(
            (self.task == Task::Panoptic) == (self.stuff_classes > 0),
            format!("task {} with {} stuff classes", self.task.name(), self.stuff_classes),
        )?;
        let Normalization { mean, std } = self.normalization;
        check(
            mean.iter().all(|m| m.is_finite()) && std.iter().all(|s| s.is_finite() && *s > 0.0),
            format!("normalization by mean {mean:?} and std {std:?}: must be finite, std positive"),
        )?;
        let names = self.class_names.len();
        check(
            names == 0 || names == self.classes(),
            format!("{names} class names for {} classes", self.classes()),
        )?;
        let (ids, distinct) = (&self.class_ids, self.class_ids.iter().collect::<HashSet<_>>().len());
        check(
            ids.is_empty() || (ids.len() == self.classes() && distinct == ids.len()),
            format!("{} class ids, {distinct} of them distinct, for {} classes", ids.len(), self.classes()),
        )?;
        let thresholds = [self.instance_score_threshold, self.overlap_threshold];
        check(
            thresholds.iter().all(|t| (0.0..=1.0).contains(t)),
            format!("thresholds {thresholds:?} must be between 0 and 1"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trip() {
        for name in MODEL_NAMES {
            let config = Config::named(name).unwrap();
            assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn options_of_the_defaults_are_not_written() {
        let json = Config::named("knet_s3_r50_fpn").unwrap().to_json();
        assert!(!json.contains("normalization") && !json.contains("mask_score"), "{json}");
        let mut config = Config::named("knet_s3_lite0_fpn").unwrap();
        config.mask_score = true;
        let json = config.to_json();
        assert!(json.contains(r#""backbone":{"type":"efficientnet_lite","variant":0}"#), "{json}");
        assert!(json.contains(r#""mask_score":true"#), "{json}");
        assert!(json.contains(r#""mean":[127.0,127.0,127.0]"#), "{json}");
        assert_eq!(Config::from_json(&json).unwrap(), config);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let mut config = Config::named("knet_s3_lite0_fpn").unwrap();
        config.backbone = BackboneConfig::EfficientNetLite { variant: 1 };
        assert!(config.validate().unwrap_err().to_string().contains("variant 1"));
        config.backbone = BackboneConfig::EfficientNetLite { variant: 2 };
        config.normalization.std[1] = 0.0;
        assert!(config.validate().unwrap_err().to_string().contains("std [128.0, 0.0, 128.0]"));
    }

    #[test]
    fn errors_name_the_field_or_the_nearest_model() {
        let error = Config::named("knet_s3_r50_fpm").unwrap_err().to_string();
        assert!(error.contains("did you mean `knet_s3_r50_fpn`"), "{error}");
        let mut config = Config::named("knet_s3_r50_fpn").unwrap();
        config.channels = 100;
        assert!(config.validate().unwrap_err().to_string().contains("100 channels"));
        let error = Config::from_json(r#"{"name": "x", "task": "instance"}"#).unwrap_err().to_string();
        assert!(error.contains("backbone"), "{error}");
    }
}
