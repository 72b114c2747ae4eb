use super::in_range;
use serde::{Deserialize, Serialize};

/// What becomes of the network's results.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Test {
    /// Most instances reported for an image.
    pub max_per_image: usize,
    /// The score of an instance is multiplied by the quality of its mask: the mean probability of the pixels
    /// that are more likely inside than outside, at the resolution of the mask logits. Official models leave
    /// it off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mask_score: bool,
    /// Panoptic: things below this score are dropped before the merge.
    pub instance_score_threshold: f64,
    /// Panoptic: a segment must keep this share of its mask.
    pub overlap_threshold: f64,
}

impl Default for Test {
    /// As of the official models.
    fn default() -> Self {
        Test { max_per_image: 100, mask_score: false, instance_score_threshold: 0.3, overlap_threshold: 0.6 }
    }
}

impl Test {
    pub(super) fn validate(&self) -> Result<(), String> {
        in_range([("max_per_image", self.max_per_image)])?;
        let thresholds = [self.instance_score_threshold, self.overlap_threshold];
        if !thresholds.iter().all(|t| (0.0..=1.0).contains(t)) {
            return Err(format!("thresholds {thresholds:?} must be between 0 and 1"));
        }
        Ok(())
    }
}
