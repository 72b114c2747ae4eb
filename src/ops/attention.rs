//! Multi-head scaled dot-product self-attention.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_inputs, expect_rank,
    expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `softmax(q k^T / sqrt(D)) v` for every head, `D = C / heads` (Vaswani et al. 2017, equation 1).
///
/// Input: `[B, N, 3C]`, the projected queries, keys and values of N objects side by side in the last axis, as
/// PyTorch's `in_proj` gives them; head `h` owns channels `h D .. (h + 1) D` of each. The operator scales the
/// queries by `1 / sqrt(D)` itself. Output: `[B, N, C]`, heads side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// Number of heads; divides C.
    pub heads: usize,
}

/// Fails with a sentence unless the last axis is queries, keys and values of so many heads.
pub(super) fn expect_heads(qkv: Shape, heads: usize) -> std::result::Result<(), String> {
    if heads > 0 && qkv.last().is_multiple_of(3) && (qkv.last() / 3).is_multiple_of(heads) {
        return Ok(());
    }
    Err(format!("the last axis of {qkv} is not 3 times a multiple of {heads} heads"))
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Softmax of a row of logits.
pub(super) fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

impl Operator for Attention {
    const NAME: &'static str = "attention";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let qkv = expect_rank(inputs, 0, 3, "[B, N, 3C]")?;
        expect_heads(qkv, self.heads)?;
        Ok(vec![inputs[0].with_shape([qkv[0], qkv[1], qkv[2] / 3])])
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

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let grad = AttentionGrad { heads: self.heads };
        Ok(vec![Some(b.node(&site.named("dqkv"), grad, &[site.inputs[0], site.grad()?])?)])
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
            Case::new("large_logits", heads(4), &[&[2, 37, 192]]).fill(0, Filling::Uniform(-8.0, 8.0)),
            Case::new("equal_objects", heads(2), &[&[1, 21, 96]]).fill(0, Filling::Constant(0.25)),
            Case::new("no_objects", heads(2), &[&[1, 0, 24]]),
            Case::new("knet_100", heads(8), &[&[1, 100, 768]]).bench(),
            Case::new("knet_153", heads(8), &[&[1, 153, 768]]).bench(),
            Case::new("knet_batch", heads(8), &[&[2, 301, 768]]).bench(),
        ]
    }
}

/// The gradient of [`Attention`], which keeps no weights: they are computed again from `qkv`.
///
/// With the weights `P = softmax(q k^T / sqrt(D))` of a head and `dP = dy v^T`: `dv = P^T dy`,
/// `dS = P * (dP - rowsum(P * dP)) / sqrt(D)`, `dq = dS k`, `dk = dS^T q`.
///
/// Inputs: `qkv` `[B, N, 3C]`, `dy` `[B, N, C]`. Output: as `qkv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionGrad {
    /// Number of heads; divides C.
    pub heads: usize,
}

impl Operator for AttentionGrad {
    const NAME: &'static str = "attention_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let y = Attention { heads: self.heads }.infer(&inputs[..1])?;
        expect_shape(inputs, 1, y[0].shape, "gradient")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (qkv, dy) = (inputs[0], inputs[1]);
        let [batch, n, c] = [dy.shape()[0], dy.shape()[1], dy.shape()[2]];
        let d = c / self.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let mut dqkv = Tensor::zeros(qkv.shape());
        for (b, h) in (0..batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))) {
            let [q, k, v] = [0, 1, 2].map(|block| move |i: usize| (b * n + i) * 3 * c + block * c + h * d);
            let row = |at: usize| &qkv.data()[at..at + d];
            for i in 0..n {
                let dy = &dy.data()[(b * n + i) * c + h * d..][..d];
                let logits: Vec<f64> = (0..n).map(|j| dot(row(q(i)), row(k(j))) * scale).collect();
                let p = softmax(&logits);
                let dp: Vec<f64> = (0..n).map(|j| dot(dy, row(v(j)))).collect();
                let mean = dot(&p, &dp);
                for j in 0..n {
                    let ds = p[j] * (dp[j] - mean) * scale;
                    for e in 0..d {
                        dqkv.data_mut()[v(j) + e] += p[j] * dy[e];
                        dqkv.data_mut()[q(i) + e] += ds * qkv.data()[k(j) + e];
                        dqkv.data_mut()[k(j) + e] += ds * qkv.data()[q(i) + e];
                    }
                }
            }
        }
        vec![dqkv]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let [batch, n, c] = [0, 1, 2].map(|axis| inputs[1].shape[axis] as u64);
        batch * n * n * (10 * c + 9 * self.heads as u64)
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, heads, [batch, n, c]: [usize; 3]| {
            Case::new(name, AttentionGrad { heads }, &[&[batch, n, 3 * c], &[batch, n, c]])
        };
        vec![
            case("one_query", 2, [1, 1, 8]),
            case("odd", 3, [3, 13, 15]),
            case("one_channel", 5, [1, 9, 5]),
            case("large_logits", 4, [2, 37, 64]).fill(0, Filling::Uniform(-4.0, 4.0)),
            case("equal_objects", 2, [1, 21, 32]).fill(0, Filling::Constant(0.25)),
            case("no_objects", 2, [1, 0, 8]),
            case("knet", 8, [2, 100, 256]).bench(),
            case("knet_153", 8, [1, 153, 256]).bench(),
        ]
    }
}
