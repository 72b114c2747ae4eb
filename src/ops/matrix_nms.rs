//! Suppression among masks.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Matrix NMS (Wang et al., *SOLOv2*, 2020, section 3.3) with the Gaussian decay, and what comes before it:
/// the best masks by scores that better masks of the same class have lowered, the more they overlap.
///
/// 1. A candidate counts if its score is above [`score_threshold`](MatrixNms::score_threshold) and more
///    pixels have a positive logit than its row asks for. Those pixels are its mask.
/// 2. Its score is multiplied by the mean probability of the mask's pixels.
/// 3. Of the candidates in descending order of that (of equals the first), the score of `j` is multiplied by
///    `min over i < j of exp(-sigma (iou(i, j)^2 - worst(i)^2))`, at most 1, where `i` has the class of `j`
///    and `worst(i)` is the largest intersection over union of `i` with one before it of the class.
/// 4. Those that are left with at least [`least_score`](MatrixNms::least_score) are taken, best first.
///
/// Inputs: mask logits `[B, N, H, W]`; scores `[B, N]`; candidates `[B, N]`, `row classes + class`.
/// Outputs: scores `[B, keep]`, which of the N each is `[B, keep]`, its class `[B, keep]`, and how many there
/// are `[B]`; the places after those hold zeros.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixNms {
    /// Number of classes.
    pub classes: usize,
    /// So many rows, one after the other, ask for more than so many pixels; those beyond for one.
    pub least_pixels: Vec<(usize, usize)>,
    /// Candidates score more.
    pub score_threshold: f32,
    /// How fast scores decay.
    pub sigma: f32,
    /// What a score must be in the end.
    pub least_score: f32,
    /// Most masks taken of an image.
    pub keep: usize,
}

impl MatrixNms {
    /// A candidate's class, and how many pixels its mask must exceed.
    pub fn asked(&self, candidate: i32) -> (usize, usize) {
        let candidate = candidate.max(0) as usize;
        let (mut row, class) = (candidate / self.classes, candidate % self.classes);
        for &(rows, pixels) in &self.least_pixels {
            if row < rows {
                return (class, pixels);
            }
            row -= rows;
        }
        (class, 0)
    }
}

impl Operator for MatrixNms {
    const NAME: &'static str = "matrix_nms";
    const GRADIENT: Gradient = Gradient::None("a choice moves by jumps");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let masks = expect_rank(inputs, 0, 4, "[B, N, H, W]")?;
        expect_shape(inputs, 1, [masks[0], masks[1]], "scores")?;
        expect_indices(inputs, 2, [masks[0], masks[1]], "candidates")?;
        if self.classes == 0 || self.keep > masks[1] {
            return Err(format!("{} of the masks {masks} of {} classes", self.keep, self.classes));
        }
        Ok(vec![
            ValueType::exact([masks[0], self.keep]),
            ValueType::index([masks[0], self.keep]),
            ValueType::index([masks[0], self.keep]),
            ValueType::index([masks[0]]),
        ])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let masks = inputs[0].shape();
        let [batch, n, pixels] = [masks[0], masks[1], masks[2] * masks[3]];
        let mut outputs = [
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch]),
        ];
        for b in 0..batch {
            let logits = |i: usize| &inputs[0].data()[(b * n + i) * pixels..][..pixels];
            let class = |i: usize| self.asked(inputs[2].data()[b * n + i] as i32).0;
            let area = |i: usize| logits(i).iter().filter(|&&x| x > 0.0).count();
            let iou = |i: usize, j: usize| {
                let both = logits(i).iter().zip(logits(j)).filter(|&(&a, &b)| a > 0.0 && b > 0.0).count();
                both as f64 / (area(i) + area(j) - both) as f64
            };
            let mut found: Vec<(usize, f64)> = Vec::new();
            for i in 0..n {
                let score = inputs[1].data()[b * n + i];
                let least = self.asked(inputs[2].data()[b * n + i] as i32).1;
                if score > f64::from(self.score_threshold) && area(i) > least {
                    let inside = logits(i).iter().filter(|&&x| x > 0.0);
                    let sum: f64 = inside.map(|x| 1.0 / (1.0 + (-x).exp())).sum();
                    found.push((i, score * (sum / area(i) as f64)));
                }
            }
            found.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut worst: Vec<f64> = Vec::new();
            let mut left: Vec<(usize, f64)> = Vec::new();
            for (place, &(j, score)) in found.iter().enumerate() {
                let (mut own, mut decay) = (0.0f64, 1.0f64);
                for before in (0..place).filter(|&before| class(found[before].0) == class(j)) {
                    let iou = iou(found[before].0, j);
                    own = own.max(iou);
                    let exponent = iou.powi(2) - worst[before].powi(2);
                    decay = decay.min((-f64::from(self.sigma) * exponent).exp());
                }
                worst.push(own);
                if score * decay >= f64::from(self.least_score) {
                    left.push((j, score * decay));
                }
            }
            left.sort_by(|a, b| b.1.total_cmp(&a.1));
            left.truncate(self.keep);
            for (place, &(i, score)) in left.iter().enumerate() {
                let row = b * self.keep + place;
                outputs[0].data_mut()[row] = score;
                outputs[1].data_mut()[row] = i as f64;
                outputs[2].data_mut()[row] = class(i) as f64;
            }
            outputs[3].data_mut()[b] = left.len() as f64;
        }
        outputs.into()
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        // A sigmoid a pixel; pairs of one class, if all have as many masks, bit by bit.
        let masks = inputs[0].shape;
        (10 * masks.len() + masks.len() * masks[1] / (32 * self.classes.max(1))) as u64
    }

    fn cases() -> Vec<Case> {
        let op = |classes, keep| MatrixNms {
            classes,
            least_pixels: vec![(3, 4), (5, 12)],
            score_threshold: 0.1,
            sigma: 2.0,
            least_score: 0.05,
            keep,
        };
        let case = |name: &str, op: MatrixNms, [b, n, h, w]: [usize; 4]| {
            let candidates = (12 * op.classes) as i32;
            Case::new(name, op, &[&[b, n, h, w], &[b, n], &[b, n]])
                .fill(0, Filling::Uniform(-4.0, 4.0))
                .fill(1, Filling::Uniform(0.0, 1.0))
                .exact(1)
                .fill(2, Filling::Index(0, candidates))
        };
        let grids = [(1600, 8), (1296, 8), (576, 16), (256, 32), (144, 32)].to_vec();
        let solov2 = MatrixNms { least_pixels: grids, ..op(80, 100) };
        vec![
            case("one", op(1, 1), [1, 1, 3, 3]),
            case("odd", op(3, 20), [2, 31, 5, 7]),
            case("one_class", op(1, 40), [1, 40, 9, 11]),
            case("fewer_kept", op(2, 3), [1, 40, 8, 8]),
            case("none", op(2, 0), [1, 0, 8, 8]),
            case("no_pixels", op(2, 3), [1, 5, 0, 8]),
            case("empty_masks", op(2, 3), [1, 5, 8, 8]).fill(0, Filling::Uniform(-4.0, 0.0)),
            case("below", op(2, 3), [1, 5, 8, 8]).fill(1, Filling::Uniform(-1.0, 0.1)),
            // The same mask over and over: equal scores stay in order, and decay.
            case("equal", op(1, 12), [1, 12, 6, 6])
                .fill(0, Filling::Constant(2.0))
                .fill(1, Filling::Constant(0.5)),
            case("large", op(2, 10), [1, 12, 40, 131]),
            case("solov2", solov2, [1, 500, 200, 336]).bench(),
        ]
    }
}
