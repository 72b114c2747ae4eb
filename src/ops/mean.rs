//! The mean of several values.

use super::{Gradient, Inferred, Operator, Role, ValueType, case::Case, case::Tolerance, expect_float};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y = (x0 + x1 + ..) / n`, element by element.
///
/// Inputs: at least one, all of one shape. Output: as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mean;

impl Operator for Mean {
    const NAME: &'static str = "mean";
    const GRADIENT: Gradient = Gradient::None("two-stage detectors are not trained");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        if inputs.is_empty() {
            return Err("takes at least 1 input, was given 0".into());
        }
        let first = expect_float(inputs, 0)?;
        for index in 1..inputs.len() {
            super::expect_shape(inputs, index, first, "value")?;
        }
        Ok(vec![ValueType { role: Role::of(inputs), ..inputs[0] }])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut y = inputs[0].clone();
        for (i, y) in y.data_mut().iter_mut().enumerate() {
            *y = inputs.iter().map(|x| x.data()[i]).sum::<f64>() / inputs.len() as f64;
        }
        vec![y]
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        inputs.len() as u64 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, count: usize, shape: &[usize]| {
            Case::new(name, Mean, &vec![shape; count]).tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", 1, &[1]),
            case("odd", 3, &[3, 5, 7]),
            case("empty", 2, &[0, 5]),
            case("tasks", 2, &[3, 50, 251]),
            case("masks", 3, &[2, 4, 5, 6]),
            case("wide_masks", 4, &[2, 4, 5, 8]),
            case("stages", 3, &[1, 1000, 81]).bench(),
        ]
    }
}
