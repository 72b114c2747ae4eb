//! Group normalisation.

use super::activation::Activation;
use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, case::Tolerance,
    expect_inputs, expect_rank, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y = activation((x - mean) / sqrt(variance + eps) * gamma[c] + beta[c])`, mean and biased variance taken
/// over the pixels and the `C / groups` channels of one group of one image (Wu and He 2018).
///
/// Inputs: `x` `[B, H, W, C]`, `gamma` and `beta` `[C]`. Output: as `x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// Number of groups of neighbouring channels; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Applied last. Builders leave it out; the fusion pass sets it.
    pub activation: Option<Activation>,
}

impl Operator for GroupNorm {
    const NAME: &'static str = "group_norm";
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        if self.groups == 0 || !x[3].is_multiple_of(self.groups) {
            return Err(format!("{} groups do not divide the channels of {x}", self.groups));
        }
        expect_shape(inputs, 1, [x[3]], "gamma")?;
        expect_shape(inputs, 2, [x[3]], "beta")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, gamma, beta) = (inputs[0], inputs[1].data(), inputs[2].data());
        let [batch, pixels, channels] = [x.shape()[0], x.shape()[1] * x.shape()[2], x.shape()[3]];
        let width = channels / self.groups;
        let mut y = x.clone();
        for b in 0..batch {
            for group in 0..self.groups {
                let indices = || {
                    let rows = (b * pixels..(b + 1) * pixels).map(|row| row * channels + group * width);
                    rows.flat_map(|start| start..start + width)
                };
                let count = (pixels * width) as f64;
                let mean = indices().map(|i| x.data()[i]).sum::<f64>() / count;
                let variance = indices().map(|i| (x.data()[i] - mean).powi(2)).sum::<f64>() / count;
                let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
                for i in indices() {
                    let c = i % channels;
                    let v = (x.data()[i] - mean) * scale * gamma[c] + beta[c];
                    y.data_mut()[i] = self.activation.map_or(v, |activation| activation.apply(v));
                }
            }
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut grad = site.grad()?;
        if let Some(activation) = self.activation {
            grad = activation.backward(b, site.name, (None, site.outputs[0]), grad)?;
        }
        let op = GroupNormGrad { groups: self.groups, eps: self.eps };
        let grads = b.nodes(&site.named("dx"), op, &[site.inputs[0], site.inputs[1], grad])?;
        Ok(grads.into_iter().map(Some).collect())
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        (5 + u64::from(self.activation.is_some())) * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, groups, activation, x: &[usize]| {
            Case::new(name, GroupNorm { groups, eps: 1e-5, activation }, &[x, &[x[3]], &[x[3]]])
        };
        let relu = Some(Activation::Relu);
        vec![
            case("one_pixel", 4, None, &[1, 1, 1, 8]),
            case("odd", 3, None, &[3, 7, 5, 6]),
            case("group_per_channel", 5, None, &[1, 4, 3, 5]),
            case("one_group", 1, None, &[2, 3, 3, 5]),
            // Mean far above the deviation: sums of squares in f32 would lose all digits of the variance.
            case("offset", 4, None, &[1, 40, 41, 12]).fill(0, Filling::Uniform(999.0, 1001.0)),
            case("constant", 2, None, &[1, 9, 9, 6]).fill(0, Filling::Constant(3.5)),
            case("several_chunks", 8, Some(Activation::Sigmoid), &[2, 67, 61, 48]),
            case("empty", 2, None, &[0, 3, 3, 4]),
            case("fused", 32, relu, &[2, 13, 11, 64]),
            case("sfpn", 32, relu, &[1, 100, 168, 256]).bench(),
        ]
    }
}

/// The gradient of [`GroupNorm`] before its activation; the statistics are computed again. With `n` elements
/// a group, `xhat = (x - mean) / deviation` and `deviation = sqrt(variance + eps)`:
/// `dgamma = sum of dy * xhat`, `dbeta = sum of dy`,
/// `dx = (g - mean of g - xhat * mean of (g * xhat)) / deviation` with `g = gamma * dy` and means over the
/// group.
///
/// Inputs: `x` `[B, H, W, C]`, `gamma` `[C]`, `dy` as `x`. Outputs: `dx` as `x`, `dgamma` and `dbeta` `[C]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupNormGrad {
    /// Number of groups of neighbouring channels; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for GroupNormGrad {
    const NAME: &'static str = "group_norm_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        if self.groups == 0 || !x[3].is_multiple_of(self.groups) {
            return Err(format!("{} groups do not divide the channels of {x}", self.groups));
        }
        expect_shape(inputs, 1, [x[3]], "gamma")?;
        expect_shape(inputs, 2, x, "gradient")?;
        Ok(vec![inputs[0], inputs[1], inputs[1]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (shape, gamma) = (inputs[0].shape(), inputs[1].data());
        let (x, dy) = (inputs[0].data(), inputs[2].data());
        let mut grads = vec![Tensor::zeros(shape), Tensor::zeros([shape[3]]), Tensor::zeros([shape[3]])];
        let [batch, pixels, channels] = [shape[0], shape[1] * shape[2], shape[3]];
        let width = channels / self.groups;
        for (b, group) in (0..batch).flat_map(|b| (0..self.groups).map(move |group| (b, group))) {
            let indices = || {
                let rows = (b * pixels..(b + 1) * pixels).map(|row| row * channels + group * width);
                rows.flat_map(|start| start..start + width)
            };
            let mean_of = |f: &dyn Fn(usize) -> f64| indices().map(f).sum::<f64>() / (pixels * width) as f64;
            let mean = mean_of(&|i| x[i]);
            let inverse = 1.0 / (mean_of(&|i| (x[i] - mean).powi(2)) + f64::from(self.eps)).sqrt();
            let normalised = |i: usize| (x[i] - mean) * inverse;
            let scaled = |i: usize| gamma[i % channels] * dy[i];
            let (first, second) = (mean_of(&scaled), mean_of(&|i| scaled(i) * normalised(i)));
            for i in indices() {
                grads[0].data_mut()[i] = (scaled(i) - first - normalised(i) * second) * inverse;
                grads[1].data_mut()[i % channels] += dy[i] * normalised(i);
                grads[2].data_mut()[i % channels] += dy[i];
            }
        }
        grads
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        12 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, groups, x: [usize; 4]| {
            Case::new(name, GroupNormGrad { groups, eps: 1e-5 }, &[&x, &[x[3]], &x])
                // Not centred: the sums would cancel, and no bound relative to the sum would hold.
                .fill(2, Filling::Uniform(-0.5, 1.0))
        };
        vec![
            case("one_pixel", 1, [1, 1, 1, 8]),
            // Normalising two elements leaves little but their sign: `dx` is what remains of terms that
            // cancel.
            case("pairs", 4, [1, 1, 1, 8]).tolerance(Tolerance {
                relative_l2: 3e-4,
                reason: "f32 roundings of 6e-8 of terms 1,000 times the result",
            }),
            case("odd", 3, [3, 7, 5, 6]),
            case("group_per_channel", 5, [1, 4, 3, 5]),
            case("one_group", 1, [2, 3, 3, 5]),
            case("offset", 4, [1, 40, 41, 12]).fill(0, Filling::Uniform(999.0, 1001.0)),
            case("constant", 2, [1, 9, 9, 6]).fill(0, Filling::Constant(3.5)),
            case("several_chunks", 8, [2, 67, 61, 48]),
            case("empty", 2, [0, 3, 3, 4]),
            case("sfpn", 32, [2, 80, 80, 96]).bench(),
            case("sfpn_256", 32, [1, 100, 168, 256]).bench(),
        ]
    }
}
