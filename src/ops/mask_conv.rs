//! K-Net's per-object mask convolution.

use super::{
    Backward, Fill, Inferred, MatMul, Operator, ReduceSum, Reshape, Role, ValueType, case::Case,
    expect_inputs, expect_rank, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[b, n, h, w] = sum over c of kernels[b, n, c] * x[b, h, w, c] + bias[n]`: every object's kernel is a 1x1
/// convolution that gives the logits of its mask (K-Net, section 3.1).
///
/// Inputs: `kernels` `[B, N, C]` or `[1, N, C]` (the same for all images), features `x` `[B, H, W, C]`, and
/// `bias` `[N]` if set. Output: planar masks `[B, N, H, W]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskConv {
    /// A bias per object is added.
    pub bias: bool,
}

impl Operator for MaskConv {
    const NAME: &'static str = "mask_conv";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2 + usize::from(self.bias))?;
        let kernels = expect_rank(inputs, 0, 3, "[B or 1, N, C]")?;
        let x = expect_rank(inputs, 1, 4, "[B, H, W, C]")?;
        if (kernels[0] != x[0] && kernels[0] != 1) || kernels[2] != x[3] {
            return Err(format!("kernels {kernels} do not fit features {x}"));
        }
        if self.bias {
            expect_shape(inputs, 2, [kernels[1]], "bias")?;
        }
        Ok(vec![ValueType::map([x[0], kernels[1], x[1], x[2]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (kernels, x) = (inputs[0], inputs[1]);
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        let n = kernels.shape()[1];
        vec![Tensor::from_fn([batch, n, h, w], |index| {
            let [b, object, row, column] = [index[0], index[1], index[2], index[3]];
            let image = if kernels.shape()[0] == 1 { 0 } else { b };
            let kernel = &kernels.data()[(image * n + object) * c..][..c];
            let feature = &x.data()[((b * h + row) * w + column) * c..][..c];
            let bias = if self.bias { inputs[2].data()[object] } else { 0.0 };
            kernel.iter().zip(feature).map(|(k, x)| k * x).sum::<f64>() + bias
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let (kernels, x) = (site.inputs[0], site.inputs[1]);
        let (kernels_shape, x_shape) = (b.shape(kernels), b.shape(x));
        let [batch, pixels, c] = [x_shape[0], x_shape[1] * x_shape[2], x_shape[3]];
        let (n, shared) = (kernels_shape[1], kernels_shape[0] != batch);
        let mut view =
            |what: &str, value, shape: Shape| b.node(&site.named(what), Reshape { shape }, &[value]);
        let dy = view("grad.matrix", site.grad()?, [batch, n, pixels].into())?;
        let x = view("features.matrix", x, [batch, pixels, c].into())?;
        let mut grads = vec![None; site.inputs.len()];
        if site.needs[0] {
            let mut grad = b.node(&site.named("kernels.grad"), MatMul::new(Role::Rows), &[dy, x])?;
            if shared {
                grad = b.node(&site.named("kernels.sum"), ReduceSum { shape: kernels_shape }, &[grad])?;
            }
            grads[0] = Some(grad);
        }
        if site.needs[1] {
            let turned = MatMul { transpose_a: true, ..MatMul::new(Role::Map) };
            let dx = b.node(&site.named("features.product"), turned, &[dy, kernels])?;
            grads[1] = Some(b.node(&site.named("features.grad"), Reshape { shape: x_shape }, &[dx])?);
        }
        if self.bias && site.needs[2] {
            // A sum over the last axis is a product with ones.
            let ones = Fill { shape: [1, 1, pixels].into(), value: 1.0 };
            let ones = b.node(&site.named("ones"), ones, &[])?;
            let turned = MatMul { transpose_b: true, ..MatMul::new(Role::Weight) };
            let each = b.node(&site.named("bias.each"), turned, &[ones, dy])?;
            let sum = b.node(&site.named("bias.sum"), ReduceSum { shape: [1, 1, n].into() }, &[each])?;
            grads[2] = Some(b.node(&site.named("bias.grad"), Reshape { shape: [n].into() }, &[sum])?);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs[0].shape.len() as u64 * (2 * inputs[1].shape[3] as u64 + u64::from(self.bias))
    }

    fn cases() -> Vec<Case> {
        let (plain, bias) = (MaskConv::default(), MaskConv { bias: true });
        vec![
            Case::new("one", plain, &[&[1, 1, 1], &[1, 1, 1, 1]]),
            Case::new("odd", plain, &[&[2, 5, 19], &[2, 7, 9, 19]]),
            Case::new("shared", bias, &[&[1, 13, 40], &[3, 5, 7, 40], &[13]]),
            Case::new("no_objects", plain, &[&[1, 0, 8], &[1, 3, 3, 8]]),
            Case::new("no_images", plain, &[&[1, 3, 8], &[0, 3, 3, 8]]),
            Case::new("knet", plain, &[&[1, 100, 256], &[1, 64, 64, 256]]).bench(),
        ]
    }
}
