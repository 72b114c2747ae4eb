//! Self-attention within windows of a map (Liu et al., *Swin Transformer*, ICCV 2021).

use super::attention::{dot, expect_heads, softmax};
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
        expect_heads(qkv, self.heads)?;
        if self.shift >= self.window {
            return Err(format!("a shift of {} in windows of {}", self.shift, self.window));
        }
        expect_shape(inputs, 1, [qkv[3]], "bias of queries, keys and values")?;
        expect_shape(inputs, 2, [self.offsets(), self.heads], "table of biases")?;
        Ok(qkv)
    }

    /// Calls `f` for every head of every window of every image.
    fn for_windows(&self, inputs: [&Tensor<f64>; 3], mut f: impl FnMut(&Window<'_>)) {
        let [qkv, bias, table] = inputs;
        let (map, side) = (qkv.shape(), self.window);
        let windows = self.windows(map);
        for window in 0..map[0] * windows[0] * windows[1] {
            let (image, at) = (window / (windows[0] * windows[1]), window % (windows[0] * windows[1]));
            let at = [at / windows[1], at % windows[1]];
            let token = |t: usize| {
                let row = self.source(at[0], t / side, windows[0], map[1])?;
                let column = self.source(at[1], t % side, windows[1], map[2])?;
                Some((image * map[1] + row) * map[2] + column)
            };
            let tokens: Vec<Option<usize>> = (0..side * side).map(token).collect();
            for head in 0..self.heads {
                f(&Window { op: self, qkv, bias, table, windows, at, tokens: &tokens, head });
            }
        }
    }

    /// Pairs of pixels of one window, over all windows.
    fn pairs(&self, qkv: Shape) -> u64 {
        (qkv[0] * self.windows(qkv).iter().product::<usize>() * self.window.pow(4)) as u64
    }
}

/// One head of one window.
struct Window<'a> {
    op: &'a WindowAttention,
    qkv: &'a Tensor<f64>,
    bias: &'a Tensor<f64>,
    table: &'a Tensor<f64>,
    /// Windows of the map, down and across, and which this is.
    windows: [usize; 2],
    at: [usize; 2],
    /// Place of each pixel of the window in the map, row by row; `None` in the padding.
    tokens: &'a [Option<usize>],
    head: usize,
}

impl<'a> Window<'a> {
    /// Channels of a head.
    fn depth(&self) -> usize {
        self.bias.data().len() / 3 / self.op.heads
    }

    fn scale(&self) -> f64 {
        1.0 / (self.depth() as f64).sqrt()
    }

    /// The pixels that lie on the map, as positions in the window and in the map.
    fn on_map(&self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        self.tokens.iter().enumerate().filter_map(|(i, token)| Some((i, (*token)?)))
    }

    /// Channels of this head of pixel `i`: block 0 of the queries, 1 of the keys, 2 of the values.
    fn part(&self, i: usize, block: usize) -> &'a [f64] {
        let (wide, depth) = (self.bias.data().len(), self.depth());
        let row = self.tokens[i].map_or(self.bias.data(), |token| &self.qkv.data()[token * wide..][..wide]);
        &row[block * wide / 3 + self.head * depth..][..depth]
    }

    /// The element of the table that query `i` and key `k` share.
    fn bias_at(&self, i: usize, k: usize) -> usize {
        let w = self.op.window;
        let offset = (i / w + w - 1 - k / w) * (2 * w - 1) + i % w + w - 1 - k % w;
        offset * self.op.heads + self.head
    }

    /// The weights of all keys for query `i`.
    fn weights(&self, i: usize) -> Vec<f64> {
        let (op, w, n) = (self.op, self.op.window, self.tokens.len());
        let logit = |k: usize| {
            let parted = op.is_parted(self.at[0], self.windows[0], i / w, k / w)
                || op.is_parted(self.at[1], self.windows[1], i % w, k % w);
            let mask = if parted { f64::from(MASKED) } else { 0.0 };
            dot(self.part(i, 0), self.part(k, 1)) * self.scale()
                + self.table.data()[self.bias_at(i, k)]
                + mask
        };
        softmax(&(0..n).map(logit).collect::<Vec<_>>())
    }
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
        let shape = inputs[0].shape();
        let c = shape[3] / 3;
        let mut y = Tensor::zeros([shape[0], shape[1], shape[2], c]);
        self.for_windows([inputs[0], inputs[1], inputs[2]], |window| {
            for (i, to) in window.on_map() {
                let weights = window.weights(i);
                let value = |e| weights.iter().enumerate().map(|(k, p)| p * window.part(k, 2)[e]).sum();
                let y = &mut y.data_mut()[to * c + window.head * window.depth()..][..window.depth()];
                y.iter_mut().enumerate().for_each(|(e, y)| *y = value(e));
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
        self.pairs(qkv) * (4 * (qkv[3] / 3) as u64 + 6 * self.heads as u64)
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
            case("heads_of_16", 2, 3, 1, [1, 7, 5, 32]),
            case("heads_of_64", 1, 5, 2, [2, 5, 11, 64]),
            case("window_10", 2, 10, 3, [1, 13, 10, 32]),
            case("window_13", 1, 13, 6, [1, 13, 14, 8]),
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
        let (operands, dy) = ([inputs[0], inputs[1], inputs[2]], inputs[3]);
        let c = dy.shape()[3];
        let mut grads = operands.map(|x| Tensor::zeros(x.shape()));
        self.of.for_windows(operands, |window| {
            let (d, scale) = (window.depth(), window.scale());
            for (i, at) in window.on_map() {
                let dy = &dy.data()[at * c + window.head * d..][..d];
                let p = window.weights(i);
                let dp: Vec<f64> = (0..p.len()).map(|k| dot(dy, window.part(k, 2))).collect();
                let mean = dot(&p, &dp);
                for k in 0..p.len() {
                    let ds = p[k] * (dp[k] - mean);
                    grads[2].data_mut()[window.bias_at(i, k)] += ds;
                    // A pixel of the padding is the bias.
                    let (to, key) = window.tokens[k].map_or((1, 0), |token| (0, token * 3 * c));
                    for e in 0..d {
                        let at_head = window.head * d + e;
                        grads[0].data_mut()[at * 3 * c + at_head] += ds * scale * window.part(k, 1)[e];
                        grads[to].data_mut()[key + c + at_head] += ds * scale * window.part(i, 0)[e];
                        grads[to].data_mut()[key + 2 * c + at_head] += p[k] * dy[e];
                    }
                }
            }
        });
        grads.into()
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let qkv = inputs[0].shape;
        self.of.pairs(qkv) * (10 * (qkv[3] / 3) as u64 + 11 * self.of.heads as u64)
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
            case("heads_of_16", 2, 3, 1, [1, 7, 5, 32]),
            case("windows_of_one_block", 1, 2, 0, [1, 91, 93, 16]),
            case("heads_of_64", 1, 5, 2, [1, 5, 11, 64]),
            case("window_12_one_head", 1, 12, 6, [1, 13, 12, 32]),
            case("window_16", 1, 16, 3, [1, 5, 17, 4]),
            case("swin_t_1_shifted", 6, 7, 3, [2, 16, 24, 192]).bench(),
            case("window_12", 6, 12, 6, [1, 17, 30, 192]).bench(),
        ]
    }
}
