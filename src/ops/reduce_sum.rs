//! Sums over leading axes: the transpose of repeating an operand along them.

use super::{
    Backward, Binary, Fill, Inferred, Operator, ValueType, binary::BinaryKind, case::Case, expect_float,
    expect_inputs,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[1, .., 1, j] = sum over i of x[i, j]`, where `i` runs over the leading axes and `j` over all others.
///
/// Input: `x` of any shape. Output: `shape`, which is that of `x` with leading axes of size 1; exact, as it
/// may be a sum over all pixels of a batch. It undoes the repetition of [`Binary`]'s second operand, and
/// gives the gradient of a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReduceSum {
    /// Shape of the result.
    pub shape: Shape,
}

impl Operator for ReduceSum {
    const NAME: &'static str = "reduce_sum";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let (x, y) = (expect_float(inputs, 0)?, self.shape);
        let leading = y.dims().iter().take_while(|&&d| d == 1).count();
        if x.rank() != y.rank() || x.dims()[leading..] != y.dims()[leading..] {
            return Err(format!("{y} is not {x} with leading axes of size 1"));
        }
        Ok(vec![ValueType::exact(y)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut y = Tensor::zeros(self.shape);
        let columns = self.shape.len().max(1);
        for (i, v) in inputs[0].data().iter().enumerate() {
            y.data_mut()[i % columns] += v;
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let shape = b.shape(site.inputs[0]);
        let zeros = b.node(&site.named("zeros"), Fill { shape, value: 0.0 }, &[])?;
        let repeat = Binary { kind: BinaryKind::Add };
        Ok(vec![Some(b.node(&site.named("dx"), repeat, &[zeros, site.grad()?])?)])
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize], y: &[usize]| {
            Case::new(name, ReduceSum { shape: Shape::new(y) }, &[x])
                // Not centred: sums of signed values cancel, and no bound relative to the sum would hold.
                .fill(0, super::case::Filling::Uniform(-0.5, 1.0))
        };
        vec![
            case("one", &[1], &[1]),
            case("odd", &[3, 5, 7], &[1, 1, 7]),
            case("batch", &[3, 5, 7], &[1, 5, 7]),
            case("all", &[3, 5, 7], &[1, 1, 1]),
            case("same", &[1, 5, 7], &[1, 5, 7]),
            case("no_rows", &[0, 5], &[1, 5]),
            case("no_columns", &[3, 0], &[1, 0]),
            case("one_column", &[50_001, 1], &[1, 1]),
            case("few_columns", &[30_011, 5], &[1, 5]),
            case("many_columns", &[5, 11_003], &[1, 11_003]),
            case("chunks", &[1100, 77], &[1, 77]),
            case("bias", &[2, 80, 80, 256], &[1, 1, 1, 256]).bench(),
            case("loss", &[2, 133, 100, 100], &[1, 1, 1, 1]).bench(),
            case("encoding", &[2, 80, 80, 256], &[1, 80, 80, 256]).bench(),
        ]
    }
}
