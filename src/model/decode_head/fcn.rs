//! Fully convolutional network (Long et al., 2015), as mmseg's `FCNHead` of two convolutions.

use super::Generate;
use crate::error::Result;
use crate::graph::ValueId;
use crate::model::layers::Conv;

/// Two convolutions, then one over what came in beside what they made.
pub(super) fn features(generate: &mut Generate<'_>, level: ValueId) -> Result<ValueId> {
    let conv = Conv::new(generate.channels, 3, 1);
    let y = generate.conv("convs.0", "convs.0", level, conv)?;
    let y = generate.conv("convs.1", "convs.1", y, conv)?;
    let both = generate.concat("cat", &[level, y])?;
    generate.conv("conv_cat", "feats", both, conv)
}
