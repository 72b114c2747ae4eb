//! Rows by their numbers.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling, Tolerance},
    expect_indices, expect_inputs, expect_rank,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[b, n] = x[b, indices[b, n] / share]`: the rows that a choice among rows, or among so many candidates of
/// each, has taken. A row that there is not gives zeros.
///
/// Inputs: `x` `[B, M, C]`, `indices` `[B, N]`. Output: `[B, N, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatherRows {
    /// Candidates of a row, one after the other.
    pub share: usize,
}

impl GatherRows {
    /// The row of an index among so many rows.
    pub fn row(&self, index: i32, rows: usize) -> Option<usize> {
        usize::try_from(index).ok().map(|index| index / self.share).filter(|&row| row < rows)
    }
}

impl Operator for GatherRows {
    const NAME: &'static str = "gather_rows";
    const GRADIENT: Gradient = Gradient::None("models that choose rows are not trained");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let (x, indices) = (expect_rank(inputs, 0, 3, "[B, M, C]")?, inputs[1].shape);
        if indices.rank() != 2 || indices[0] != x[0] || self.share == 0 {
            return Err(format!("indices {indices}, {} of each row, do not fit rows {x}", self.share));
        }
        expect_indices(inputs, 1, indices, "indices")?;
        Ok(vec![inputs[0].with_shape([x[0], indices[1], x[2]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, indices) = (inputs[0], inputs[1]);
        let shape = [x.shape()[0], indices.shape()[1], x.shape()[2]];
        vec![Tensor::from_fn(shape, |index| {
            let row = self.row(indices.at(&index[..2]) as i32, x.shape()[1]);
            row.map_or(0.0, |row| x.at(&[index[0], row, index[2]]))
        })]
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, share, [b, m, c, n]: [usize; 4]| {
            Case::new(name, GatherRows { share }, &[&[b, m, c], &[b, n]])
                .fill(1, Filling::Index(0, (share * m) as i32))
                .tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 1, [1, 1, 1, 1]),
            case("odd", 3, [2, 13, 19, 31]),
            case("none", 1, [2, 5, 7, 0]),
            case("outside", 2, [1, 5, 7, 40]).fill(1, Filling::Index(-4, 20)),
            case("no_rows", 1, [1, 0, 7, 3]).fill(1, Filling::Index(0, 1)),
            case("kernels", 80, [1, 3872, 256, 500]).bench(),
            case("masks", 1, [1, 500, 16_800, 100]).bench(),
        ]
    }
}
