//! Feature pyramid (Lin et al., 2017) as K-Net uses it: no norm, no activation, no extra level.

use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::config::in_range;
use crate::model::layers::{Conv, conv_bias};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{Binary, Resize};
use serde::{Deserialize, Serialize};

/// A feature pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fpn {
    /// Width C of the pyramid, and of the heads that read it.
    pub channels: usize,
}

impl Default for Fpn {
    /// As in the official models.
    fn default() -> Self {
        Fpn { channels: 256 }
    }
}

impl Fpn {
    /// A sentence on a field that cannot be, or on levels, of a backbone of these strides, that it cannot
    /// join.
    pub(in crate::model) fn validate(&self, strides: [usize; 4]) -> Result<(), String> {
        in_range([("channels", self.channels)])?;
        // Half of them encode rows of a position and half columns, in pairs of sine and cosine.
        if !self.channels.is_multiple_of(4) {
            return Err(format!("{} channels are not a multiple of 4", self.channels));
        }
        if strides != [4, 8, 16, 32] {
            return Err(format!(
                "the pyramid joins levels at strides 4 to 32, the backbone's have {strides:?}"
            ));
        }
        Ok(())
    }

    /// Levels P2..P5 of as many channels each, from C2..C5, or those after the first of both: lateral 1x1,
    /// top-down nearest upsampling, output 3x3.
    pub(in crate::model) fn build(&self, b: &mut Builder, levels: &[ValueId]) -> Result<Vec<ValueId>> {
        let channels = self.channels;
        let mut merged: Vec<ValueId> = Vec::new();
        for (i, &level) in levels.iter().enumerate() {
            let prefix = format!("neck.lateral_convs.{i}.conv");
            merged.push(conv_bias(b, &prefix, level, Conv::new(channels, 1, 1))?);
        }
        for i in (1..levels.len()).rev() {
            let below = b.shape(merged[i - 1]);
            let size = [below[1], below[2]];
            let resize = Resize { mode: ResizeMode::Nearest, size, step: None };
            let upsampled = b.node(&format!("neck.upsample.{}", i - 1), resize, &[merged[i]])?;
            let add = Binary { kind: BinaryKind::Add };
            merged[i - 1] = b.node(&format!("neck.merged.{}", i - 1), add, &[merged[i - 1], upsampled])?;
        }
        let output = |(i, &x): (usize, &ValueId)| {
            conv_bias(b, &format!("neck.fpn_convs.{i}.conv"), x, Conv::new(channels, 3, 1))
        };
        merged.iter().enumerate().map(output).collect()
    }
}
