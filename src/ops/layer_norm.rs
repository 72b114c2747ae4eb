//! Layer normalisation.

use super::activation::Activation;
use super::{
    Inferred, Operator, ValueType, case::Case, case::Fill, expect_float, expect_inputs, expect_shape,
};
use crate::tensor::Tensor;

/// `y = activation((x - mean) / sqrt(variance + eps) * gamma[c] + beta[c])`, mean and biased variance taken over
/// the last axis (Ba et al. 2016).
///
/// Inputs: `x` `[.., C]`, `gamma` and `beta` `[C]`. Output: as `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Applied last. Builders leave it out; the fusion pass sets it.
    pub activation: Option<Activation>,
}

impl Operator for LayerNorm {
    const NAME: &'static str = "layer_norm";

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
            case("offset", None, &[5, 96]).fill(0, Fill::Uniform(999.0, 1001.0)),
            case("constant", None, &[3, 20]).fill(0, Fill::Constant(-7.25)),
            case("no_rows", None, &[0, 33]),
            case("relu", Some(Activation::Relu), &[3, 5, 40]),
            case("sigmoid", Some(Activation::Sigmoid), &[19, 50]),
            case("knet", Some(Activation::Relu), &[1, 153, 256]).bench(),
        ]
    }
}
