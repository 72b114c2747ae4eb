//! Multi-head scaled dot-product self-attention.

use super::{Inferred, Operator, ValueType, case::Case, case::Fill, expect_inputs, expect_rank};
use crate::tensor::Tensor;

/// `softmax(q k^T / sqrt(D)) v` for every head, `D = C / heads` (Vaswani et al. 2017, equation 1).
///
/// Input: `[B, N, 3C]`, the projected queries, keys and values of N objects side by side in the last axis, as
/// PyTorch's `in_proj` gives them; head `h` owns channels `h D .. (h + 1) D` of each. The operator scales the
/// queries by `1 / sqrt(D)` itself. Output: `[B, N, C]`, heads side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Number of heads; divides C.
    pub heads: usize,
}

impl Operator for Attention {
    const NAME: &'static str = "attention";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let qkv = expect_rank(inputs, 0, 3, "[B, N, 3C]")?;
        if self.heads == 0 || !qkv[2].is_multiple_of(3) || !(qkv[2] / 3).is_multiple_of(self.heads) {
            return Err(format!("the last axis of {qkv} is not 3 times a multiple of {} heads", self.heads));
        }
        Ok(vec![ValueType::f32([qkv[0], qkv[1], qkv[2] / 3])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let qkv = inputs[0];
        let [batch, n, c] = [qkv.shape()[0], qkv.shape()[1], qkv.shape()[2] / 3];
        let d = c / self.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let mut y = Tensor::zeros([batch, n, c]);
        for b in 0..batch {
            let row = |i: usize, block: usize, h: usize| {
                let start = (b * n + i) * 3 * c + block * c + h * d;
                &qkv.data()[start..start + d]
            };
            for h in 0..self.heads {
                for i in 0..n {
                    let dot = |j| -> f64 { row(i, 0, h).iter().zip(row(j, 1, h)).map(|(q, k)| q * k).sum() };
                    let logits: Vec<f64> = (0..n).map(|j| dot(j) * scale).collect();
                    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for e in 0..d {
                        let value: f64 = (0..n).map(|j| weights[j] * row(j, 2, h)[e]).sum();
                        y.data_mut()[(b * n + i) * c + h * d + e] = value / sum;
                    }
                }
            }
        }
        vec![y]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let [batch, n, c] =
            [inputs[0].shape[0], inputs[0].shape[1], inputs[0].shape[2] / 3].map(|v| v as u64);
        batch * n * n * (4 * c + 5 * self.heads as u64)
    }

    fn cases() -> Vec<Case> {
        let heads = |heads| Attention { heads };
        vec![
            Case::new("one_query", heads(2), &[&[1, 1, 24]]),
            Case::new("odd", heads(3), &[&[3, 13, 45]]),
            Case::new("one_channel", heads(5), &[&[1, 9, 15]]),
            Case::new("large_logits", heads(4), &[&[2, 37, 192]]).fill(0, Fill::Uniform(-8.0, 8.0)),
            Case::new("equal_objects", heads(2), &[&[1, 21, 96]]).fill(0, Fill::Constant(0.25)),
            Case::new("no_objects", heads(2), &[&[1, 0, 24]]),
            Case::new("knet_100", heads(8), &[&[1, 100, 768]]).bench(),
            Case::new("knet_153", heads(8), &[&[1, 153, 768]]).bench(),
            Case::new("knet_batch", heads(8), &[&[2, 301, 768]]).bench(),
        ]
    }
}
