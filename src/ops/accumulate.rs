//! Sums over several runs.

use super::{Gradient, Inferred, Operator, Pairs, ValueType, case::Case, case::Filling, case::Tolerance};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `sum' = sum + x`, or `x` where a new sum begins.
///
/// Inputs: `keep` `[1]`: 0 begins new sums, whatever the old ones hold; `gate`, floats: if the first is NaN
/// or infinite, sums stay as they are; then N times `sum` and `x` of one shape. Outputs: each `sum'`, which
/// replaces `sum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accumulate;

impl Operator for Accumulate {
    const NAME: &'static str = "accumulate";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");

    fn replaces(operands: usize) -> Vec<(usize, usize)> {
        Pairs::replaces(operands)
    }

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        Pairs::infer(inputs, ["keep", "sum"])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let keep = inputs[0].data()[0] != 0.0;
        Pairs::reference(inputs, |sum, x| if keep { sum + x } else { x })
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs.iter().map(|ty| ty.shape.len() as u64).sum()
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, keep, shapes: &[&[usize]]| {
            Case::new(name, Accumulate, &Pairs::shapes(shapes))
                .fill(0, Filling::Constant(keep))
                .tolerance(Tolerance::POINTWISE)
        };
        let filters = case("filters", 1.0, &[&[256, 3, 3, 256], &[256]]);
        vec![
            case("one", 1.0, &[&[1]]),
            case("odd", 1.0, &[&[3, 5, 7], &[2], &[4, 9]]),
            case("first", 0.0, &[&[3, 5, 7]]).fill(Pairs::operand(0), Filling::Constant(f64::NAN)),
            case("left_out", 1.0, &[&[37], &[8]]).fill(1, Filling::Constant(f64::INFINITY)),
            case("empty", 1.0, &[&[0, 3], &[5]]),
            case("tasks", 1.0, &[&[9], &[70, 1001], &[16]]),
            case("most", 1.0, &[&[5][..]; Pairs::MOST]),
            filters.exact(Pairs::operand(0)).exact(Pairs::operand(0) + 1).bench(),
        ]
    }
}
