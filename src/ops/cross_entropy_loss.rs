//! Softmax cross-entropy with ignored positions.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_indices,
    expect_inputs, expect_rank, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Sum over positions of `-ln softmax(x)[label]`, the softmax along axis 1. Positions whose label lies
/// outside the classes are ignored. In the rank loss of panoptic K-Net the "classes" are the objects of an
/// image.
///
/// Inputs: logits `[O, K, I]`, labels `[O, I]` (i32). Output: `[1]`. Labels are constants; normalisation
/// is the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossEntropyLoss;

fn check(inputs: &[ValueType]) -> std::result::Result<Shape, String> {
    let logits = expect_rank(inputs, 0, 3, "[O, K, I]")?;
    expect_indices(inputs, 1, [logits[0], logits[2]], "labels")?;
    Ok(logits)
}

/// For every labelled position: the indices of its logits, its label, and the logarithm of the sum of
/// exponentials.
fn visit(inputs: &[&Tensor<f64>], mut visit: impl FnMut(&dyn Fn(usize) -> usize, usize, f64)) {
    let (x, labels) = (inputs[0], inputs[1]);
    let [classes, inner] = [x.shape()[1], x.shape()[2]];
    for (position, label) in labels.data().iter().enumerate() {
        if !(0.0..classes as f64).contains(label) {
            continue;
        }
        let index = |class: usize| (position / inner * classes + class) * inner + position % inner;
        let max = (0..classes).map(|class| x.data()[index(class)]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..classes).map(|class| (x.data()[index(class)] - max).exp()).sum();
        visit(&index, *label as usize, max + sum.ln());
    }
}

impl Operator for CrossEntropyLoss {
    const NAME: &'static str = "cross_entropy_loss";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        check(inputs)?;
        Ok(vec![ValueType::exact([1])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut loss = 0.0;
        visit(inputs, |index, label, total| loss += total - inputs[0].data()[index(label)]);
        vec![Tensor::new([1], vec![loss])]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let inputs = [site.inputs[0], site.inputs[1], site.grad()?];
        Ok(vec![Some(b.node(&site.named("logits.grad"), CrossEntropyLossGrad, &inputs)?), None])
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        10 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [o, k, i]: [usize; 3]| {
            Case::new(name, CrossEntropyLoss, &[&[o, k, i], &[o, i]])
                .fill(0, Filling::Uniform(-6.0, 6.0))
                .fill(1, Filling::Index(-1, k as i32))
        };
        vec![
            case("one", [1, 1, 1]),
            case("rows", [9, 7, 1]),
            case("map", [2, 5, 63]).map(0),
            case("extreme", [2, 7, 9]).fill(0, Filling::Uniform(-500.0, 500.0)),
            case("all_ignored", [1, 4, 6]).fill(1, Filling::Index(-1, 0)),
            case("rank", [2, 153, 16384]).map(0).bench(),
        ]
    }
}

/// Gradient of [`CrossEntropyLoss`]: `(softmax(x) - [class is the label])` times the upstream gradient, 0 at
/// ignored positions.
///
/// Inputs: logits, labels, gradient of the loss `[1]`. Output: as the logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossEntropyLossGrad;

impl Operator for CrossEntropyLossGrad {
    const NAME: &'static str = "cross_entropy_loss_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        check(inputs)?;
        expect_shape(inputs, 2, [1], "gradient of the loss")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let upstream = inputs[2].data()[0];
        let mut dx = Tensor::zeros(inputs[0].shape());
        visit(inputs, |index, label, total| {
            for class in 0..inputs[0].shape()[1] {
                let p = (inputs[0].data()[index(class)] - total).exp();
                dx.data_mut()[index(class)] = upstream * (p - f64::from(u8::from(class == label)));
            }
        });
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        10 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let grad = |case: Case| {
            let mut case = Case { op: CrossEntropyLossGrad.into(), ..case };
            case.inputs.push(ValueType::exact([1]));
            case.fills.push(Filling::Uniform(-1.0, 1.0));
            case
        };
        CrossEntropyLoss::cases().into_iter().map(grad).collect()
    }
}
