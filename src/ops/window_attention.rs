//! Self-attention within windows of a map (Liu et al., *Swin Transformer*, ICCV 2021).

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_inputs, expect_rank,
    expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `softmax(q k^T / sqrt(D) + bias + mask) v` of every head, `D = C / heads`, where a pixel attends to the
/// pixels of its window alone.
///
/// Inputs: `qkv` `[B, H, W, 3C]`, the projected queries, keys and values side by side in the last axis, heads
/// side by side in each; the projection's bias `[3C]`, which `qkv` has in it already; the table of biases
/// `[(2 window - 1)^2, heads]`. Output: `[B, H, W, C]`.
///
/// The map is padded below and to the right to whole windows, after the norm and before the projection:
/// pixels of the padding have the bias as query, key and value, and are attended to. It is then rolled by
/// `shift` up and to the left, cut into windows, and rolled back. Pairs of pixels that the roll alone has
/// brought together, by the nine regions that cuts at `-window` and `-shift` make of the rolled map, get
/// -100: an addend, so that their weight is small and not nought. Query `(i, j)` has for key `(k, l)` of its
/// window the bias in row `(i - k + window - 1) (2 window - 1) + (j - l + window - 1)` of the table.
///
/// Source: `mmdet/models/backbones/swin.py`, `ShiftWindowMSA` and `WindowMSA`. Nothing is switched off for
/// maps smaller than a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowAttention {
    /// Number of heads; divides C.
    pub heads: usize,
    /// Side of a window, in pixels.
    pub window: usize,
    /// By how much windows lie off the map's corner; less than a window.
    pub shift: usize,
}

/// What is added where the roll alone has brought two pixels together.
pub const MASKED: f32 = -100.0;

impl WindowAttention {
    /// Rows of the table of biases.
    pub fn offsets(&self) -> usize {
        (2 * self.window - 1).pow(2)
    }

    /// Windows of a map, down and across.
    pub fn windows(&self, map: Shape) -> [usize; 2] {
        [map[1].div_ceil(self.window), map[2].div_ceil(self.window)]
    }

    /// Where position `at` of window `index` of `count` along an axis of `size` pixels lies on the map;
    /// `None` in the padding.
    pub fn source(&self, index: usize, at: usize, count: usize, size: usize) -> Option<usize> {
        let place = (index * self.window + at + self.shift) % (count * self.window);
        (place < size).then_some(place)
    }

    /// Whether the roll alone has brought two positions of window `index` of `count` along an axis together.
    pub fn is_parted(&self, index: usize, count: usize, a: usize, b: usize) -> bool {
        let cut = self.window - self.shift;
        self.shift > 0 && index + 1 == count && (a < cut) != (b < cut)
    }

    fn check(&self, inputs: &[ValueType]) -> std::result::Result<Shape, String> {
        let qkv = expect_rank(inputs, 0, 4, "[B, H, W, 3C]")?;
        if self.heads == 0 || !qkv[3].is_multiple_of(3) || !(qkv[3] / 3).is_multiple_of(self.heads) {
            return Err(format!("the last axis of {qkv} is not 3 times a multiple of {} heads", self.heads));
        }
        if self.shift >= self.window {
            return Err(format!("a shift of {} in windows of {}", self.shift, self.window));
        }
        expect_shape(inputs, 1, [qkv[3]], "bias of queries, keys and values")?;
        expect_shape(inputs, 2, [self.offsets(), self.heads], "table of biases")?;
        Ok(qkv)
    }

    /// Calls `f` for every window of every image and every head with that head's index and the window's
    /// tokens, in rows: the place of each in the map (`None` in the padding), and what is added to the logits
    /// of each pair.
    fn for_windows(
        &self,
        qkv: Shape,
        table: &Tensor<f64>,
        mut f: impl FnMut(usize, &[Option<usize>], &dyn Fn(usize, usize) -> (usize, f64)),
    ) {
        let ([rows, columns], w) = (self.windows(qkv), self.window);
        for (b, wr, wc) in
            (0..qkv[0]).flat_map(|b| (0..rows).flat_map(move |r| (0..columns).map(move |c| (b, r, c))))
        {
            let token = |t: usize| {
                let row = self.source(wr, t / w, rows, qkv[1])?;
                let column = self.source(wc, t % w, columns, qkv[2])?;
                Some((b * qkv[1] + row) * qkv[2] + column)
            };
            let tokens: Vec<Option<usize>> = (0..w * w).map(token).collect();
            for head in 0..self.heads {
                let added = |i: usize, k: usize| {
                    let offset = (i / w + w - 1 - k / w) * (2 * w - 1) + i % w + w - 1 - k % w;
                    let parted =
                        self.is_parted(wr, rows, i / w, k / w) || self.is_parted(wc, columns, i % w, k % w);
                    let mask = if parted { f64::from(MASKED) } else { 0.0 };
                    (offset, table.data()[offset * self.heads + head] + mask)
                };
                f(head, &tokens, &added);
            }
        }
    }
}

