//! Semantic FPN (Kirillov et al., 2019) as wrapped by K-Net: all levels meet at stride 8.

use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::Config;
use crate::model::layers::{Conv, conv_gn_relu};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{Binary, Resize, SinePositionalEncoding};

const PREFIX: &str = "rpn_head.localization_fpn";

/// Localisation and semantic features at stride 8, `[B, H / 8, W / 8, C]` each.
///
/// P2 is brought down by one strided convolution, P3 stays, P4 and P5 alternate convolutions and bilinear
/// x2 upsampling; P5 first gets a sine positional encoding. The sum feeds two 1x1 branches.
pub(in crate::model) fn semantic_fpn(
    b: &mut Builder,
    config: &Config,
    pyramid: &[ValueId],
) -> Result<[ValueId; 2]> {
    let last = pyramid.len() - 1;
    let mut sum = None;
    for (level, &input) in pyramid.iter().enumerate() {
        let mut x = input;
        if level == last {
            x = add_position(b, config, x)?;
        }
        let convs = level.max(1);
        for i in 0..convs {
            let stride = if level == 0 { 2 } else { 1 };
            let prefix = format!("{PREFIX}.convs_all_levels.{level}.conv{i}");
            x = conv_gn_relu(
                b,
                &prefix,
                x,
                Conv::new(config.neck.channels, 3, stride),
                config.head.norm_groups,
            )?;
            if i + 1 < convs {
                let shape = b.shape(x);
                let size = [2 * shape[1], 2 * shape[2]];
                let mode = ResizeMode::Bilinear { align_corners: false };
                x = b.node(
                    &format!("{prefix}.upsample"),
                    Resize { mode, size, step: Some([0.5, 0.5]) },
                    &[x],
                )?;
            }
        }
        sum = Some(match sum {
            None => x,
            Some(sum) => {
                let add = Binary { kind: BinaryKind::Add };
                b.node(&format!("{PREFIX}.sum.{level}"), add, &[sum, x])?
            }
        });
    }
    let sum = sum.unwrap_or(pyramid[0]);
    let mut branch = |name: &str| {
        let prefix = format!("{PREFIX}.{name}");
        conv_gn_relu(b, &prefix, sum, Conv::new(config.neck.channels, 1, 1), config.head.norm_groups)
    };
    Ok([branch("conv_pred")?, branch("aux_convs.0")?])
}

fn add_position(b: &mut Builder, config: &Config, x: ValueId) -> Result<ValueId> {
    let shape = b.shape(x);
    let features = config.neck.channels / 2;
    let encoding = SinePositionalEncoding { height: shape[1], width: shape[2], features };
    let encoding = b.node(&format!("{PREFIX}.positional_encoding"), encoding, &[])?;
    b.node(&format!("{PREFIX}.positioned"), Binary { kind: BinaryKind::Add }, &[x, encoding])
}
