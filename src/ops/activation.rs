//! Pointwise activations.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_float,
    expect_inputs, expect_shape,
};
use crate::error::{Error, Result};
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
    /// `x / 2 * (1 + erf(x / sqrt(2)))`: PyTorch's default, not the approximation by tanh.
    Gelu,
}

/// What the derivative of a function is told from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The result `y`, so that the operand need not live on: the function is monotonic.
    Result,
    /// The operand `x`.
    Operand,
}

impl Activation {
    /// The function in double precision.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            _ if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Relu6 => x.clamp(0.0, 6.0),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Gelu => x * normal_below(x),
        }
    }

    /// What the derivative is told from.
    pub fn reads(self) -> Reads {
        match self {
            Activation::Relu | Activation::Relu6 | Activation::Sigmoid => Reads::Result,
            Activation::Gelu => Reads::Operand,
        }
    }

    /// The derivative in double precision, from what it [reads](Activation::reads). At corners of the
    /// function it is 0, as in PyTorch.
    pub fn derivative(self, read: f64) -> f64 {
        match self {
            Activation::Relu => f64::from(read > 0.0),
            Activation::Relu6 => f64::from(read > 0.0 && read < 6.0),
            Activation::Sigmoid => read * (1.0 - read),
            Activation::Gelu => {
                let density = (-read * read / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                normal_below(read) + read * density
            }
        }
    }

    /// The range the function clamps to, for those that are nothing but a clamp.
    pub fn clamp(self) -> Option<(f32, f32)> {
        match self {
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Relu6 => Some((0.0, 6.0)),
            Activation::Sigmoid | Activation::Gelu => None,
        }
    }

    /// Emits the gradient of the operand from that of the result `y`. `x` is the operand where there is one:
    /// it has no value of its own in an operator that the function is fused into.
    ///
    /// # Errors
    /// [`Error::Graph`] if the derivative reads an operand that there is not; as [`Builder::node`].
    pub fn backward(
        self,
        b: &mut Builder,
        name: &str,
        (x, y): (Option<ValueId>, ValueId),
        grad: ValueId,
    ) -> Result<ValueId> {
        let fused = || {
            Error::Graph(format!("`{name}`: {self:?} is fused, and its gradient reads what came before it"))
        };
        let read = match self.reads() {
            Reads::Result => y,
            Reads::Operand => x.ok_or_else(fused)?,
        };
        b.node(&format!("{name}.before_activation.grad"), ActivateGrad { activation: self }, &[read, grad])
    }
}

/// The probability that a standard normal variable lies below `x`.
fn normal_below(x: f64) -> f64 {
    (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) / 2.0
}

/// The error function, by the series `2 / sqrt(pi) * exp(-x^2) * sum of (2 x^2)^n x / (1 * 3 * .. * (2 n +
/// 1))`: all terms are of one sign, so that nothing cancels.
fn erf(x: f64) -> f64 {
    // Beyond this it is 1 but for 2e-17.
    let y = x.abs().min(6.0);
    let (mut term, mut sum) = (y, y);
    for n in 1..200 {
        term *= 2.0 * y * y / f64::from(2 * n + 1);
        sum += term;
    }
    (std::f64::consts::FRAC_2_SQRT_PI * (-y * y).exp() * sum).copysign(x)
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
        let (x, y) = (Some(site.inputs[0]), site.outputs[0]);
        Ok(vec![Some(self.activation.backward(b, site.name, (x, y), site.grad()?)?)])
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        let per_element = match self.activation {
            Activation::Relu | Activation::Relu6 => 1,
            Activation::Sigmoid => 4,
            Activation::Gelu => 28,
        };
        per_element * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Filling::Uniform;
        let kinds = [
            ("relu", Activation::Relu, Tolerance::EXACT),
            ("relu6", Activation::Relu6, Tolerance::EXACT),
            ("sigmoid", Activation::Sigmoid, Tolerance::POINTWISE),
            ("gelu", Activation::Gelu, Tolerance::POINTWISE),
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

/// `dx = dy * activation'(x)`.
///
/// Inputs: what the derivative [reads](Activation::reads), `y = activation(x)` or `x`, and `dy` of the same
/// shape. Output: as `dy`.
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
        for (dx, &read) in dx.data_mut().iter_mut().zip(inputs[0].data()) {
            *dx *= self.activation.derivative(read);
        }
        vec![dx]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        2 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Filling::Uniform;
        let mut cases = Vec::new();
        let kinds = [
            ("relu", Activation::Relu, Uniform(-1.0, 1.0)),
            ("relu6", Activation::Relu6, Uniform(-2.0, 8.0)),
            ("sigmoid", Activation::Sigmoid, Uniform(0.0, 1.0)),
            ("gelu", Activation::Gelu, Uniform(-6.0, 6.0)),
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
