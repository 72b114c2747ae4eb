//! Pointwise activations.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_float,
    expect_inputs, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A pointwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The derivative in double precision, from the result `y`: every function here is monotonic, so that the
    /// result tells where the operand lay. At its corners the derivative is 0, as in PyTorch.
    pub fn derivative(self, y: f64) -> f64 {
        match self {
            Activation::Relu => f64::from(y > 0.0),
            Activation::Relu6 => f64::from(y > 0.0 && y < 6.0),
            Activation::Sigmoid => y * (1.0 - y),
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

    /// Emits the gradient of the operand from the result `y` and its gradient: what every operator with a
    /// fused activation starts its backward pass with.
    ///
    /// # Errors
    /// As [`Builder::node`].
    pub fn backward(self, b: &mut Builder, name: &str, y: ValueId, grad: ValueId) -> Result<ValueId> {
        b.node(&format!("{name}.before_activation.grad"), ActivateGrad { activation: self }, &[y, grad])
    }
}

/// `y = activation(x)` for any shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activate {
    /// The function.
    pub activation: Activation,
}

impl Operator for Activate {
    const NAME: &'static str = "activation";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        expect_float(inputs, 0)?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut y = inputs[0].clone();
        y.data_mut().iter_mut().for_each(|v| *v = self.activation.apply(*v));
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(self.activation.backward(b, site.name, site.outputs[0], site.grad()?)?)])
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

/// `dx = dy * activation'(x)`, read off the result `y = activation(x)`.
///
/// Inputs: `y`, `dy` of the same shape. Output: as `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivateGrad {
    /// The function.
    pub activation: Activation,
}

impl Operator for ActivateGrad {
    const NAME: &'static str = "activation_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let y = expect_float(inputs, 0)?;
        expect_shape(inputs, 1, y, "gradient")?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut dx = inputs[1].clone();
        for (dx, &y) in dx.data_mut().iter_mut().zip(inputs[0].data()) {
            *dx *= self.activation.derivative(y);
        }
        vec![dx]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        2 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Fill::Uniform;
        let mut cases = Vec::new();
        let kinds = [
            ("relu", Activation::Relu, Uniform(-1.0, 1.0)),
            ("relu6", Activation::Relu6, Uniform(-2.0, 8.0)),
            ("sigmoid", Activation::Sigmoid, Uniform(0.0, 1.0)),
        ];
        for (name, activation, fill) in kinds {
            for (size, shape) in [("one", &[1][..]), ("empty", &[0, 4]), ("large", &[50, 200, 67])] {
                let case = Case::new(format!("{name}_{size}"), ActivateGrad { activation }, &[shape, shape])
                    .fill(0, fill)
                    .tolerance(Tolerance::POINTWISE);
                cases.push(if size == "large" { case.bench() } else { case });
            }
        }
        cases
    }
}
