//! Softmax along one axis.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_float,
    expect_inputs, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[i] = exp(x[i] - max) / sum over j of exp(x[j] - max)` along `axis`, for any shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Softmax {
    /// The axis whose elements sum to 1.
    pub axis: usize,
}

impl Operator for Softmax {
    const NAME: &'static str = "softmax";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_float(inputs, 0)?;
        if self.axis >= x.rank() {
            return Err(format!("{x} has no axis {}", self.axis));
        }
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut y = inputs[0].clone();
        let shape = y.shape();
        let [outer, inner] = [&shape.dims()[..self.axis], &shape.dims()[self.axis + 1..]]
            .map(|dims| dims.iter().product::<usize>());
        let length = shape[self.axis];
        for line in 0..outer * inner {
            let start = line / inner * length * inner + line % inner;
            let at = |i: usize| start + i * inner;
            let data = y.data_mut();
            let max = (0..length).map(|i| data[at(i)]).fold(f64::NEG_INFINITY, f64::max);
            (0..length).for_each(|i| data[at(i)] = (data[at(i)] - max).exp());
            let sum: f64 = (0..length).map(|i| data[at(i)]).sum();
            (0..length).for_each(|i| data[at(i)] /= sum);
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let grad = SoftmaxGrad { axis: self.axis };
        Ok(vec![Some(b.node(&site.named("dx"), grad, &[site.outputs[0], site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        5 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, axis, shape: &[usize]| {
            Case::new(name, Softmax { axis }, &[shape]).fill(0, Filling::Uniform(-10.0, 10.0))
        };
        vec![
            case("one", 0, &[1]),
            case("last", 2, &[3, 7, 49]),
            case("middle", 1, &[2, 11, 3, 5]),
            case("first", 0, &[5, 21]),
            case("one_long", 1, &[1, 1, 3]),
            case("row", 1, &[2, 5000]),
            case("column", 0, &[1300, 3]),
            case("large", 1, &[5, 33]).fill(0, Filling::Uniform(-300.0, 300.0)),
            case("equal", 1, &[4, 37, 6]).fill(0, Filling::Constant(-1e30)),
            case("empty", 1, &[0, 5]),
            case("attention", 2, &[8, 153, 153]).bench(),
            case("objects", 1, &[1, 150, 64, 64]).bench(),
        ]
    }
}

/// `dx[i] = y[i] * (dy[i] - sum over j of y[j] dy[j])` along `axis`: the gradient of [`Softmax`], read off
/// its result.
///
/// Inputs: `y`, `dy` of the same shape. Output: as `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftmaxGrad {
    /// The axis whose elements sum to 1.
    pub axis: usize,
}

impl Operator for SoftmaxGrad {
    const NAME: &'static str = "softmax_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let y = expect_float(inputs, 0)?;
        if self.axis >= y.rank() {
            return Err(format!("{y} has no axis {}", self.axis));
        }
        expect_shape(inputs, 1, y, "gradient")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (y, dy) = (inputs[0].data(), inputs[1].data());
        let mut dx = inputs[0].clone();
        let shape = dx.shape();
        let inner: usize = shape.dims()[self.axis + 1..].iter().product();
        let slab = shape[self.axis] * inner;
        for start in (0..y.len()).step_by(slab.max(1)) {
            for column in start..start + inner {
                let line = || (column..start + slab).step_by(inner);
                let dot: f64 = line().map(|i| y[i] * dy[i]).sum();
                line().for_each(|i| dx.data_mut()[i] = y[i] * (dy[i] - dot));
            }
        }
        vec![dx]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        4 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, axis, shape: &[usize]| {
            Case::new(name, SoftmaxGrad { axis }, &[shape, shape]).fill(0, Filling::Uniform(0.0, 0.2))
        };
        vec![
            case("one", 0, &[1]),
            case("last", 2, &[3, 7, 49]),
            case("middle", 1, &[2, 11, 3, 5]),
            case("first", 0, &[5, 21]),
            case("row", 1, &[2, 5000]).fill(0, Filling::Uniform(0.0, 4e-4)),
            case("column", 0, &[1300, 3]).fill(0, Filling::Uniform(0.0, 1.5e-3)),
            case("empty", 1, &[0, 5]),
            case("many_columns", 1, &[2, 19, 1201]),
            case("objects", 1, &[1, 150, 64, 64]).bench(),
        ]
    }
}
