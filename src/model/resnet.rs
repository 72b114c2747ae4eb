//! ResNet (He et al., 2016), "pytorch" style: the stride of a bottleneck sits on its 3x3 convolution.

use super::layers::{Conv, conv_bn, relu};
use crate::error::{Error, Result};
use crate::graph::{Builder, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::{Binary, MaxPool2d};

/// Output channels of a bottleneck per channel of its 3x3 convolution.
const EXPANSION: usize = 4;

/// The four levels C2..C5 at strides 4, 8, 16, 32, with 256, 512, 1024 and 2048 channels.
pub(super) fn resnet(b: &mut Builder, image: ValueId, depth: usize) -> Result<Vec<ValueId>> {
    let blocks: [usize; 4] = match depth {
        50 => [3, 4, 6, 3],
        101 => [3, 4, 23, 3],
        _ => return Err(Error::usage(format!("ResNet depth {depth} is not 50 or 101"))),
    };
    let x = conv_bn(b, "backbone.conv1", "backbone.bn1", image, Conv::new(64, 7, 2))?;
    let x = relu(b, "backbone.bn1", x)?;
    let pool = MaxPool2d { kernel: [3, 3], stride: [2, 2], padding: [1, 1] };
    let mut x = b.node("backbone.maxpool", pool, &[x])?;
    let mut levels = Vec::new();
    for (level, &count) in blocks.iter().enumerate() {
        for block in 0..count {
            let stride = if level > 0 && block == 0 { 2 } else { 1 };
            let prefix = format!("backbone.layer{}.{block}", level + 1);
            x = bottleneck(b, &prefix, x, 64 << level, stride)?;
        }
        levels.push(x);
    }
    Ok(levels)
}

fn bottleneck(b: &mut Builder, p: &str, x: ValueId, width: usize, stride: usize) -> Result<ValueId> {
    let c_out = width * EXPANSION;
    let convs = [Conv::new(width, 1, 1), Conv::new(width, 3, stride), Conv::new(c_out, 1, 1)];
    let mut y = x;
    for (i, geometry) in (1..).zip(convs) {
        y = conv_bn(b, &format!("{p}.conv{i}"), &format!("{p}.bn{i}"), y, geometry)?;
        if i < convs.len() {
            y = relu(b, &format!("{p}.bn{i}"), y)?;
        }
    }
    let identity = if b.shape(x).last() == c_out && stride == 1 {
        x
    } else {
        let geometry = Conv::new(c_out, 1, stride);
        conv_bn(b, &format!("{p}.downsample.0"), &format!("{p}.downsample.1"), x, geometry)?
    };
    let sum = b.node(&format!("{p}.add"), Binary { kind: BinaryKind::Add }, &[y, identity])?;
    relu(b, p, sum)
}
