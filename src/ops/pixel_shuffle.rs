//! Blocks of pixels as channels of one, and back.

use super::{
    Backward, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs, expect_rank,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[b, p, q, (c factor + i) factor + j] = x[b, p factor + i, q factor + j, c]`, zeros beyond the map.
///
/// Input: `x` `[B, H, W, C]`. Output: `[B, ceil(H / factor), ceil(W / factor), C factor^2]`. The order of
/// channels is that of PyTorch's `pixel_unshuffle` and `unfold`, and with factor 2 that of the patch merging
/// of mmdet's and mmseg's Swin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelUnshuffle {
    /// Side of a block.
    pub factor: usize,
}

/// `y[b, p factor + i, q factor + j, c] = x[b, p, q, (c factor + i) factor + j]`, of what lies on the map:
/// undoes [`PixelUnshuffle`], and each is the other's gradient.
///
/// Input: `x` `[B, ceil(H / factor), ceil(W / factor), C factor^2]`. Output: `[B, H, W, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelShuffle {
    /// Side of a block.
    pub factor: usize,
    /// Height and width of the result.
    pub size: [usize; 2],
}

/// Where the elements of a map `[B, H, W, C]` lie when its blocks are channels of one pixel.
#[derive(Clone, Copy)]
struct Blocks {
    factor: usize,
    map: Shape,
}

impl Blocks {
    /// `[B, ceil(H / factor), ceil(W / factor), C factor^2]`.
    fn shape(&self) -> Shape {
        let [b, h, w, c] = [0, 1, 2, 3].map(|axis| self.map[axis]);
        [b, h.div_ceil(self.factor), w.div_ceil(self.factor), c * self.factor * self.factor].into()
    }

    /// Element of the blocks that `index` of the map is.
    fn place(&self, index: &[usize]) -> [usize; 4] {
        let ([b, y, x, c], f) = ([0, 1, 2, 3].map(|axis| index[axis]), self.factor);
        [b, y / f, x / f, (c * f + y % f) * f + x % f]
    }
}

impl Operator for PixelUnshuffle {
    const NAME: &'static str = "pixel_unshuffle";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let map = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        if self.factor == 0 {
            return Err(format!("blocks of no pixels in map {map}"));
        }
        Ok(vec![inputs[0].with_shape(Blocks { factor: self.factor, map }.shape())])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let blocks = Blocks { factor: self.factor, map: inputs[0].shape() };
        let mut y = Tensor::zeros(blocks.shape());
        let strides = [y.shape()[1], y.shape()[2], y.shape()[3]];
        let values = inputs[0].data().iter();
        for (&value, index) in values.zip(indices(blocks.map)) {
            let [b, row, column, channel] = blocks.place(&index);
            y.data_mut()[((b * strides[0] + row) * strides[1] + column) * strides[2] + channel] = value;
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let x = b.shape(site.inputs[0]);
        let grad = PixelShuffle { factor: self.factor, size: [x[1], x[2]] };
        Ok(vec![Some(b.node(&site.named("dx"), grad, &[site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, factor, shape: &[usize]| {
            Case::new(name, PixelUnshuffle { factor }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 2, &[1, 1, 1, 1]),
            case("even", 2, &[2, 4, 6, 5]),
            case("odd", 2, &[1, 5, 7, 19]),
            case("threes", 3, &[2, 7, 4, 3]),
            case("factor_1", 1, &[1, 3, 2, 4]),
            case("no_images", 2, &[0, 4, 4, 8]),
            case("no_rows", 2, &[1, 0, 4, 8]),
            case("swin_t_0", 2, &[1, 64, 85, 96]).bench(),
            case("swin_l_2", 2, &[1, 25, 43, 768]).bench(),
        ]
    }
}

impl Operator for PixelShuffle {
    const NAME: &'static str = "pixel_shuffle";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let block = self.factor * self.factor;
        let [height, width] = self.size;
        if block == 0 || !x[3].is_multiple_of(block) {
            return Err(format!("the channels of map {x} are no blocks of {0} x {0} pixels", self.factor));
        }
        let map = [x[0], height, width, x[3] / block].into();
        let blocks = Blocks { factor: self.factor, map }.shape();
        if blocks != x {
            return Err(format!("a map {map} in blocks is {blocks}, not {x}"));
        }
        Ok(vec![inputs[0].with_shape(map)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        let [height, width] = self.size;
        let map = [x.shape()[0], height, width, x.shape()[3] / self.factor.pow(2)].into();
        let blocks = Blocks { factor: self.factor, map };
        vec![Tensor::from_fn(map, |index| x.at(&blocks.place(index)))]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let grad = PixelUnshuffle { factor: self.factor };
        Ok(vec![Some(b.node(&site.named("dx"), grad, &[site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, factor, size, shape: &[usize]| {
            Case::new(name, PixelShuffle { factor, size }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 2, [1, 1], &[1, 1, 1, 4]),
            case("even", 2, [4, 6], &[2, 2, 3, 20]),
            case("odd", 2, [5, 7], &[1, 3, 4, 76]),
            case("threes", 3, [7, 4], &[2, 3, 2, 27]),
            case("factor_1", 1, [3, 2], &[1, 3, 2, 4]),
            case("no_images", 2, [4, 4], &[0, 2, 2, 32]),
            case("swin_t_0", 2, [64, 85], &[1, 32, 43, 384]).bench(),
        ]
    }
}

/// All indices of a map, in the order of its elements.
fn indices(map: Shape) -> impl Iterator<Item = [usize; 4]> {
    let [h, w, c] = [map[1], map[2], map[3]];
    (0..map.len()).map(move |i| [i / c / w / h, i / c / w % h, i / c % w, i % c])
}