/// Channels of one head of a token: block 0 of the queries, 1 of the keys, 2 of the values.
fn channels<'a>(
    qkv: &'a Tensor<f64>,
    bias: &'a Tensor<f64>,
    token: Option<usize>,
    block: usize,
    head: usize,
    depth: usize,
) -> &'a [f64] {
    let wide = bias.data().len();
    let row = token.map_or(bias.data(), |token| &qkv.data()[token * wide..][..wide]);
    &row[block * wide / 3 + head * depth..][..depth]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Softmax of a row of logits.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

impl Operator for WindowAttention {
    const NAME: &'static str = "window_attention";
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let qkv = self.check(inputs)?;
        Ok(vec![inputs[0].with_shape([qkv[0], qkv[1], qkv[2], qkv[3] / 3])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [qkv, bias, table] = [inputs[0], inputs[1], inputs[2]];
        let shape = qkv.shape();
        let (c, n) = (shape[3] / 3, self.window * self.window);
        let d = c / self.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let mut y = Tensor::zeros([shape[0], shape[1], shape[2], c]);
        self.for_windows(shape, table, |head, tokens, added| {
            let part = |token: usize, block| channels(qkv, bias, tokens[token], block, head, d);
            for (i, to) in tokens.iter().enumerate().filter_map(|(i, token)| Some((i, (*token)?))) {
                let logits: Vec<f64> =
                    (0..n).map(|k| dot(part(i, 0), part(k, 1)) * scale + added(i, k).1).collect();
                let weights = softmax(&logits);
                for e in 0..d {
                    y.data_mut()[to * c + head * d + e] = (0..n).map(|k| weights[k] * part(k, 2)[e]).sum();
                }
            }
        });
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let operands = [site.inputs[0], site.inputs[1], site.inputs[2], site.grad()?];
        let grads = b.nodes(&site.named("grad"), WindowAttentionGrad { of: *self }, &operands)?;
        Ok(grads.into_iter().map(Some).collect())
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let qkv = inputs[0].shape;
        let windows = self.windows(qkv).iter().product::<usize>() * qkv[0];
        let pairs = (windows * self.window.pow(4)) as u64;
        pairs * (4 * (qkv[3] / 3) as u64 + 6 * self.heads as u64)
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, heads, window, shift, [b, h, w, c]: [usize; 4]| {
            let op = WindowAttention { heads, window, shift };
            let table = [op.offsets(), heads];
            Case::new(name, op, &[&[b, h, w, 3 * c], &[3 * c], &table])
        };
        vec![
            case("one_window", 2, 2, 0, [1, 2, 2, 8]),
            case("padded", 2, 3, 0, [2, 4, 5, 6]),
            case("shifted", 2, 3, 1, [1, 6, 9, 8]),
            case("shifted_padded", 3, 3, 1, [2, 7, 5, 9]),
            case("smaller_than_a_window", 1, 7, 3, [1, 2, 3, 8]),
            case("shift_beyond_the_map", 1, 4, 3, [1, 2, 9, 4]),
            case("one_pixel", 2, 2, 1, [1, 1, 1, 4]),
            case("one_row", 2, 3, 1, [1, 1, 17, 4]),
            case("no_image", 2, 3, 1, [0, 4, 4, 4]),
            case("large_logits", 2, 4, 2, [1, 9, 8, 16]).fill(0, Filling::Uniform(-8.0, 8.0)),
            case("equal_pixels", 2, 3, 1, [1, 6, 6, 8]).fill(0, Filling::Constant(0.25)),
            case("swin_t_0", 3, 7, 0, [1, 32, 48, 96]).bench(),
            case("swin_t_0_shifted", 3, 7, 3, [1, 32, 48, 96]).bench(),
            case("swin_t_3_shifted", 24, 7, 3, [2, 9, 13, 768]).bench(),
            case("window_12", 6, 12, 6, [1, 17, 30, 192]).bench(),
        ]
    }
}

/// The gradients of [`WindowAttention`], which keeps no weights: they are computed again.
///
/// With the weights `P` of a head in a window and `dP = dy v^T`: `dv = P^T dy`, `dS = P * (dP - rowsum(P *
/// dP))`, `dq = dS k / sqrt(D)`, `dk = dS^T q / sqrt(D)`. The gradient of the table sums `dS` over all pairs
/// that share a row of it; that of the bias sums those of the padding's keys and values, whose queries
/// nothing reads.
///
/// Inputs: those of [`WindowAttention`], `dy` `[B, H, W, C]`. Outputs: as the first three inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowAttentionGrad {
    /// Whose gradients they are.
    pub of: WindowAttention,
}

