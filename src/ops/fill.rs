//! One value everywhere.

use super::{Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// A tensor of one value: the gradient of a result that nothing depends on, or a constant operand.
///
/// No inputs. Output: `shape`, exact: nothing says what it stands for, and plans know it as a constant.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// Shape of the result.
    pub shape: Shape,
    /// Value of every element.
    pub value: f32,
}

/// Compares bits, so that NaN equals itself.
impl PartialEq for Fill {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.value.to_bits() == other.value.to_bits()
    }
}

impl Operator for Fill {
    const NAME: &'static str = "fill";
    const GRADIENT: Gradient = Gradient::None("no operands");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 0)?;
        Ok(vec![ValueType::exact(self.shape)])
    }

    fn reference(&self, _: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        vec![Tensor::from_fn(self.shape, |_| f64::from(self.value))]
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, value, shape: &[usize]| {
            Case::new(name, Fill { shape: Shape::new(shape), value }, &[]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("scalar", 1.0, &[]),
            case("odd", -0.5, &[3, 5, 7]),
            case("empty", 2.0, &[0, 3]),
            case("nan", f32::NAN, &[2]),
            case("tasks", 0.0, &[70, 1001]),
        ]
    }
}
