//! Frozen batch normalisation.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_float,
    expect_inputs, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y = (x - mean[c]) * gamma[c] / sqrt(variance[c] + eps) + beta[c]`, with stored statistics (Ioffe and
/// Szegedy 2015, in inference mode).
///
/// Inputs: `x` `[.., C]`, then `gamma`, `beta`, `mean`, `variance` `[C]`. Output: as `x`. After a convolution
/// it is folded away, see [`FoldBatchNorm`](super::FoldBatchNorm).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for BatchNorm {
    const NAME: &'static str = "batch_norm";
    /// The running statistics.
    const GRADIENT: Gradient = Gradient::Of { constants: &[3, 4], detached: &[] };
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 5)?;
        let x = expect_float(inputs, 0)?;
        if x.rank() == 0 {
            return Err(format!("input 0 must be f32 [.., C], is {}", inputs[0]));
        }
        for (index, what) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "variance")] {
            expect_shape(inputs, index, [x.last()], what)?;
        }
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| inputs[i].data());
        let mut y = inputs[0].clone();
        let channels = y.shape().last().max(1);
        for (i, v) in y.data_mut().iter_mut().enumerate() {
            let c = i % channels;
            *v = (*v - mean[c]) * gamma[c] / (variance[c] + f64::from(self.eps)).sqrt() + beta[c];
        }
        vec![y]
    }

    /// The stored statistics have no gradient.
    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let [x, gamma, _, mean, variance] = [0, 1, 2, 3, 4].map(|i| site.inputs[i]);
        let operands = [x, gamma, mean, variance, site.grad()?];
        let grads = b.nodes(&site.named("dx"), BatchNormGrad { eps: self.eps }, &operands)?;
        Ok(grads.into_iter().map(Some).chain([None, None]).collect())
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        2 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize]| {
            let c = x[x.len() - 1];
            Case::new(name, BatchNorm { eps: 1e-5 }, &[x, &[c], &[c], &[c], &[c]])
                .fill(4, Filling::Uniform(0.5, 2.0))
        };
        vec![
            case("one", &[1]),
            case("odd", &[2, 3, 7, 5]),
            case("one_channel", &[3, 50, 1]),
            case("empty", &[0, 2, 4]),
            case("layer1", &[1, 50, 84, 256]).bench(),
        ]
    }
}

/// The gradient of [`BatchNorm`]. With `s = gamma / sqrt(variance + eps)`: `dx = dy * s`,
/// `dgamma = sum of dy * (x - mean) / sqrt(variance + eps)`, `dbeta = sum of dy`.
///
/// Inputs: `x` `[.., C]`, then `gamma`, `mean`, `variance` `[C]`, then `dy` as `x`. Outputs: `dx` as `x`,
/// `dgamma` and `dbeta` `[C]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNormGrad {
    /// Added to the variance.
    pub eps: f32,
}

impl BatchNormGrad {
    /// Shape inference for the gradient of a norm with given statistics, frozen or of the batch.
    pub(crate) fn infer_operands(inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 5)?;
        let x = expect_float(inputs, 0)?;
        if x.rank() == 0 {
            return Err(format!("input 0 must be f32 [.., C], is {}", inputs[0]));
        }
        for (index, what) in [(1, "gamma"), (2, "mean"), (3, "variance")] {
            expect_shape(inputs, index, [x.last()], what)?;
        }
        expect_shape(inputs, 4, x, "gradient")?;
        Ok(vec![inputs[0], inputs[1], inputs[1]])
    }

    /// A case over `x` of this shape.
    pub(crate) fn case(name: &str, op: impl Into<super::Op>, x: &[usize]) -> Case {
        let c = x[x.len() - 1];
        // Gradients that are not centred: their sums would cancel, and no bound relative to the sum would
        // hold.
        Case::new(name, op, &[x, &[c], &[c], &[c], x])
            .fill(3, Filling::Uniform(0.5, 2.0))
            .fill(4, Filling::Uniform(-0.5, 1.0))
    }
}

impl Operator for BatchNormGrad {
    const NAME: &'static str = "batch_norm_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        BatchNormGrad::infer_operands(inputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [x, gamma, mean, variance] = [0, 1, 2, 3].map(|i| inputs[i].data());
        let (mut dx, mut dgamma, mut dbeta) = (inputs[4].clone(), inputs[1].clone(), inputs[1].clone());
        dgamma.data_mut().fill(0.0);
        dbeta.data_mut().fill(0.0);
        let channels = gamma.len().max(1);
        for (i, v) in dx.data_mut().iter_mut().enumerate() {
            let c = i % channels;
            let inverse = 1.0 / (variance[c] + f64::from(self.eps)).sqrt();
            dgamma.data_mut()[c] += *v * (x[i] - mean[c]) * inverse;
            dbeta.data_mut()[c] += *v;
            *v *= gamma[c] * inverse;
        }
        vec![dx, dgamma, dbeta]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        5 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize]| BatchNormGrad::case(name, BatchNormGrad { eps: 1e-5 }, x);
        vec![
            case("one", &[1]),
            case("odd", &[2, 3, 7, 5]),
            case("one_channel", &[3, 50, 1]),
            case("empty", &[0, 2, 4]),
            case("several_chunks", &[2, 67, 61, 48]),
            case("layer1", &[1, 50, 84, 256]).bench(),
        ]
    }
}
