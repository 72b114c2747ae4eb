//! Another view of the same elements.

use super::{Backward, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// The same elements in the same row-major order under another shape. A plan never runs it: the result is
/// another name of the operand's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshape {
    /// The new shape; has as many elements as the old.
    pub shape: Shape,
}

impl Operator for Reshape {
    const NAME: &'static str = "reshape";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        if inputs[0].shape.len() != self.shape.len() {
            return Err(format!("{} does not have the elements of {}", inputs[0], self.shape));
        }
        Ok(vec![inputs[0].with_shape(self.shape)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        vec![inputs[0].clone().reshape(self.shape)]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let shape = b.shape(site.inputs[0]);
        Ok(vec![Some(b.node(&site.named("dx"), Reshape { shape }, &[site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, from: &[usize], to: &[usize]| {
            Case::new(name, Reshape { shape: Shape::new(to) }, &[from]).tolerance(Tolerance::EXACT)
        };
        vec![case("scalar", &[1], &[]), case("odd", &[2, 3, 5], &[5, 6]), case("empty", &[0, 3], &[3, 0, 1])]
    }
}
