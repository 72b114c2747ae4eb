//! A moving average: of weights, and of a batch norm's statistics.

use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_float, expect_inputs,
    expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `average' = average + (factor * x - average) * rate`.
///
/// Inputs: `average` and `x` of one shape, `rate` `[1]`. Output: `average'`, which replaces `average`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovingAverage {
    /// What `x` is multiplied by first: n / (n - 1) makes a variance over n values unbiased.
    pub factor: f32,
}

impl Operator for MovingAverage {
    const NAME: &'static str = "moving_average";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");
    const REPLACES: &'static [(usize, usize)] = &[(0, 0)];

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let shape = expect_float(inputs, 0)?;
        expect_shape(inputs, 1, shape, "x")?;
        expect_shape(inputs, 2, [1], "rate")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (factor, rate) = (f64::from(self.factor), inputs[2].data()[0]);
        let pairs = inputs[0].data().iter().zip(inputs[1].data());
        let next = pairs.map(|(average, x)| average + (factor * x - average) * rate);
        vec![Tensor::new(inputs[0].shape(), next.collect())]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        4 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, factor, shape: &[usize]| {
            Case::new(name, MovingAverage { factor }, &[shape, shape, &[1]]).tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", 1.0, &[1]),
            case("odd", 1.25, &[3, 5, 7]),
            case("empty", 1.0, &[0, 3]),
            case("tasks", 1.0, &[70, 1001]),
            case("filter", 1.0, &[256, 3, 3, 256]).exact(0).exact(1).bench(),
        ]
    }
}
