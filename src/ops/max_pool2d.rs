//! Maximum over windows.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs,
    expect_rank, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[b, p, q, c]` is the maximum of `x[b, .., .., c]` over the window at `(p, q) * stride - padding`.
///
/// Input: `[B, H, W, C]`. Output: `[B, P, Q, C]`. Pairs are (vertical, horizontal). Pixels outside the map do
/// not count; NaN wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxPool2d {
    /// Window size.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// How far windows reach beyond each side of the map; at most half a window.
    pub padding: [usize; 2],
}

impl MaxPool2d {
    /// Output size along `axis` of a map of `size` pixels, or `None` if no window fits.
    pub fn extent(&self, axis: usize, size: usize) -> Option<usize> {
        Some((size + 2 * self.padding[axis]).checked_sub(self.kernel[axis])? / self.stride[axis] + 1)
    }

    /// Source pixels of the window of output `index` along `axis` of a map of `size` pixels.
    pub fn window(&self, axis: usize, size: usize, index: usize) -> std::ops::Range<usize> {
        let start = index * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.padding[axis]);
        start.saturating_sub(self.padding[axis])..end.min(size)
    }
}

impl Operator for MaxPool2d {
    const NAME: &'static str = "max_pool2d";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let (kernel, padding) = (self.kernel, self.padding);
        if kernel.contains(&0) || self.stride.contains(&0) || (0..2).any(|a| padding[a] > kernel[a] / 2) {
            return Err(format!(
                "window {kernel:?} and stride {:?} must be positive and padding {padding:?} at most half a window",
                self.stride
            ));
        }
        match (self.extent(0, x[1]), self.extent(1, x[2])) {
            (Some(p), Some(q)) if x[1] > 0 && x[2] > 0 => Ok(vec![inputs[0].with_shape([x[0], p, q, x[3]])]),
            _ => Err(format!("window {kernel:?} (padding {padding:?}) does not fit into map {x}")),
        }
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        let [p, q] = [self.extent(0, h), self.extent(1, w)].map(|size| size.unwrap_or(0));
        vec![Tensor::from_fn([batch, p, q, c], |index| {
            let columns = self.window(1, w, index[2]);
            let mut max = f64::NEG_INFINITY;
            for row in self.window(0, h, index[1]) {
                for column in columns.clone() {
                    let v = x.at(&[index[0], row, column, index[3]]);
                    max = if v > max || v.is_nan() { v } else { max };
                }
            }
            max
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(b.node(
            &site.named("dx"),
            MaxPool2dGrad { pool: *self },
            &[site.inputs[0], site.grad()?],
        )?)])
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        (self.kernel[0] * self.kernel[1] * outputs[0].shape.len()) as u64
    }

    fn cases() -> Vec<Case> {
        let resnet = MaxPool2d { kernel: [3, 3], stride: [2, 2], padding: [1, 1] };
        let case =
            |name: &str, op: MaxPool2d, x: &[usize]| Case::new(name, op, &[x]).tolerance(Tolerance::EXACT);
        vec![
            case("one", resnet, &[1, 1, 1, 1]),
            case("two", resnet, &[1, 2, 2, 2]),
            case("even", resnet, &[1, 8, 6, 3]),
            case("odd", resnet, &[2, 7, 9, 17]),
            case("blocks", resnet, &[1, 9, 6, 77]),
            case("window_over_map", resnet, &[1, 1, 2, 33]),
            case("empty", resnet, &[0, 7, 9, 2]),
            case("subsample", MaxPool2d { kernel: [1, 1], stride: [2, 2], padding: [0, 0] }, &[1, 5, 6, 3]),
            case("uneven", MaxPool2d { kernel: [2, 5], stride: [3, 1], padding: [0, 2] }, &[1, 9, 11, 5]),
            case("stem", resnet, &[1, 400, 672, 64]).bench(),
        ]
    }
}

/// The gradient of [`MaxPool2d`]: each window's goes to its first maximum in scan order, or to its last NaN,
/// as in PyTorch.
///
/// Inputs: `x` `[B, H, W, C]`, `dy` `[B, P, Q, C]`. Output: as `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxPool2dGrad {
    /// The operator that is differentiated.
    pub pool: MaxPool2d,
}

impl Operator for MaxPool2dGrad {
    const NAME: &'static str = "max_pool2d_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let y = self.pool.infer(&inputs[..1])?;
        expect_shape(inputs, 1, y[0].shape, "gradient")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, dy) = (inputs[0], inputs[1]);
        let mut dx = Tensor::zeros(x.shape());
        let [h, w] = [x.shape()[1], x.shape()[2]];
        let [batch, p, q, channels] = [0, 1, 2, 3].map(|axis| dy.shape()[axis]);
        for window in 0..batch * p * q * channels {
            let c = window % channels;
            let [b, p, q] = [window / channels / q / p, window / channels / q % p, window / channels % q];
            let (rows, columns) = (self.pool.window(0, h, p), self.pool.window(1, w, q));
            let mut best = [b, rows.start, columns.start, c];
            let mut max = f64::NEG_INFINITY;
            for row in rows {
                for column in columns.clone() {
                    let v = x.at(&[b, row, column, c]);
                    if v > max || v.is_nan() {
                        (max, best) = (v, [b, row, column, c]);
                    }
                }
            }
            dx.set(&best, dx.at(&best) + dy.data()[window]);
        }
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        (self.pool.kernel[0] * self.pool.kernel[1] * inputs[1].shape.len()) as u64
    }

    fn cases() -> Vec<Case> {
        let resnet = MaxPool2d { kernel: [3, 3], stride: [2, 2], padding: [1, 1] };
        let case = |name: &str, op: MaxPool2d, x: [usize; 4]| {
            let size = [0, 1].map(|axis| op.extent(axis, x[1 + axis]).expect("a window fits"));
            let dy = [x[0], size[0], size[1], x[3]];
            Case::new(name, MaxPool2dGrad { pool: op }, &[&x, &dy]).tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", resnet, [1, 1, 1, 1]),
            case("two", resnet, [1, 2, 2, 2]),
            case("odd", resnet, [2, 7, 9, 17]),
            case("blocks", resnet, [1, 9, 6, 77]),
            case("bands", resnet, [1, 43, 5, 35]),
            case("equal", resnet, [1, 9, 8, 35]).fill(0, super::case::Filling::Constant(1.5)),
            case("empty", resnet, [0, 7, 9, 2]),
            case("subsample", MaxPool2d { kernel: [1, 1], stride: [2, 2], padding: [0, 0] }, [1, 5, 6, 3]),
            case("apart", MaxPool2d { kernel: [1, 2], stride: [3, 3], padding: [0, 0] }, [1, 41, 12, 3]),
            case("uneven", MaxPool2d { kernel: [2, 5], stride: [3, 1], padding: [0, 2] }, [1, 9, 11, 5]),
            case("stem", resnet, [1, 400, 672, 64]).bench(),
        ]
    }
}
