//! Pyramid pooling (Zhao et al., 2017), as mmseg's `PSPHead`.

use super::Generate;
use crate::error::Result;
use crate::graph::ValueId;
use crate::model::layers::Conv;
use crate::ops::AdaptiveAvgPool2d;

/// Bins of a side, by module.
const SCALES: [usize; 4] = [1, 2, 3, 6];

/// The level beside its means over ever smaller bins, and a convolution over all of it, whose tap is `tap`.
pub(super) fn features(generate: &mut Generate<'_>, level: ValueId, tap: &str) -> Result<ValueId> {
    let mut maps = vec![level];
    for (index, scale) in SCALES.into_iter().enumerate() {
        let name = format!("psp_modules.{index}");
        let pool = AdaptiveAvgPool2d { size: [scale; 2] };
        let pooled = generate.b.node(&format!("{}.{name}.0", generate.prefix), pool, &[level])?;
        let y = generate.conv(&format!("{name}.1"), &name, pooled, Conv::new(generate.channels, 1, 1))?;
        maps.push(generate.resized(&name, y, level)?);
    }
    let all = generate.concat("psp_modules", &maps)?;
    generate.conv("bottleneck", tap, all, Conv::new(generate.channels, 3, 1))
}