impl Operator for WindowAttentionGrad {
    const NAME: &'static str = "window_attention_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 4)?;
        let y = self.of.infer(&inputs[..3])?;
        expect_shape(inputs, 3, y[0].shape, "gradient")?;
        let weight = |index: usize| ValueType::weight(inputs[index].shape);
        Ok(vec![inputs[0], weight(1), weight(2)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [qkv, bias, table, dy] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let (c, n) = (dy.shape()[3], self.of.window * self.of.window);
        let d = c / self.of.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let mut grads = [qkv, bias, table].map(|x| Tensor::zeros(x.shape()));
        self.of.for_windows(qkv.shape(), table, |head, tokens, added| {
            let part = |token: usize, block| channels(qkv, bias, tokens[token], block, head, d);
            for (i, at) in tokens.iter().enumerate().filter_map(|(i, token)| Some((i, (*token)?))) {
                let dy = &dy.data()[at * c + head * d..][..d];
                let logits: Vec<f64> =
                    (0..n).map(|k| dot(part(i, 0), part(k, 1)) * scale + added(i, k).1).collect();
                let p = softmax(&logits);
                let dp: Vec<f64> = (0..n).map(|k| dot(dy, part(k, 2))).collect();
                let mean = dot(&p, &dp);
                for k in 0..n {
                    let ds = p[k] * (dp[k] - mean);
                    grads[2].data_mut()[added(i, k).0 * self.of.heads + head] += ds;
                    // A token of the padding is the bias.
                    let (to, key) = tokens[k].map_or((1, 0), |token| (0, token * 3 * c));
                    for e in 0..d {
                        let at_head = head * d + e;
                        grads[0].data_mut()[at * 3 * c + at_head] += ds * scale * part(k, 1)[e];
                        grads[to].data_mut()[key + c + at_head] += ds * scale * part(i, 0)[e];
                        grads[to].data_mut()[key + 2 * c + at_head] += p[k] * dy[e];
                    }
                }
            }
        });
        grads.into()
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let qkv = inputs[0].shape;
        let windows = self.of.windows(qkv).iter().product::<usize>() * qkv[0];
        let pairs = (windows * self.of.window.pow(4)) as u64;
        pairs * (10 * (qkv[3] / 3) as u64 + 11 * self.of.heads as u64)
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, heads, window, shift, [b, h, w, c]: [usize; 4]| {
            let op = WindowAttention { heads, window, shift };
            let table = [op.offsets(), heads];
            let shapes: [&[usize]; 4] = [&[b, h, w, 3 * c], &[3 * c], &table, &[b, h, w, c]];
            Case::new(name, WindowAttentionGrad { of: op }, &shapes)
        };
        vec![
            case("one_window", 2, 2, 0, [1, 2, 2, 8]),
            case("padded", 2, 3, 0, [2, 4, 5, 6]),
            case("shifted", 2, 3, 1, [1, 6, 9, 8]),
            case("shifted_padded", 3, 3, 1, [2, 7, 5, 9]),
            case("smaller_than_a_window", 1, 7, 3, [1, 2, 3, 8]),
            case("shift_beyond_the_map", 1, 4, 3, [1, 2, 9, 4]),
            case("one_row", 2, 3, 1, [1, 1, 17, 4]),
            case("no_image", 2, 3, 1, [0, 4, 4, 4]),
            case("large_logits", 2, 4, 2, [1, 9, 8, 16]).fill(0, Filling::Uniform(-4.0, 4.0)),
            case("swin_t_1_shifted", 6, 7, 3, [2, 16, 24, 192]).bench(),
            case("window_12", 6, 12, 6, [1, 17, 30, 192]).bench(),
        ]
    }
}
