//! Sigmoid focal loss (Lin et al. 2017).

use super::mask_loss::softplus;
use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_indices,
    expect_inputs, expect_rank, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Sum of the sigmoid focal loss with gamma 2: every class is a binary decision.
///
/// With `p = sigmoid(x)`: the labelled class adds `alpha (1 - p)^2 (-ln p)`, every other class
/// `(1 - alpha) p^2 (-ln(1 - p))`, times the weight of the (object, class) pair. A label outside the classes
/// is background: all classes are negative. Normalisation and loss weight are the caller's, through the
/// gradient it seeds.
///
/// Inputs: logits `[O, K, I]` (`K` classes; `O` objects and `I` 1, or `O` images and `I` pixels of planar
/// maps), labels `[O, I]` (i32), and if `weighted` weights `[R, K]`, where row `o % R` holds for object `o`.
/// Output: `[1]`.
///
/// Labels and weights are constants: no gradient flows to them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FocalLoss {
    /// Weight of the labelled class against the others.
    pub alpha: f32,
    /// Whether there are weights.
    pub weighted: bool,
}

impl FocalLoss {
    /// K-Net's balance, for classes and for semantic maps.
    pub const ALPHA: f32 = 0.25;

    fn check(&self, inputs: &[ValueType]) -> std::result::Result<Shape, String> {
        let logits = expect_rank(inputs, 0, 3, "[O, K, I]")?;
        expect_indices(inputs, 1, [logits[0], logits[2]], "labels")?;
        if self.weighted {
            let weights = expect_rank(inputs, 2, 2, "[R, K]")?;
            if weights[1] != logits[1] || weights[0] == 0 || !logits[0].is_multiple_of(weights[0]) {
                return Err(format!("weights {weights} do not repeat over logits {logits}"));
            }
        }
        Ok(logits)
    }

    /// For each logit: its index, whether its class is the label, its weight.
    fn visit(&self, inputs: &[&Tensor<f64>], mut visit: impl FnMut(usize, bool, f64)) {
        let [objects, classes, inner] = [0, 1, 2].map(|axis| inputs[0].shape()[axis]);
        for object in 0..objects {
            for class in 0..classes {
                let weight = if self.weighted {
                    inputs[2].data()[object % inputs[2].shape()[0] * classes + class]
                } else {
                    1.0
                };
                for i in 0..inner {
                    let label = inputs[1].data()[object * inner + i];
                    visit((object * classes + class) * inner + i, label == class as f64, weight);
                }
            }
        }
    }
}

impl Operator for FocalLoss {
    const NAME: &'static str = "focal_loss";
    /// Labels and weights.
    const GRADIENT: Gradient = Gradient::Of { constants: &[1, 2], detached: &[] };

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2 + usize::from(self.weighted))?;
        self.check(inputs)?;
        Ok(vec![ValueType::exact([1])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let alpha = f64::from(self.alpha);
        let mut sum = 0.0;
        self.visit(inputs, |index, positive, weight| {
            let x = inputs[0].data()[index];
            let (p, q) = ((-softplus(-x)).exp(), (-softplus(x)).exp());
            let loss =
                if positive { alpha * q * q * softplus(-x) } else { (1.0 - alpha) * p * p * softplus(x) };
            sum += weight * loss;
        });
        vec![Tensor::new([1], vec![sum])]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut inputs = site.inputs.to_vec();
        inputs.push(site.grad()?);
        let op = FocalLossGrad { alpha: self.alpha, weighted: self.weighted };
        let mut grads = vec![None; site.inputs.len()];
        grads[0] = Some(b.node(&site.named("logits.grad"), op, &inputs)?);
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        20 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [o, k, i]: [usize; 3]| {
            let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: false };
            Case::new(name, op, &[&[o, k, i], &[o, i]])
                .fill(0, Filling::Uniform(-6.0, 6.0))
                .fill(1, Filling::Index(-1, k as i32 + 1))
        };
        let weighted = |name: &str, [o, k, i]: [usize; 3], rows: usize| {
            let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: true };
            Case::new(name, op, &[&[o, k, i], &[o, i], &[rows, k]])
                .fill(0, Filling::Uniform(-6.0, 6.0))
                .fill(1, Filling::Index(-1, k as i32 + 1))
                .fill(2, Filling::Uniform(0.0, 1.0))
        };
        vec![
            case("one", [1, 1, 1]),
            case("objects", [12, 7, 1]),
            case("map", [2, 5, 63]).map(0),
            case("extreme", [4, 7, 3]).fill(0, Filling::Uniform(-90.0, 90.0)),
            case("empty", [0, 7, 1]),
            weighted("weighted", [12, 7, 1], 6),
            weighted("weighted_map", [4, 3, 40], 4),
            weighted("weighted_strips", [4, 11, 136], 2),
            case("strips_of_one", [2, 9, 33]).map(0),
            weighted("panoptic_objects", [306, 133, 1], 153).bench(),
            case("seg_preds", [2, 80, 16384]).map(0).bench(),
        ]
    }
}

/// Gradient of [`FocalLoss`] with respect to the logits.
///
/// With `q = 1 - p`: `alpha (2 q^2 p ln p - q^3)` for the labelled class, `(1 - alpha) (p^3 - 2 p^2 q ln q)`
/// for the others, times weight and upstream gradient.
///
/// Inputs: those of the loss, then its gradient `[1]`. Output: as the logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FocalLossGrad {
    /// As in the loss.
    pub alpha: f32,
    /// As in the loss.
    pub weighted: bool,
}

impl FocalLossGrad {
    fn loss(&self) -> FocalLoss {
        FocalLoss { alpha: self.alpha, weighted: self.weighted }
    }
}

impl Operator for FocalLossGrad {
    const NAME: &'static str = "focal_loss_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let loss_inputs = 2 + usize::from(self.weighted);
        expect_inputs(inputs, loss_inputs + 1)?;
        self.loss().check(inputs)?;
        expect_shape(inputs, loss_inputs, [1], "gradient of the loss")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let alpha = f64::from(self.alpha);
        let upstream = inputs[inputs.len() - 1].data()[0];
        let mut dx = Tensor::zeros(inputs[0].shape());
        self.loss().visit(inputs, |index, positive, weight| {
            let x = inputs[0].data()[index];
            let (p, q) = ((-softplus(-x)).exp(), (-softplus(x)).exp());
            let slope = if positive {
                -alpha * (2.0 * q * q * p * softplus(-x) + q * q * q)
            } else {
                (1.0 - alpha) * (2.0 * p * p * q * softplus(x) + p * p * p)
            };
            dx.data_mut()[index] = upstream * weight * slope;
        });
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        20 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let grad = |case: Case| {
            let weighted = case.inputs.len() == 3;
            let mut case = Case { op: FocalLossGrad { alpha: FocalLoss::ALPHA, weighted }.into(), ..case };
            case.inputs.push(ValueType::exact([1]));
            case.fills.push(Filling::Uniform(-1.0, 1.0));
            case
        };
        FocalLoss::cases().into_iter().map(grad).collect()
    }
}
