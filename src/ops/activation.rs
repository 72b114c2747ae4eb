//! Pointwise activations.

use super::{Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs};
use crate::tensor::Tensor;

/// A pointwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`; NaN stays NaN, as in PyTorch.
    Relu,
    /// `min(max(x, 0), 6)`; NaN stays NaN.
    Relu6,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

impl Activation {
    /// The function in double precision.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            _ if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Relu6 => x.clamp(0.0, 6.0),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }

    /// The range the function clamps to, for those that are nothing but a clamp.
    pub fn clamp(self) -> Option<(f32, f32)> {
        match self {
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Relu6 => Some((0.0, 6.0)),
            Activation::Sigmoid => None,
        }
    }
}

/// `y = activation(x)` for any shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activate {
    /// The function.
    pub activation: Activation,
}

impl Operator for Activate {
    const NAME: &'static str = "activation";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        Ok(vec![ValueType::f32(inputs[0].shape)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut y = inputs[0].clone();
        y.data_mut().iter_mut().for_each(|v| *v = self.activation.apply(*v));
        vec![y]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        let per_element = if self.activation == Activation::Sigmoid { 4 } else { 1 };
        per_element * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Fill::Uniform;
        let kinds = [
            ("relu", Activation::Relu, Tolerance::EXACT),
            ("relu6", Activation::Relu6, Tolerance::EXACT),
            ("sigmoid", Activation::Sigmoid, Tolerance::POINTWISE),
        ];
        let mut cases = Vec::new();
        for (name, activation, tolerance) in kinds {
            for (size, shape) in
                [("one", &[1][..]), ("odd", &[3, 5, 7]), ("empty", &[0, 4]), ("large", &[100, 200, 67])]
            {
                let case = Case::new(format!("{name}_{size}"), Activate { activation }, &[shape])
                    .fill(0, Uniform(-12.0, 12.0))
                    .tolerance(tolerance);
                cases.push(if size == "large" { case.bench() } else { case });
            }
        }
        cases
    }
}
