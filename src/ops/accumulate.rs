//! Sums over several runs.

use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, case::Tolerance, expect_float,
    expect_inputs, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `sum' = sum + x`, or `x` where a new sum begins.
///
/// Inputs: `sum` and `x` of one shape; `keep` `[1]`: 0 begins a new sum, whatever the old one holds. Output:
/// `sum'`, which replaces `sum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accumulate;

impl Operator for Accumulate {
    const NAME: &'static str = "accumulate";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");
    const REPLACES: &'static [(usize, usize)] = &[(0, 0)];

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let shape = expect_float(inputs, 0)?;
        expect_shape(inputs, 1, shape, "x")?;
        expect_shape(inputs, 2, [1], "keep")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let keep = inputs[2].data()[0] != 0.0;
        let pairs = inputs[0].data().iter().zip(inputs[1].data());
        vec![Tensor::new(inputs[0].shape(), pairs.map(|(sum, x)| if keep { sum + x } else { *x }).collect())]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, keep, shape: &[usize]| {
            Case::new(name, Accumulate, &[shape, shape, &[1]])
                .fill(2, Filling::Constant(keep))
                .tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", 1.0, &[1]),
            case("odd", 1.0, &[3, 5, 7]),
            case("first", 0.0, &[3, 5, 7]).fill(0, Filling::Constant(f64::NAN)),
            case("empty", 1.0, &[0, 3]),
            case("tasks", 1.0, &[70, 1001]),
            case("filter", 1.0, &[256, 3, 3, 256]).exact(0).exact(1).bench(),
        ]
    }
}
