//! Costs of pairing predicted objects with annotated ones, for the bipartite matching of training.

use super::mask_loss::{DICE_EPS, softplus};
use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_indices, expect_inputs,
    expect_rank,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `cost[n, g] = -mask_weight (p.t + (1 - p).(1 - t)) / pixels - dice_weight 2 p.t / (p.p + eps + t.t + eps)`
/// with `p = sigmoid(mask logits of n)` and the soft target `t` of slot `g` (upstream `MaskCost` and
/// `DiceCost`).
///
/// Inputs: mask logits `[B, N, H, W]`, targets `[B, G, H, W]`. Output: `[B, N, G]`. Matching is no function
/// to differentiate: there is no gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskCost {
    /// Weight of the agreement of pixels.
    pub mask_weight: f32,
    /// Weight of the dice coefficient.
    pub dice_weight: f32,
}

impl Operator for MaskCost {
    const NAME: &'static str = "mask_cost";
    const GRADIENT: Gradient = Gradient::None("matching is no function to differentiate");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let logits = expect_rank(inputs, 0, 4, "[B, N, H, W]")?;
        let targets = expect_rank(inputs, 1, 4, "[B, G, H, W]")?;
        if [logits[0], logits[2], logits[3]] != [targets[0], targets[2], targets[3]] {
            return Err(format!("targets {targets} are not over the pixels of masks {logits}"));
        }
        Ok(vec![ValueType::exact([logits[0], logits[1], targets[1]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [batch, objects, h, w] = [0, 1, 2, 3].map(|axis| inputs[0].shape()[axis]);
        let (slots, pixels) = (inputs[1].shape()[1], h * w);
        vec![Tensor::from_fn([batch, objects, slots], |at| {
            let logits = &inputs[0].data()[(at[0] * objects + at[1]) * pixels..][..pixels];
            let target = &inputs[1].data()[(at[0] * slots + at[2]) * pixels..][..pixels];
            let [mut both, mut neither, mut pp, mut tt] = [0.0; 4];
            for (&x, &t) in logits.iter().zip(target) {
                let p = 1.0 / (1.0 + (-x).exp());
                both += p * t;
                neither += (1.0 - p) * (1.0 - t);
                pp += p * p;
                tt += t * t;
            }
            let agreement = (both + neither) / pixels as f64;
            let dice = 2.0 * both / (pp + DICE_EPS + tt + DICE_EPS);
            -f64::from(self.mask_weight) * agreement - f64::from(self.dice_weight) * dice
        })]
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        let pixels = inputs[0].shape[2] * inputs[0].shape[3];
        (2 * outputs[0].shape.len() * pixels + 12 * inputs[0].shape.len()) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [b, n, g, h, w]: [usize; 5]| {
            let op = MaskCost { mask_weight: 1.0, dice_weight: 4.0 };
            Case::new(name, op, &[&[b, n, h, w], &[b, g, h, w]])
                .fill(0, Filling::Uniform(-6.0, 6.0))
                .fill(1, Filling::Uniform(0.0, 1.0))
        };
        vec![
            case("one", [1, 1, 1, 1, 1]),
            case("odd", [2, 5, 3, 7, 9]),
            case("no_slots", [1, 4, 0, 5, 5]),
            case("tiles", [1, 170, 130, 8, 9]),
            case("lite", [4, 16, 24, 80, 80]).bench(),
            case("stage", [2, 100, 100, 128, 128]).bench(),
        ]
    }
}

/// `cost[n, g] = weight (positive - negative)`, the focal cost of the class of slot `g` at object `n`
/// (upstream `FocalLossCost`: alpha 0.25, gamma 2): `positive = alpha (1 - p)^2 (-ln(p + eps))`,
/// `negative = (1 - alpha) p^2 (-ln(1 - p + eps))`, `eps` 1e-12.
///
/// Inputs: class logits `[B, M, K]` of which the first `objects` rows take part, labels `[B, G]` (i32).
/// Output: `[B, objects, G]`; slots whose label lies outside the classes cost 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassCost {
    /// Rows that take part: the thing proposals, which come first.
    pub objects: usize,
    /// Weight of the cost.
    pub weight: f32,
}

impl ClassCost {
    /// The cost of a class with logit `x`. In double precision on the CPU: it is a few thousand numbers.
    ///
    /// Upstream adds 1e-12 inside the logarithms, which softplus does not need: it bounds them by 27.7.
    pub fn cost(&self, x: f64) -> f64 {
        let (log_p, log_q) = (-softplus(-x), -softplus(x));
        let (p, q) = (log_p.exp(), log_q.exp());
        let positive = 0.25 * q * q * -(p + 1e-12).ln();
        let negative = 0.75 * p * p * -(q + 1e-12).ln();
        f64::from(self.weight) * (positive - negative)
    }

    /// Index of the logit of slot `g`'s class at object `n`, over `[B, M, K]`.
    pub(crate) fn logit(dims: &[usize], b: usize, n: usize, label: i32) -> Option<usize> {
        let (rows, classes) = (dims[1], dims[2]);
        let class = usize::try_from(label).ok().filter(|&class| class < classes)?;
        Some((b * rows + n) * classes + class)
    }
}

impl Operator for ClassCost {
    const NAME: &'static str = "class_cost";
    const GRADIENT: Gradient = Gradient::None("matching is no function to differentiate");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let logits = expect_rank(inputs, 0, 3, "[B, M, K]")?;
        let &[_, slots] = inputs[1].shape.dims() else {
            return Err(format!("labels (input 1) must be i32 [B, G], is {}", inputs[1]));
        };
        if logits[1] < self.objects {
            return Err(format!("{} objects of logits {logits}", self.objects));
        }
        expect_indices(inputs, 1, [logits[0], slots], "labels")?;
        Ok(vec![ValueType::exact([logits[0], self.objects, slots])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (logits, labels) = (inputs[0], inputs[1]);
        let [batch, slots] = [labels.shape()[0], labels.shape()[1]];
        vec![Tensor::from_fn([batch, self.objects, slots], |at| {
            let label = labels.data()[at[0] * slots + at[2]] as i32;
            let logit = ClassCost::logit(logits.shape().dims(), at[0], at[1], label);
            logit.map_or(0.0, |index| self.cost(logits.data()[index]))
        })]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        20 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [b, m, k, g]: [usize; 4], objects| {
            Case::new(name, ClassCost { objects, weight: 2.0 }, &[&[b, m, k], &[b, g]])
                .fill(0, Filling::Uniform(-9.0, 9.0))
                .fill(1, Filling::Index(-1, k as i32))
        };
        vec![
            case("one", [1, 1, 1, 1], 1),
            case("things", [2, 9, 7, 5], 6),
            case("no_slots", [1, 4, 3, 0], 4),
            case("extreme", [1, 4, 3, 5], 4).fill(0, Filling::Uniform(-90.0, 90.0)),
        ]
    }
}
