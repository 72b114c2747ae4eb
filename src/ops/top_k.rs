//! The k largest elements of each row.

use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs, expect_rank,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The `k` largest elements of each row, in descending order; of equal elements the one with the lower index
/// comes first, and NaN comes last.
///
/// Input: `[B, n]` with `n >= k`. Outputs: values `[B, k]` and their indices `[B, k]` (`i32`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopK {
    /// How many elements are taken.
    pub k: usize,
}

impl Operator for TopK {
    const NAME: &'static str = "top_k";
    const GRADIENT: Gradient = Gradient::None("an index moves by jumps");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 2, "[B, n]")?;
        if self.k > x[1] {
            return Err(format!("the rows of {x} have no {} elements", self.k));
        }
        if i32::try_from(x[1]).is_err() {
            return Err(format!("the rows of {x} are too long for 32-bit indices"));
        }
        let y = [x[0], self.k];
        Ok(vec![inputs[0].with_shape(y), ValueType::index(y)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        let y = [x.shape()[0], self.k];
        let (mut values, mut indices) = (Vec::new(), Vec::new());
        for row in x.data().chunks_exact(x.shape()[1].max(1)) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            // The sort is stable, so equal elements stay in the order of their indices.
            order.sort_by(|&i, &j| {
                let by_value = row[j].partial_cmp(&row[i]);
                by_value.unwrap_or_else(|| row[i].is_nan().cmp(&row[j].is_nan()))
            });
            values.extend(order[..self.k].iter().map(|&i| row[i]));
            indices.extend(order[..self.k].iter().map(|&i| i as f64));
        }
        vec![Tensor::new(y, values), Tensor::new(y, indices)]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Filling::{Constant, Uniform};
        let case = |name: &str, k, shape: &[usize]| {
            Case::new(name, TopK { k }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 1, &[1, 1]),
            case("odd", 5, &[3, 13]),
            case("all", 9, &[2, 9]),
            case("none", 0, &[2, 9]),
            case("no_rows", 3, &[0, 9]),
            case("half", 50, &[2, 100]),
            case("infinite", 3, &[1, 20]).fill(0, Constant(f64::NEG_INFINITY)),
            case("ties", 10, &[2, 33]).fill(0, Constant(0.5)),
            case("instances", 100, &[1, 8000]).fill(0, Uniform(0.0, 1.0)).bench(),
        ]
    }
}
