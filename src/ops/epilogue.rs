//! What a matrix product or convolution does to its result before it is stored.

use super::{ValueType, activation::Activation, expect_shape};
use crate::tensor::{Shape, Tensor};

/// Fused tail of [`Conv2d`](super::Conv2d) and [`Linear`](super::Linear):
/// `y = activation(product + bias[channel] + residual)`, in this order.
///
/// The operands follow the two of the product: first the bias `[C_out]`, then the residual, which has
/// the shape of the output. Builders set `bias`; the fusion pass sets the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epilogue {
    /// A bias per output channel is added.
    pub bias: bool,
    /// A tensor of the output's shape is added.
    pub residual: bool,
    /// Applied last.
    pub activation: Option<Activation>,
}

impl Epilogue {
    /// Only a bias.
    pub const BIAS: Epilogue = Epilogue { bias: true, residual: false, activation: None };

    /// Number of operands after the two of the product.
    pub fn operands(&self) -> usize {
        usize::from(self.bias) + usize::from(self.residual)
    }

    /// Index of the bias among all inputs.
    pub fn bias_input(&self) -> Option<usize> {
        self.bias.then_some(2)
    }

    /// Index of the residual among all inputs.
    pub fn residual_input(&self) -> Option<usize> {
        self.residual.then_some(2 + usize::from(self.bias))
    }

    /// Checks the operands of the epilogue against the output.
    pub fn check(&self, inputs: &[ValueType], output: Shape) -> Result<(), String> {
        if let Some(index) = self.bias_input() {
            expect_shape(inputs, index, [output.last()], "bias")?;
        }
        if let Some(index) = self.residual_input() {
            expect_shape(inputs, index, output, "residual")?;
        }
        Ok(())
    }

    /// Applies the tail to the product, by plain loops.
    pub fn reference(&self, product: &mut Tensor<f64>, inputs: &[&Tensor<f64>]) {
        let channels = product.shape().last().max(1);
        for (i, v) in product.data_mut().iter_mut().enumerate() {
            if let Some(bias) = self.bias_input() {
                *v += inputs[bias].data()[i % channels];
            }
            if let Some(residual) = self.residual_input() {
                *v += inputs[residual].data()[i];
            }
            if let Some(activation) = self.activation {
                *v = activation.apply(*v);
            }
        }
    }

    /// Operations per output element.
    pub fn flops(&self) -> u64 {
        self.operands() as u64 + u64::from(self.activation.is_some())
    }
}
