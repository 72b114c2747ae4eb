//! Atrous spatial pyramid pooling (DeepLabV3; Chen et al., 2017), as mmseg's `ASPPHead`.

use super::Generate;
use crate::error::Result;
use crate::graph::ValueId;
use crate::model::layers::Conv;
use crate::ops::AdaptiveAvgPool2d;

/// Step between the taps of each module; one of step 1 has a single tap.
const DILATIONS: [usize; 4] = [1, 12, 24, 36];

/// The mean over the map beside convolutions of ever wider taps, and a convolution over all of it.
pub(super) fn features(generate: &mut Generate<'_>, level: ValueId) -> Result<ValueId> {
    let channels = generate.channels;
    let pool = AdaptiveAvgPool2d { size: [1; 2] };
    let mean = generate.b.node(&format!("{}.image_pool.0", generate.prefix), pool, &[level])?;
    let mean = generate.conv("image_pool.1", "image_pool", mean, Conv::new(channels, 1, 1))?;
    let mut maps = vec![generate.resized("image_pool", mean, level)?];
    for (index, dilation) in DILATIONS.into_iter().enumerate() {
        let name = format!("aspp_modules.{index}");
        let kernel = if dilation == 1 { 1 } else { 3 };
        let conv = Conv::new(channels, kernel, 1).dilated(dilation);
        maps.push(generate.conv(&name, &name, level, conv)?);
    }
    let all = generate.concat("aspp_modules", &maps)?;
    generate.conv("bottleneck", "feats", all, Conv::new(channels, 3, 1))
}
