//! The head of boxes (Tian et al., *FCOS*, 2019) over the levels of a pyramid, with the parameters of mask
//! heads.

use super::{CondInst, Config, MASK_CHANNELS, STRIDES};
use crate::error::Result;
use crate::graph::{Builder, Layout, ValueId};
use crate::model::layers::{Conv, conv_bias_for, gn_relu, sigmoid};
use crate::model::{TapLayout, Taps};
use crate::ops::{Concat, DecodePoints, DynamicMaskHead, GatherRows, Reshape, Role, TopK};

/// Groups of its norms.
pub(super) const GROUPS: usize = 32;

/// Convolutions before what is said of a place.
const CONVS: usize = 4;

/// The size of objects of a level, in its strides.
const RANGE: usize = 8;

/// What may become detections, of all levels.
pub(super) struct Candidates {
    /// In pixels of the network's input, `[B, N, 4]`.
    pub boxes: ValueId,
    /// 0 of those that do not count, `[B, N]`.
    pub scores: ValueId,
    /// `[B, N]`.
    pub labels: ValueId,
    /// As [`DecodePoints`] gives them, `[B, N, 3]`.
    pub places: ValueId,
    /// Of their mask heads, `[B, N, P]`.
    pub parameters: ValueId,
}

/// The best pairs of a place and a class of each level.
pub(super) fn candidates(
    condinst: &CondInst,
    config: &Config,
    b: &mut Builder,
    levels: &[ValueId],
    image: ValueId,
    taps: &mut Taps,
) -> Result<Candidates> {
    let classes = config.classes.count();
    let length = DynamicMaskHead::parameters(MASK_CHANNELS);
    let (mut said, mut parameters) = (Vec::new(), Vec::new());
    for (level, &map) in levels.iter().enumerate() {
        let cls = tower(b, "cls_convs", level, map)?;
        let reg = tower(b, "reg_convs", level, map)?;
        let [cls, sides, central, params] = [
            ("conv_cls", "cls", cls, classes),
            ("conv_reg", "reg", reg, 4),
            ("conv_centerness", "centerness", reg, 1),
            ("controller", "params", reg, length),
        ]
        .map(|(part, tap, x, channels)| -> Result<ValueId> {
            let (prefix, conv) = (format!("bbox_head.{part}"), Conv::new(channels, 3, 1));
            let role = if part == "controller" { Role::Rows } else { Role::Exact };
            let y = conv_bias_for(b, &format!("{prefix}.level.{level}"), &prefix, x, conv, role)?;
            taps.push(format!("{tap}.L{level}"), y, TapLayout::Features);
            Ok(y)
        });
        let (cls, sides, central, params) = (cls?, sides?, central?, params?);
        let scale = b.param(&format!("bbox_head.scales.{level}.scale"), &[], Layout::Plain)?;
        let name = |part: &str| format!("bbox_head.{part}.{level}");
        let score = sigmoid(b, &name("score"), cls)?;
        let shape = b.shape(score);
        let (batch, pixels) = (shape[0], shape[1] * shape[2]);
        let row = Reshape { shape: [batch, pixels * classes].into() };
        let row = b.node(&name("scores"), row, &[score])?;
        let k = condinst.candidates.min(pixels * classes);
        let best = b.nodes(&name("best"), TopK { k }, &[row])?;
        said.extend([sides, central, scale, best[0], best[1]]);
        let rows = Reshape { shape: [batch, pixels, length].into() };
        let rows = b.node(&name("parameters"), rows, &[params])?;
        let gather = GatherRows { share: classes };
        parameters.push(b.node(&name("best.parameters"), gather, &[rows, best[1]])?);
    }
    said.push(image);
    let decode = DecodePoints {
        strides: STRIDES.to_vec(),
        classes,
        score_threshold: condinst.score_threshold,
        range: RANGE,
    };
    let found = b.nodes("bbox_head.candidates", decode, &said)?;
    let parameters = b.node("bbox_head.candidates.parameters", Concat { axis: 1 }, &parameters)?;
    let [boxes, scores, labels, places] = [found[0], found[1], found[2], found[3]];
    Ok(Candidates { boxes, scores, labels, places, parameters })
}

/// Convolutions with a bias, group norm and ReLU.
fn tower(b: &mut Builder, part: &str, level: usize, x: ValueId) -> Result<ValueId> {
    let channels = b.shape(x)[3];
    (0..CONVS).try_fold(x, |x, layer| {
        let prefix = format!("bbox_head.{part}.{layer}");
        let (name, conv) = (format!("{prefix}.level.{level}"), format!("{prefix}.conv"));
        let y = conv_bias_for(b, &format!("{name}.conv"), &conv, x, Conv::new(channels, 3, 1), Role::Map)?;
        gn_relu(b, &name, &prefix, y, GROUPS)
    })
}
