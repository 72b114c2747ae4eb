//! The global norm of gradients, and the factor that clips them to one.
//!
//! The norm is over more values than a node has operands, so it is a chain of sums. Each hands on its sum in
//! double precision, as three floats that add up to it: the norm of all gradients then rounds as one long sum
//! in double precision does. (Beyond the range of f32, a norm of 1.8e19, it is infinite; below a norm of
//! 1e-14 the last of the three loses digits.)

use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, case::Tolerance, expect_float,
    expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Three floats that add up to `sum`.
pub fn split(sum: f64) -> [f32; 3] {
    let high = sum as f32;
    let rest = sum - f64::from(high);
    let middle = rest as f32;
    [high, middle, (rest - f64::from(middle)) as f32]
}

/// What [`split`] took apart.
pub fn join(parts: &[f32]) -> f64 {
    parts.iter().map(|&part| f64::from(part)).sum()
}

/// `total' = total + sum of x^2 over all elements of all operands`.
///
/// Inputs: `total` `[3]`, the parts of a sum in double precision, and up to [`SumSquares::MOST`] others of
/// any shape. Output: `total'` `[3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumSquares;

impl SumSquares {
    /// Most operands beside the sum so far.
    pub const MOST: usize = 128;
}

impl Operator for SumSquares {
    const NAME: &'static str = "sum_squares";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        if !(2..=1 + SumSquares::MOST).contains(&inputs.len()) {
            return Err(format!(
                "takes a sum and 1 to {} others, was given {}",
                SumSquares::MOST,
                inputs.len()
            ));
        }
        expect_shape(inputs, 0, [3], "the sum so far")?;
        (1..inputs.len()).try_for_each(|index| expect_float(inputs, index).map(|_| ()))?;
        Ok(vec![ValueType::exact([3])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let total: f64 = inputs[0].data().iter().sum();
        let squares = inputs[1..].iter().flat_map(|x| x.data()).map(|v| v * v);
        vec![Tensor::new([3], split(total + squares.sum::<f64>()).map(f64::from).to_vec())]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[1..].iter().map(|ty| 2 * ty.shape.len() as u64).sum()
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, others: &[&[usize]]| {
            let shapes: Vec<&[usize]> = [&[3][..]].into_iter().chain(others.iter().copied()).collect();
            Case::new(name, SumSquares, &shapes).fill(0, Filling::Uniform(0.0, 9.0)).tolerance(Tolerance {
                relative_l2: 1e-7,
                reason: "sums in double precision; the first of the three parts is their rounding to f32",
            })
        };
        vec![
            case("one", &[&[1]]),
            case("odd", &[&[3, 5, 7], &[], &[9]]),
            case("empty", &[&[0, 3], &[2]]),
            case("tasks", &[&[70, 1001], &[5], &[33_000]]),
            case("most", &[&[3][..]; SumSquares::MOST]),
            case("filters", &[&[256, 3, 3, 256][..]; 8]).bench(),
        ]
    }
}

/// `scale = clip / count` with `clip = min(1, clip_norm / (norm + 1e-6))` and `norm = sqrt(total) / count`,
/// computed in double precision: what a sum of gradients is multiplied by to be a mean whose norm is
/// `clip_norm` at most. It is NaN, which stops an update, if gradients or losses are not finite.
///
/// Inputs: `total` `[3]`, as [`SumSquares`] gives it; `count` `[1]`, what the sum is divided by to be a mean
/// of gradients (a loss that was scaled up counts as often); `losses` `[3]`, such a sum over the losses.
/// Output: `scale` `[1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipScale {
    /// Largest norm; 0 leaves gradients as they are.
    pub clip_norm: f64,
}

impl ClipScale {
    /// The factor, given the sums of squares of gradients and of losses.
    pub(crate) fn of(&self, total: f64, count: f64, losses: f64) -> f64 {
        if !(total + losses).is_finite() {
            return f64::NAN;
        }
        let mean = 1.0 / count;
        let norm = mean * total.sqrt();
        let clip = if self.clip_norm > 0.0 { (self.clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        clip * mean
    }
}

impl Operator for ClipScale {
    const NAME: &'static str = "clip_scale";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        super::expect_inputs(inputs, 3)?;
        expect_shape(inputs, 0, [3], "the sum of squares")?;
        expect_shape(inputs, 1, [1], "the count")?;
        expect_shape(inputs, 2, [3], "the sum of squares of losses")?;
        Ok(vec![ValueType::exact([1])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [total, losses] = [0, 2].map(|i: usize| inputs[i].data().iter().sum());
        vec![Tensor::new([1], vec![self.of(total, inputs[1].data()[0], losses)])]
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        5
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, clip_norm, count| {
            Case::new(name, ClipScale { clip_norm }, &[&[3], &[1], &[3]])
                .fill(0, Filling::Uniform(1.0, 9.0))
                .fill(1, Filling::Constant(count))
                .tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("clipped", 0.5, 1.0),
            case("short", 100.0, 3.0),
            case("unclipped", 0.0, 4.0),
            case("scaled_up", 0.5, 65_536.0),
            case("no_norm", 0.5, 1.0).fill(0, Filling::Constant(f64::INFINITY)),
            case("no_loss", 0.5, 1.0).fill(2, Filling::Constant(f64::NAN)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn three_floats_hold_a_double(bits in 0u64..1 << 52, exponent in -90i32..120) {
            let sum = (1.0 + bits as f64 / (1u64 << 52) as f64) * f64::powi(2.0, exponent);
            prop_assert_eq!(join(&split(sum)), sum);
        }
    }

    #[test]
    fn what_is_out_of_range_is_not_finite() {
        for sum in [1e39, f64::INFINITY, f64::NAN] {
            assert!(!join(&split(sum)).is_finite(), "{sum}");
        }
        assert_eq!(join(&split(0.0)), 0.0);
    }
}
