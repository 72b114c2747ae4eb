//! Batch normalisation over the batch, as in training.

use super::{
    Backward, BatchNormGrad, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling,
    expect_float, expect_inputs, expect_shape,
};
use crate::error::{Error, Result};
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y = (x - mean[c]) * gamma[c] / sqrt(variance[c] + eps) + beta[c]`, mean and biased variance taken over
/// all axes but the last (Ioffe and Szegedy 2015).
///
/// Inputs: `x` `[.., C]`, `gamma` and `beta` `[C]`. Outputs: `y` as `x`, then `mean` and `variance` `[C]`,
/// from which a trainer updates the running statistics; they are not differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNormTrain {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for BatchNormTrain {
    const NAME: &'static str = "batch_norm_train";
    /// The statistics, which only update the running ones.
    const GRADIENT: Gradient = Gradient::Of { constants: &[], detached: &[1, 2] };

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let x = expect_float(inputs, 0)?;
        if x.rank() < 2 || x.is_empty() {
            return Err(format!("input 0 must be f32 [.., C] and not empty, is {}", inputs[0]));
        }
        expect_shape(inputs, 1, [x.last()], "gamma")?;
        expect_shape(inputs, 2, [x.last()], "beta")?;
        let statistic = ValueType::exact([x.last()]);
        Ok(vec![inputs[0], statistic, statistic])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (gamma, beta) = (inputs[1].data(), inputs[2].data());
        let (mut y, mut means, mut variances) = (inputs[0].clone(), inputs[1].clone(), inputs[1].clone());
        let channels = gamma.len();
        let count = (y.data().len() / channels) as f64;
        for c in 0..channels {
            let column = || inputs[0].data()[c..].iter().step_by(channels);
            let mean = column().sum::<f64>() / count;
            let variance = column().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            let scale = gamma[c] / (variance + f64::from(self.eps)).sqrt();
            for v in y.data_mut()[c..].iter_mut().step_by(channels) {
                *v = (*v - mean) * scale + beta[c];
            }
            (means.data_mut()[c], variances.data_mut()[c]) = (mean, variance);
        }
        vec![y, means, variances]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        if site.grads[1..].iter().any(Option::is_some) {
            return Err(Error::Graph(format!("`{}`: the statistics of a batch have no gradient", site.name)));
        }
        let operands = [site.inputs[0], site.inputs[1], site.outputs[1], site.outputs[2], site.grad()?];
        let grads = b.nodes(&site.named("dx"), BatchNormTrainGrad { eps: self.eps }, &operands)?;
        Ok(grads.into_iter().map(Some).collect())
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        5 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize]| {
            let c = x[x.len() - 1];
            Case::new(name, BatchNormTrain { eps: 1e-5 }, &[x, &[c], &[c]])
                // Means that are not close to 0, because they are judged relative to themselves.
                .fill(0, Filling::Uniform(-0.5, 1.5))
        };
        vec![
            case("one_pixel", &[1, 1, 1, 3]),
            case("odd", &[2, 3, 7, 5]),
            case("one_channel", &[3, 50, 1]),
            // Mean far above the deviation: sums of squares in f32 would lose all digits of the variance.
            case("offset", &[1, 40, 41, 12]).fill(0, Filling::Uniform(999.0, 1001.0)),
            case("constant", &[1, 9, 9, 6]).fill(0, Filling::Constant(3.5)),
            case("several_chunks", &[2, 67, 61, 48]),
            case("layer1", &[2, 50, 84, 256]).bench(),
        ]
    }
}

/// The gradient of [`BatchNormTrain`], through the statistics of the batch. With `n` elements a channel and
/// `xhat = (x - mean) / sqrt(variance + eps)`: `dgamma = sum of dy * xhat`, `dbeta = sum of dy`,
/// `dx = gamma / sqrt(variance + eps) * (dy - dbeta / n - xhat * dgamma / n)`.
///
/// Inputs: `x` `[.., C]`, then `gamma`, `mean`, `variance` `[C]` (the last two as the operator gave them),
/// then `dy` as `x`. Outputs: `dx` as `x`, `dgamma` and `dbeta` `[C]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNormTrainGrad {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for BatchNormTrainGrad {
    const NAME: &'static str = "batch_norm_train_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        BatchNormGrad::infer_operands(inputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [x, gamma, mean, variance] = [0, 1, 2, 3].map(|i| inputs[i].data());
        // As if frozen, then the part that goes through the statistics.
        let mut grads = BatchNormGrad { eps: self.eps }.reference(inputs);
        let [dgamma, dbeta] = [1, 2].map(|i| grads[i].data().to_vec());
        let channels = gamma.len().max(1);
        let count = (x.len() / channels) as f64;
        for (i, v) in grads[0].data_mut().iter_mut().enumerate() {
            let c = i % channels;
            let inverse = 1.0 / (variance[c] + f64::from(self.eps)).sqrt();
            let normalised = (x[i] - mean[c]) * inverse;
            *v -= gamma[c] * inverse * (dbeta[c] + normalised * dgamma[c]) / count;
        }
        grads
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        8 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize]| BatchNormGrad::case(name, BatchNormTrainGrad { eps: 1e-5 }, x);
        vec![
            case("odd", &[2, 3, 7, 5]),
            case("one_channel", &[3, 50, 1]),
            case("empty", &[0, 2, 4]),
            case("several_chunks", &[2, 67, 61, 48]),
            case("layer1", &[2, 50, 84, 256]).bench(),
        ]
    }
}
