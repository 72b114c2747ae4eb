//! Moving averages: of weights, and of batch norms' statistics.

use super::{Gradient, Inferred, Operator, Pairs, ValueType, case::Case, case::Filling, case::Tolerance};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `average' = average + (factor * x - average) * rate`.
///
/// Inputs: `rate` `[1]`; `gate`, floats: if the first is NaN or infinite, averages stay as they are; then N
/// times `average` and `x` of one shape. Outputs: each `average'`, which replaces `average`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovingAverage {
    /// What `x` is multiplied by first: n / (n - 1) makes a variance over n values unbiased.
    pub factor: f32,
}

impl Operator for MovingAverage {
    const NAME: &'static str = "moving_average";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");

    fn replaces(operands: usize) -> Vec<(usize, usize)> {
        Pairs::replaces(operands)
    }

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        Pairs::infer(inputs, ["rate", "average"])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (factor, rate) = (f64::from(self.factor), inputs[0].data()[0]);
        Pairs::reference(inputs, |average, x| average + (factor * x - average) * rate)
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs.iter().map(|ty| 4 * ty.shape.len() as u64).sum()
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, factor, shapes: &[&[usize]]| {
            Case::new(name, MovingAverage { factor }, &Pairs::shapes(shapes)).tolerance(Tolerance::POINTWISE)
        };
        let filters = case("filters", 1.0, &[&[256, 3, 3, 256], &[256]]);
        vec![
            case("one", 1.0, &[&[1]]),
            case("odd", 1.25, &[&[3, 5, 7], &[2], &[4, 9]]),
            case("left_out", 1.0, &[&[37], &[8]]).fill(1, Filling::Constant(f64::NAN)),
            case("empty", 1.0, &[&[0, 3], &[5]]),
            case("tasks", 1.0, &[&[9], &[70, 1001], &[16]]),
            case("most", 1.0, &[&[5][..]; Pairs::MOST]),
            filters.exact(Pairs::operand(0)).exact(Pairs::operand(0) + 1).bench(),
        ]
    }
}
