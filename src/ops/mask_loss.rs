//! Losses between the masks of matched objects and their targets: binary cross-entropy and dice.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_indices,
    expect_inputs, expect_rank, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Added to both sums of squares of the dice coefficient (upstream `DiceLoss`).
pub const DICE_EPS: f64 = 1e-3;

/// Sums, over the matched objects, of the binary cross-entropy and of the dice loss of their masks.
///
/// With `p = sigmoid(x)` and the target `t` of the slot an object is matched with:
/// `cross_entropy = sum over pixels of max(x, 0) - x t + ln(1 + exp(-|x|))` and
/// `dice = 1 - 2 p.t / (p.p + eps + t.t + eps)`. Targets may be soft. Normalisation (mean over positives,
/// loss weight) is the caller's, through the gradient it seeds.
///
/// Inputs: mask logits `[B, N, H, W]`, targets `[B, G, H, W]`, `matched` `[B, N]` (i32): the slot of each
/// object's target, negative for objects without one. Outputs: cross-entropy `[1]`, dice `[1]`, and
/// `[B, N, 3]` the sums `p.t`, `p.p` and `t.t` of the matched objects for the backward pass.
///
/// Targets are constants: no gradient flows to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskLoss;

/// Target of each object, as plane of the targets.
fn planes<'a>(inputs: &'a [&Tensor<f64>]) -> impl Iterator<Item = (usize, Option<&'a [f64]>)> {
    let (targets, matched) = (inputs[1], inputs[2]);
    let [_, slots, h, w] = [0, 1, 2, 3].map(|axis| targets.shape()[axis]);
    let (objects, pixels) = (matched.shape()[1], h * w);
    matched.data().iter().enumerate().map(move |(object, &slot)| {
        let slot = (slot >= 0.0).then(|| object / objects * slots + slot as usize);
        (object, slot.map(|slot| &targets.data()[slot * pixels..][..pixels]))
    })
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))` without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn check(inputs: &[ValueType]) -> std::result::Result<Shape, String> {
    let logits = expect_rank(inputs, 0, 4, "[B, N, H, W]")?;
    let targets = expect_rank(inputs, 1, 4, "[B, G, H, W]")?;
    if [logits[0], logits[2], logits[3]] != [targets[0], targets[2], targets[3]] {
        return Err(format!("targets {targets} are not over the pixels of masks {logits}"));
    }
    expect_indices(inputs, 2, [logits[0], logits[1]], "matched slots")?;
    Ok(logits)
}

impl Operator for MaskLoss {
    const NAME: &'static str = "mask_loss";
    /// Targets and their order; the sums that `backward` reads.
    const GRADIENT: Gradient = Gradient::Of { constants: &[1, 2], detached: &[2] };

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let logits = check(inputs)?;
        Ok(vec![ValueType::exact([1]), ValueType::exact([1]), ValueType::exact([logits[0], logits[1], 3])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [batch, objects, h, w] = [0, 1, 2, 3].map(|axis| inputs[0].shape()[axis]);
        let (mut entropy, mut dice) = (0.0, 0.0);
        let mut sums = Tensor::zeros([batch, objects, 3]);
        for (object, target) in planes(inputs) {
            let Some(target) = target else { continue };
            let logits = &inputs[0].data()[object * h * w..][..h * w];
            let sums = &mut sums.data_mut()[3 * object..][..3];
            for (&x, &t) in logits.iter().zip(target) {
                let p = sigmoid(x);
                entropy += softplus(x) - x * t;
                sums[0] += p * t;
                sums[1] += p * p;
                sums[2] += t * t;
            }
            dice += 1.0 - 2.0 * sums[0] / (sums[1] + DICE_EPS + sums[2] + DICE_EPS);
        }
        vec![Tensor::new([1], vec![entropy]), Tensor::new([1], vec![dice]), sums]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut inputs = site.inputs.to_vec();
        inputs.push(site.outputs[2]);
        inputs.extend([site.grad_or_zeros(b, 0)?, site.grad_or_zeros(b, 1)?]);
        Ok(vec![Some(b.node(&site.named("logits.grad"), MaskLossGrad, &inputs)?), None, None])
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        16 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [b, n, g, h, w]: [usize; 5]| {
            Case::new(name, MaskLoss, &[&[b, n, h, w], &[b, g, h, w], &[b, n]])
                .fill(0, Filling::Uniform(-6.0, 6.0))
                .fill(1, Filling::Uniform(0.0, 1.0))
                .fill(2, Filling::Index(-1, g as i32))
        };
        vec![
            case("one", [1, 1, 1, 1, 1]),
            case("odd", [2, 5, 3, 7, 9]),
            case("none_matched", [1, 4, 0, 5, 5]),
            case("extreme", [1, 3, 2, 4, 4]).fill(0, Filling::Uniform(-90.0, 90.0)),
            case("stage", [2, 100, 20, 128, 128]).bench(),
        ]
    }
}

/// Gradient of [`MaskLoss`] with respect to the logits.
///
/// With `D = p.p + eps + t.t + eps`: `dx = de (p - t) + dd (-2 t / D + 4 p.t p / D^2) p (1 - p)` on matched
/// objects, 0 on the others.
///
/// Inputs: logits, targets and matched slots as there, its sums `[B, N, 3]`, gradients `de` and `dd` of
/// cross-entropy and dice `[1]`. Output: as the logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskLossGrad;

impl Operator for MaskLossGrad {
    const NAME: &'static str = "mask_loss_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 6)?;
        let logits = check(inputs)?;
        expect_shape(inputs, 3, [logits[0], logits[1], 3], "sums")?;
        expect_shape(inputs, 4, [1], "gradient of the cross-entropy")?;
        expect_shape(inputs, 5, [1], "gradient of the dice loss")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut dx = Tensor::zeros(inputs[0].shape());
        let pixels = inputs[0].shape()[2] * inputs[0].shape()[3];
        let (de, dd) = (inputs[4].data()[0], inputs[5].data()[0]);
        for (object, target) in planes(inputs) {
            let Some(target) = target else { continue };
            let sums = &inputs[3].data()[3 * object..][..3];
            let denominator = sums[1] + DICE_EPS + sums[2] + DICE_EPS;
            for (pixel, &t) in target.iter().enumerate() {
                let p = sigmoid(inputs[0].data()[object * pixels + pixel]);
                let dp = -2.0 * t / denominator + 4.0 * sums[0] * p / (denominator * denominator);
                dx.data_mut()[object * pixels + pixel] = de * (p - t) + dd * dp * p * (1.0 - p);
            }
        }
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        16 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        MaskLoss::cases()
            .into_iter()
            .map(|case| {
                let [b, n] = [case.inputs[0].shape[0], case.inputs[0].shape[1]];
                let mut shapes: Vec<Vec<usize>> =
                    case.inputs.iter().map(|ty| ty.shape.dims().to_vec()).collect();
                shapes.extend([vec![b, n, 3], vec![1], vec![1]]);
                let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
                let mut grad =
                    Case::new(case.name.clone(), MaskLossGrad, &shapes).fill(3, Filling::Uniform(1.0, 2.0));
                grad.fills[..3].copy_from_slice(&case.fills);
                grad.inputs[..3].copy_from_slice(&case.inputs);
                Case { bench: case.bench, ..grad }
            })
            .collect()
    }
}
