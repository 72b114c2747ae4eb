//! Fully connected layer.

use super::{
    Backward, Inferred, MatMul, Operator, Reshape, Role, ValueType, case::Case, epilogue::Epilogue,
    expect_inputs, expect_rank,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{DType, Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[.., n] = sum over k of x[.., k] * w[n, k]`, then the [`Epilogue`].
///
/// Inputs: `x` `[.., K]` of any rank from 1, `w` `[N, K]` (PyTorch's layout), then the epilogue's operands.
/// Output: `[.., N]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// Fused tail.
    pub epilogue: Epilogue,
}

impl Operator for Linear {
    const NAME: &'static str = "linear";
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2 + self.epilogue.operands())?;
        let x = inputs[0].shape;
        let w = expect_rank(inputs, 1, 2, "[N, K]")?;
        if inputs[0].dtype != DType::F32 || x.rank() == 0 || x.last() != w[1] {
            return Err(format!("input {} does not end in the {} columns of weight {w}", inputs[0], w[1]));
        }
        let mut dims = x.dims().to_vec();
        dims[x.rank() - 1] = w[0];
        let y = Shape::new(&dims);
        self.epilogue.check(inputs, y)?;
        Ok(vec![inputs[0].with_shape(y)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, w) = (inputs[0], inputs[1]);
        let (n, k) = (w.shape()[0], w.shape()[1]);
        let mut dims = x.shape().dims().to_vec();
        dims[x.shape().rank() - 1] = n;
        let rows: usize = dims[..dims.len() - 1].iter().product();
        let mut y = Tensor::zeros(dims.as_slice());
        for row in 0..rows {
            for col in 0..n {
                y.data_mut()[row * n + col] =
                    (0..k).map(|i| x.data()[row * k + i] * w.data()[col * k + i]).sum();
            }
        }
        self.epilogue.reference(&mut y, inputs);
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut grads = vec![None; site.inputs.len()];
        let dy = self.epilogue.backward(b, site, &mut grads)?;
        let (x, w) = (site.inputs[0], site.inputs[1]);
        let (x_shape, [n, k]) = (b.shape(x), [b.shape(w)[0], b.shape(w)[1]]);
        let rows: usize = x_shape.dims()[..x_shape.rank() - 1].iter().product();
        let mut view =
            |what: &str, value, shape: Shape| b.node(&site.named(what), Reshape { shape }, &[value]);
        let dy = view("grad.matrix", dy, [1, rows, n].into())?;
        let x = view("input.matrix", x, [1, rows, k].into())?;
        let w = view("weight.matrix", w, [1, n, k].into())?;
        if site.needs[0] {
            let product = MatMul::new(b.graph().value(site.inputs[0]).ty.role);
            let dx = b.node(&site.named("input.product"), product, &[dy, w])?;
            grads[0] = Some(b.node(&site.named("input.grad"), Reshape { shape: x_shape }, &[dx])?);
        }
        if site.needs[1] {
            let turned = MatMul { transpose_a: true, ..MatMul::new(Role::Weight) };
            let dw = b.node(&site.named("weight.product"), turned, &[dy, x])?;
            grads[1] = Some(b.node(&site.named("weight.grad"), Reshape { shape: [n, k].into() }, &[dw])?);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs[0].shape.len() as u64 * (2 * inputs[1].shape[1] as u64 + self.epilogue.flops())
    }

    fn cases() -> Vec<Case> {
        use super::activation::Activation::{Relu, Sigmoid};
        let plain = Linear::default();
        let fused = |residual, activation| Linear { epilogue: Epilogue { bias: true, residual, activation } };
        vec![
            Case::new("one", plain, &[&[1], &[1, 1]]),
            Case::new("odd", plain, &[&[3, 5, 7], &[11, 7]]),
            Case::new("no_rows", plain, &[&[0, 7], &[11, 7]]),
            Case::new("bias", fused(false, None), &[&[2, 13, 40], &[33, 40], &[33]]),
            Case::new("sigmoid", fused(false, Some(Sigmoid)), &[&[9, 30], &[17, 30], &[17]]),
            Case::new("all_fused", fused(true, Some(Relu)), &[&[19, 64], &[50, 64], &[50], &[19, 50]]),
            Case::new("in_proj", fused(false, None), &[&[1, 100, 256], &[768, 256], &[768]]).bench(),
            Case::new("ffn_up", fused(false, Some(Relu)), &[&[1, 153, 256], &[2048, 256], &[2048]]).bench(),
            Case::new("ffn_down", fused(false, None), &[&[1, 153, 2048], &[256, 2048], &[256]]).bench(),
        ]
    }
}
