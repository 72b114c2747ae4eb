//! Layer normalisation.

use super::activation::Activation;
use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_float,
    expect_inputs, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y = activation((x - mean) / sqrt(variance + eps) * gamma[c] + beta[c])`, mean and biased variance taken
/// over the last axis (Ba et al. 2016).
///
/// Inputs: `x` `[.., C]`, `gamma` and `beta` `[C]`. Output: as `x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Applied last. Builders leave it out; the fusion pass sets it.
    pub activation: Option<Activation>,
}

impl Operator for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let x = expect_float(inputs, 0)?;
        if x.rank() == 0 {
            return Err(format!("input 0 must be f32 [.., C], is {}", inputs[0]));
        }
        expect_shape(inputs, 1, [x.last()], "gamma")?;
        expect_shape(inputs, 2, [x.last()], "beta")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (gamma, beta) = (inputs[1].data(), inputs[2].data());
        let mut y = inputs[0].clone();
        for row in y.data_mut().chunks_exact_mut(gamma.len().max(1)) {
            let count = row.len() as f64;
            let mean = row.iter().sum::<f64>() / count;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
            for (c, v) in row.iter_mut().enumerate() {
                let normalised = (*v - mean) * scale * gamma[c] + beta[c];
                *v = self.activation.map_or(normalised, |activation| activation.apply(normalised));
            }
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut grad = site.grad()?;
        if let Some(activation) = self.activation {
            grad = activation.backward(b, site.name, (None, site.outputs[0]), grad)?;
        }
        let op = LayerNormGrad { eps: self.eps };
        let grads = b.nodes(&site.named("dx"), op, &[site.inputs[0], site.inputs[1], grad])?;
        Ok(grads.into_iter().map(Some).collect())
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        (5 + u64::from(self.activation.is_some())) * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, activation, x: &[usize]| {
            let c = x[x.len() - 1];
            Case::new(name, LayerNorm { eps: 1e-5, activation }, &[x, &[c], &[c]])
        };
        vec![
            case("one", None, &[1, 1]),
            case("odd", None, &[2, 7, 33]),
            case("wide", None, &[3, 1027]),
            case("offset", None, &[5, 96]).fill(0, Filling::Uniform(999.0, 1001.0)),
            case("constant", None, &[3, 20]).fill(0, Filling::Constant(-7.25)),
            case("no_rows", None, &[0, 33]),
            case("relu", Some(Activation::Relu), &[3, 5, 40]),
            case("sigmoid", Some(Activation::Sigmoid), &[19, 50]),
            case("knet", Some(Activation::Relu), &[1, 153, 256]).bench(),
        ]
    }
}

/// The gradient of [`LayerNorm`] before its activation; the statistics are computed again. With
/// `xhat = (x - mean) / deviation` and `deviation = sqrt(variance + eps)`: `dgamma = sum of dy * xhat`,
/// `dbeta = sum of dy`, `dx = (g - mean of g - xhat * mean of (g * xhat)) / deviation` with `g = gamma * dy`
/// and means over the last axis.
///
/// Inputs: `x` `[.., C]`, `gamma` `[C]`, `dy` as `x`. Outputs: `dx` as `x`, `dgamma` and `dbeta` `[C]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNormGrad {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for LayerNormGrad {
    const NAME: &'static str = "layer_norm_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let x = expect_float(inputs, 0)?;
        if x.rank() == 0 {
            return Err(format!("input 0 must be f32 [.., C], is {}", inputs[0]));
        }
        expect_shape(inputs, 1, [x.last()], "gamma")?;
        expect_shape(inputs, 2, x, "gradient")?;
        Ok(vec![inputs[0], inputs[1], inputs[1]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let gamma = inputs[1].data();
        let channels = gamma.len();
        let mut dx = inputs[2].clone();
        let (mut dgamma, mut dbeta) = (Tensor::zeros([channels]), Tensor::zeros([channels]));
        let rows = inputs[0].data().chunks_exact(channels.max(1));
        for (x, dx) in rows.zip(dx.data_mut().chunks_exact_mut(channels.max(1))) {
            let mean_of = |f: &dyn Fn(usize) -> f64| (0..channels).map(f).sum::<f64>() / channels as f64;
            let mean = mean_of(&|c| x[c]);
            let inverse = 1.0 / (mean_of(&|c| (x[c] - mean).powi(2)) + f64::from(self.eps)).sqrt();
            let normalised = |c: usize| (x[c] - mean) * inverse;
            let first = mean_of(&|c| gamma[c] * dx[c]);
            let second = mean_of(&|c| gamma[c] * dx[c] * normalised(c));
            for (c, v) in dx.iter_mut().enumerate() {
                dgamma.data_mut()[c] += *v * normalised(c);
                dbeta.data_mut()[c] += *v;
                *v = (gamma[c] * *v - first - normalised(c) * second) * inverse;
            }
        }
        vec![dx, dgamma, dbeta]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        14 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize]| {
            let c = x[x.len() - 1];
            Case::new(name, LayerNormGrad { eps: 1e-5 }, &[x, &[c], x])
                // Not centred: the sums would cancel, and no bound relative to the sum would hold.
                .fill(2, Filling::Uniform(-0.5, 1.0))
        };
        vec![
            case("odd", &[2, 7, 33]),
            case("wide", &[3, 1027]),
            case("narrow", &[1500, 3]),
            case("map", &[2, 5, 7, 96]),
            case("odd_map", &[1, 3, 11, 37]),
            case("offset", &[5, 96]).fill(0, Filling::Uniform(999.0, 1001.0)),
            case("constant", &[3, 20]).fill(0, Filling::Constant(-7.25)),
            case("no_rows", &[0, 33]),
            case("knet", &[2, 100, 256]).bench(),
        ]
    }
}
