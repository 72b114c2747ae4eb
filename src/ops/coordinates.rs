//! Coordinates of the pixels of a map.

use super::{Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[0, i, j] = (2 j / (width - 1) - 1, 2 i / (height - 1) - 1)`: column and row of each pixel, from -1 at
/// the first to 1 at the last, -1 if there is but one (Liu et al., *CoordConv*, 2018).
///
/// No inputs; output `[1, height, width, 2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinates {
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
}

impl Operator for Coordinates {
    const NAME: &'static str = "coordinates";
    const GRADIENT: Gradient = Gradient::None("no operands");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 0)?;
        Ok(vec![ValueType::map([1, self.height, self.width, 2])])
    }

    fn reference(&self, _: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let at = |index: usize, of: usize| match of {
            1 => -1.0,
            _ => 2.0 * index as f64 / (of - 1) as f64 - 1.0,
        };
        vec![Tensor::from_fn([1, self.height, self.width, 2], |index| match index[3] {
            0 => at(index[2], self.width),
            _ => at(index[1], self.height),
        })]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, height, width| {
            Case::new(name, Coordinates { height, width }, &[]).tolerance(Tolerance::POINTWISE)
        };
        vec![case("one", 1, 1), case("odd", 3, 7), case("column", 9, 1), case("empty", 0, 5)]
    }
}
