use super::in_range;
use serde::{Deserialize, Serialize};

/// What becomes of a photo before the network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    /// Images are resized so that they fit into (short side, long side) pixels, keeping their ratio.
    pub size: [usize; 2],
    /// How pixels are normalised.
    #[serde(skip_serializing_if = "Normalization::is_default")]
    pub normalization: Normalization,
}

impl Default for Input {
    /// As for the official models.
    fn default() -> Self {
        Input { size: [800, 1333], normalization: Normalization::default() }
    }
}

impl Input {
    pub(super) fn validate(&self) -> Result<(), String> {
        in_range([("size", self.size[0].min(self.size[1]))])?;
        let Normalization { mean, std } = self.normalization;
        if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(format!(
                "normalization by mean {mean:?} and std {std:?}: must be finite, std positive"
            ));
        }
        Ok(())
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
