//! Mean over bins of a map, as PyTorch's `adaptive_avg_pool2d` cuts them.

use super::{Backward, Gradient, Inferred, Operator, ValueType, case::Case, expect_inputs, expect_rank};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `y[b, p, q, c]` is the mean of `x[b, .., .., c]` over bin (p, q): see [`AdaptiveAvgPool2d::bin`].
///
/// Input: `x` `[B, H, W, C]` with at least one pixel. Output: `[B, size[0], size[1], C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdaptiveAvgPool2d {
    /// Bins, down and across.
    pub size: [usize; 2],
}

impl AdaptiveAvgPool2d {
    /// Bin `index` of `count` along an axis of `input` pixels: from `floor(index input / count)` up to, not
    /// including, `ceil((index + 1) input / count)`. Bins overlap where `count` does not divide the pixels,
    /// and repeat where there are more bins than pixels.
    pub fn bin(input: usize, count: usize, index: usize) -> Range<usize> {
        index * input / count..((index + 1) * input).div_ceil(count)
    }

    /// Bins that hold pixel `at` of an axis, of `count` over `input` pixels.
    pub fn bins(input: usize, count: usize, at: usize) -> Range<usize> {
        at * count / input..((at + 1) * count).div_ceil(input)
    }
}

impl Operator for AdaptiveAvgPool2d {
    const NAME: &'static str = "adaptive_avg_pool2d";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let [p, q] = self.size;
        if x[1] * x[2] == 0 || p * q == 0 {
            return Err(format!("map {x} in {p} x {q} bins: neither may be without pixels"));
        }
        Ok(vec![inputs[0].with_shape([x[0], p, q, x[3]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        vec![Tensor::from_fn([batch, self.size[0], self.size[1], c], |at| {
            let (rows, columns) = (Self::bin(h, self.size[0], at[1]), Self::bin(w, self.size[1], at[2]));
            let pixels = rows.len() * columns.len();
            let row = |y: usize| columns.clone().map(|column| x.at(&[at[0], y, column, at[3]])).sum::<f64>();
            rows.map(row).sum::<f64>() / pixels as f64
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let x = b.shape(site.inputs[0]);
        let grad = AdaptiveAvgPool2dGrad { size: [x[1], x[2]] };
        Ok(vec![Some(b.node(&site.named("dx"), grad, &[site.grad()?])?)])
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, size, shape: &[usize]| Case::new(name, AdaptiveAvgPool2d { size }, &[shape]);
        vec![
            case("one", [1, 1], &[1, 1, 1, 1]),
            case("mean", [1, 1], &[2, 5, 7, 19]),
            case("divided", [2, 3], &[1, 4, 6, 8]),
            case("overlapping", [3, 2], &[2, 5, 7, 5]),
            case("repeated", [6, 6], &[1, 2, 4, 33]),
            case("no_images", [2, 2], &[0, 4, 4, 8]),
            case("no_channels", [2, 2], &[1, 4, 4, 0]),
            case("psp_1", [1, 1], &[1, 64, 64, 2048]).bench(),
            case("psp_6", [6, 6], &[1, 64, 64, 2048]).bench(),
        ]
    }
}

/// `dx[b, y, x, c] = sum over the bins that hold the pixel of dy[b, p, q, c] / pixels of the bin`.
///
/// Input: `dy` `[B, P, Q, C]`. Output: `[B, size[0], size[1], C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdaptiveAvgPool2dGrad {
    /// Height and width of the map that was pooled.
    pub size: [usize; 2],
}

impl Operator for AdaptiveAvgPool2dGrad {
    const NAME: &'static str = "adaptive_avg_pool2d_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let dy = expect_rank(inputs, 0, 4, "[B, P, Q, C]")?;
        let [h, w] = self.size;
        if dy[1] * dy[2] == 0 || h * w == 0 {
            return Err(format!("gradient {dy} of a map of {h} x {w} pixels: neither may be without pixels"));
        }
        Ok(vec![inputs[0].with_shape([dy[0], h, w, dy[3]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let dy = inputs[0];
        let [batch, p, q, c] = [0, 1, 2, 3].map(|axis| dy.shape()[axis]);
        let [h, w] = self.size;
        vec![Tensor::from_fn([batch, h, w, c], |at| {
            let columns = AdaptiveAvgPool2d::bins(w, q, at[2]);
            let share = |row: usize, column: usize| {
                let pixels =
                    AdaptiveAvgPool2d::bin(h, p, row).len() * AdaptiveAvgPool2d::bin(w, q, column).len();
                dy.at(&[at[0], row, column, at[3]]) / pixels as f64
            };
            let of_row = |row: usize| columns.clone().map(|column| share(row, column)).sum::<f64>();
            AdaptiveAvgPool2d::bins(h, p, at[1]).map(of_row).sum()
        })]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case =
            |name: &str, size, shape: &[usize]| Case::new(name, AdaptiveAvgPool2dGrad { size }, &[shape]);
        vec![
            case("one", [1, 1], &[1, 1, 1, 1]),
            case("mean", [5, 7], &[2, 1, 1, 19]),
            case("divided", [4, 6], &[1, 2, 3, 8]),
            case("overlapping", [5, 7], &[2, 3, 2, 5]),
            case("repeated", [2, 4], &[1, 6, 6, 33]),
            case("no_images", [4, 4], &[0, 2, 2, 8]),
            case("psp_6", [32, 32], &[2, 6, 6, 512]).bench(),
        ]
    }
}
