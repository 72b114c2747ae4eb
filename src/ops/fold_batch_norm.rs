//! Folding a frozen batch norm into the convolution before it.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_inputs, expect_rank,
    expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `filter'[k] = filter[k] * s[k]`, `bias'[k] = beta[k] - mean[k] * s[k]` with
/// `s[k] = gamma[k] / sqrt(variance[k] + eps)`: a bias-free convolution with `filter` followed by
/// [`BatchNorm`](super::BatchNorm) equals one convolution with `filter'` and `bias'`.
///
/// Inputs: `filter` `[K, R, S, C]`, then `gamma`, `beta`, `mean`, `variance` `[K]`. Outputs: `filter'`
/// `[K, R, S, C]` and `bias'` `[K]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldBatchNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for FoldBatchNorm {
    const NAME: &'static str = "fold_batch_norm";
    /// The running statistics.
    const GRADIENT: Gradient = Gradient::Of { constants: &[3, 4], detached: &[] };

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 5)?;
        let filter = expect_rank(inputs, 0, 4, "[K, R, S, C]")?;
        for (index, what) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "variance")] {
            expect_shape(inputs, index, [filter[0]], what)?;
        }
        Ok(vec![inputs[0], inputs[1]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| inputs[i].data());
        let (mut filter, mut bias) = (inputs[0].clone(), inputs[2].clone());
        let taps = filter.data().len() / beta.len().max(1);
        for (k, filter) in filter.data_mut().chunks_exact_mut(taps.max(1)).enumerate() {
            let scale = gamma[k] / (variance[k] + f64::from(self.eps)).sqrt();
            filter.iter_mut().for_each(|w| *w *= scale);
            bias.data_mut()[k] = beta[k] - mean[k] * scale;
        }
        vec![filter, bias]
    }

    /// The stored statistics have no gradient.
    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let [filter, gamma, _, mean, variance] = [0, 1, 2, 3, 4].map(|i| site.inputs[i]);
        let mut operands = vec![filter, gamma, mean, variance];
        for (index, what) in ["no_dfilter", "no_dbias"].into_iter().enumerate() {
            operands.push(match site.grads[index] {
                Some(grad) => grad,
                None => {
                    let zeros = super::Fill { shape: b.shape(site.outputs[index]), value: 0.0 };
                    b.node(&site.named(what), zeros, &[])?
                }
            });
        }
        let grads = b.nodes(&site.named("dfilter"), FoldBatchNormGrad { eps: self.eps }, &operands)?;
        Ok(grads.into_iter().map(Some).chain([None, None]).collect())
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        (inputs[0].shape.len() + 4 * inputs[1].shape.len()) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, filter: &[usize]| {
            let k = filter[0];
            Case::new(name, FoldBatchNorm { eps: 1e-5 }, &[filter, &[k], &[k], &[k], &[k]])
                .fill(4, Filling::Uniform(0.5, 2.0))
        };
        vec![
            case("one", &[1, 1, 1, 1]),
            case("odd", &[5, 3, 3, 7]),
            case("depthwise", &[40, 5, 5, 1]),
            case("no_filters", &[0, 3, 3, 4]),
            case("layer4", &[512, 3, 3, 512]).bench(),
        ]
    }
}

/// The gradient of [`FoldBatchNorm`]. With `inverse[k] = 1 / sqrt(variance[k] + eps)`:
/// `dfilter[k] = dfilter'[k] * gamma[k] * inverse[k]`,
/// `dgamma[k] = (sum of dfilter'[k] * filter[k] - dbias'[k] * mean[k]) * inverse[k]`, `dbeta = dbias'`.
///
/// Inputs: `filter` `[K, R, S, C]`, then `gamma`, `mean`, `variance` `[K]`, then `dfilter'` as `filter` and
/// `dbias'` `[K]`. Outputs: `dfilter` as `filter`, `dgamma` and `dbeta` `[K]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldBatchNormGrad {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for FoldBatchNormGrad {
    const NAME: &'static str = "fold_batch_norm_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 6)?;
        let filter = expect_rank(inputs, 0, 4, "[K, R, S, C]")?;
        for (index, what) in [(1, "gamma"), (2, "mean"), (3, "variance"), (5, "gradient of the bias")] {
            expect_shape(inputs, index, [filter[0]], what)?;
        }
        expect_shape(inputs, 4, filter, "gradient of the filter")?;
        Ok(vec![inputs[0], inputs[1], inputs[1]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [filter, gamma, mean, variance] = [0, 1, 2, 3].map(|i| inputs[i].data());
        let (mut dfilter, mut dgamma, dbeta) = (inputs[4].clone(), inputs[1].clone(), inputs[5].clone());
        let taps = filter.len() / gamma.len().max(1);
        for k in 0..gamma.len() {
            let inverse = 1.0 / (variance[k] + f64::from(self.eps)).sqrt();
            let dfilter = &mut dfilter.data_mut()[k * taps..][..taps];
            let dot: f64 = dfilter.iter().zip(&filter[k * taps..]).map(|(d, w)| d * w).sum();
            dgamma.data_mut()[k] = (dot - dbeta.data()[k] * mean[k]) * inverse;
            dfilter.iter_mut().for_each(|d| *d *= gamma[k] * inverse);
        }
        vec![dfilter, dgamma, dbeta]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        (3 * inputs[0].shape.len() + 4 * inputs[1].shape.len()) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, filter: &[usize]| {
            let k = filter[0];
            Case::new(name, FoldBatchNormGrad { eps: 1e-5 }, &[filter, &[k], &[k], &[k], filter, &[k]])
                .fill(3, Filling::Uniform(0.5, 2.0))
        };
        vec![
            case("one", &[1, 1, 1, 1]),
            case("odd", &[5, 3, 3, 7]),
            case("depthwise", &[40, 5, 5, 1]),
            case("no_filters", &[0, 3, 3, 4]),
            case("no_taps", &[4, 3, 3, 0]),
            case("layer4", &[512, 3, 3, 512]).bench(),
        ]
    }
}
