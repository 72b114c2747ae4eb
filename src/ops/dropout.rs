//! Dropout of whole channels, and of whole branches.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_float,
    expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What is dropped or kept as one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum DropKind {
    /// A channel of an image (Tompson et al., 2015; PyTorch's `Dropout2d`).
    Channel,
    /// A residual branch, of an image (stochastic depth; Huang et al., 2016).
    Path {
        /// Share of the rate of the network's last block, which is dropped most often.
        share: f32,
    },
}

/// Where training drops a part of what comes in and makes up for it: `y[b, .., c] = x[b, .., c] factors[b,
/// c]`, the factors being 0 for what is dropped and `1 / (1 - rate)` for what is kept. Who trains draws them:
/// see [`train_dropout`](crate::graph::passes::train_dropout). At inference, and so in a model as it is
/// built, there are none, and `y = x`: [`optimize`](crate::graph::passes::optimize) takes the operator away.
///
/// Inputs: `x` `[B, .., C]`; in training `factors` `[B, C]`, or `[B, 1]` of a path. Output: as `x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropout {
    /// What is dropped or kept as one.
    pub kind: DropKind,
}

impl Dropout {
    /// Shape of the factors for images `x` `[B, .., C]`.
    pub fn factors(&self, x: &[usize]) -> [usize; 2] {
        let channels = match self.kind {
            DropKind::Channel => x.last().copied().unwrap_or(1),
            DropKind::Path { .. } => 1,
        };
        [x.first().copied().unwrap_or(1), channels]
    }
}

impl Operator for Dropout {
    const NAME: &'static str = "dropout";
    const GRADIENT: Gradient = Gradient::Of { constants: &[1], detached: &[] };

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        if !matches!(inputs.len(), 1 | 2) {
            return Err(format!("takes 1 or 2 inputs, not {}", inputs.len()));
        }
        let x = expect_float(inputs, 0)?;
        if x.rank() < 2 {
            return Err(format!("{x} has no axes for images and channels"));
        }
        if inputs.len() == 2 {
            expect_shape(inputs, 1, self.factors(x.dims()), "factors")?;
        }
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [x, factors] = inputs else { return vec![inputs[0].clone()] };
        let width = factors.shape()[1];
        let last = x.shape().rank() - 1;
        vec![Tensor::from_fn(x.shape(), |at| x.at(at) * factors.at(&[at[0], at[last] % width]))]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let grad = site.grad()?;
        Ok(match site.inputs {
            [_, factors] => vec![Some(b.node(&site.named("dx"), *self, &[grad, *factors])?), None],
            _ => vec![Some(grad)],
        })
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        if inputs.len() == 2 { inputs[0].shape.len() as u64 } else { 0 }
    }

    fn cases() -> Vec<Case> {
        let path = DropKind::Path { share: 0.5 };
        let case = |name: &str, kind, shape: &[usize]| {
            let op = Dropout { kind };
            let factors = op.factors(shape);
            Case::new(name, op, &[shape, &factors]).tolerance(Tolerance::POINTWISE)
        };
        let without = |name: &str, shape: &[usize]| {
            Case::new(name, Dropout { kind: path }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", DropKind::Channel, &[1, 1]),
            case("channels", DropKind::Channel, &[3, 5, 7, 19]),
            case("path", path, &[3, 5, 7, 19]),
            case("rows", path, &[2, 9, 5]),
            case("no_images", DropKind::Channel, &[0, 4, 4, 8]),
            case("no_channels", path, &[2, 4, 4, 0]),
            without("inference", &[2, 3, 4, 5]),
            case("features", DropKind::Channel, &[2, 128, 128, 512]).bench(),
        ]
    }
}
