//! What operators on many pairs of values share, each the new value of one and what it comes of.

use super::{Inferred, ValueType, expect_float, expect_shape};
use crate::tensor::Tensor;

/// Operands of such an operator: a number `[1]`; a gate, floats, which leaves all as it is if the first is
/// NaN or infinite; then N times the old value and `x`, of one shape. Its results are the new values.
pub(crate) struct Pairs;

impl Pairs {
    /// Most pairs.
    pub(crate) const MOST: usize = 64;

    /// The old value of a pair; `x` follows.
    pub(crate) const fn operand(pair: usize) -> usize {
        2 + 2 * pair
    }

    /// How many pairs so many operands are.
    pub(crate) const fn count(operands: usize) -> usize {
        operands.saturating_sub(2) / 2
    }

    /// The new values that replace the old ones.
    pub(crate) fn replaces(operands: usize) -> Vec<(usize, usize)> {
        (0..Pairs::count(operands)).map(|pair| (Pairs::operand(pair), pair)).collect()
    }

    /// The new values' types; `names` are those of the number and of an old value.
    pub(crate) fn infer(inputs: &[ValueType], names: [&str; 2]) -> Inferred {
        let count = Pairs::count(inputs.len());
        if inputs.len() != Pairs::operand(count) || !(1..=Pairs::MOST).contains(&count) {
            return Err(format!(
                "takes {}, a gate and 1 to {} pairs, was given {} operands",
                names[0],
                Pairs::MOST,
                inputs.len()
            ));
        }
        expect_shape(inputs, 0, [1], names[0])?;
        if expect_float(inputs, 1)?.is_empty() {
            return Err("the gate is empty".into());
        }
        let each = |at: usize| {
            let shape = expect_float(inputs, at)?;
            expect_shape(inputs, at + 1, shape, &format!("what a {} takes in", names[1]))?;
            Ok(inputs[at])
        };
        (0..count).map(|pair| each(Pairs::operand(pair))).collect()
    }

    /// The new values, which `next` makes of an old one and an `x` if the gate is open.
    pub(crate) fn reference(inputs: &[&Tensor<f64>], next: impl Fn(f64, f64) -> f64) -> Vec<Tensor<f64>> {
        let open = inputs[1].data()[0].is_finite();
        let each = |pair: &[&Tensor<f64>]| {
            let pairs = pair[0].data().iter().zip(pair[1].data());
            let new = pairs.map(|(&old, &x)| if open { next(old, x) } else { old });
            Tensor::new(pair[0].shape(), new.collect())
        };
        inputs[2..].chunks_exact(2).map(each).collect()
    }

    /// Shapes of a case's operands.
    pub(crate) fn shapes<'a>(pairs: &[&'a [usize]]) -> Vec<&'a [usize]> {
        [&[1][..], &[3]].into_iter().chain(pairs.iter().flat_map(|&shape| [shape; 2])).collect()
    }
}
