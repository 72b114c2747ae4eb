//! Softmax along one axis.

use super::{Inferred, Operator, ValueType, case::Case, case::Fill, expect_float, expect_inputs};
use crate::tensor::Tensor;

/// `y[i] = exp(x[i] - max) / sum over j of exp(x[j] - max)` along `axis`, for any shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        5 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, axis, shape: &[usize]| {
            Case::new(name, Softmax { axis }, &[shape]).fill(0, Fill::Uniform(-10.0, 10.0))
        };
        vec![
            case("one", 0, &[1]),
            case("last", 2, &[3, 7, 49]),
            case("middle", 1, &[2, 11, 3, 5]),
            case("first", 0, &[5, 21]),
            case("one_long", 1, &[1, 1, 3]),
            case("row", 1, &[2, 5000]),
            case("column", 0, &[1300, 3]),
            case("large", 1, &[5, 33]).fill(0, Fill::Uniform(-300.0, 300.0)),
            case("equal", 1, &[4, 37, 6]).fill(0, Fill::Constant(-1e30)),
            case("empty", 1, &[0, 5]),
            case("attention", 2, &[8, 153, 153]).bench(),
            case("objects", 1, &[1, 150, 64, 64]).bench(),
        ]
    }
}
