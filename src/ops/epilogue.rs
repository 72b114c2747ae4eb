//! What a matrix product or convolution does to its result before it is stored.

use super::{Backward, ReduceSum, Reshape, ValueType, activation::Activation, expect_shape};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Fused tail of [`Conv2d`](super::Conv2d) and [`Linear`](super::Linear):
/// `y = activation(product + bias[channel] + residual)`, in this order.
///
/// The operands follow the two of the product: first the bias `[C_out]`, then the residual, which has
/// the shape of the output. Builders set `bias`; the fusion pass sets the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Emits the gradients of bias and residual into `grads` (one place per operand of the node), and gives
    /// the gradient of the product.
    ///
    /// # Errors
    /// As [`Operator::backward`](super::Operator::backward).
    pub fn backward(
        &self,
        b: &mut Builder,
        site: &Backward<'_>,
        grads: &mut [Option<ValueId>],
    ) -> Result<ValueId> {
        let mut dy = site.grad()?;
        if let Some(activation) = self.activation {
            dy = activation.backward(b, site.name, (None, site.outputs[0]), dy)?;
        }
        if let Some(index) = self.residual_input() {
            grads[index] = Some(dy);
        }
        if let Some(index) = self.bias_input().filter(|&index| site.needs[index]) {
            let y = b.shape(dy);
            let mut dims = vec![1; y.rank()];
            dims[y.rank() - 1] = y.last();
            let sum = b.node(&site.named("bias.sum"), ReduceSum { shape: Shape::new(&dims) }, &[dy])?;
            let shape = Shape::from([y.last()]);
            grads[index] = Some(b.node(&site.named("bias.grad"), Reshape { shape }, &[sum])?);
        }
        Ok(dy)
    }

    /// Operations per output element.
    pub fn flops(&self) -> u64 {
        self.operands() as u64 + u64::from(self.activation.is_some())
    }
}
