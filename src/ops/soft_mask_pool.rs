//! Pooling under soft masks, as K-Net's semantic models gather the features of a class.

use super::{
    Backward, Inferred, MaskPool, MatMul, Operator, Reshape, Role, Softmax, SoftmaxGrad, ValueType,
    case::Case, case::Filling,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[b, n, c] = sum over pixels of softmax_n(masks[b, :, h, w])[n] * x[b, h, w, c]`: every class gathers the
/// features of the pixels by how likely they are its own. Source: `KernelUpdateHead` of `mmseg`'s K-Net.
///
/// Inputs: mask logits `[B, N, H, W]`, features `x` `[B, H, W, C]`. Output: `[B, N, C]`, a sum, not a mean.
/// Both operands have a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftMaskPool;

impl Operator for SoftMaskPool {
    const NAME: &'static str = "soft_mask_pool";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        // Shapes are those of hard masks.
        MaskPool.infer(inputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[1];
        let weights = Softmax { axis: 1 }.reference(&inputs[..1]).remove(0);
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        let (n, pixels) = (weights.shape()[1], h * w);
        let mut y = Tensor::zeros([batch, n, c]);
        for object in 0..batch * n {
            let sum = &mut y.data_mut()[object * c..][..c];
            for pixel in 0..pixels {
                let weight = weights.data()[object * pixels + pixel];
                let feature = &x.data()[(object / n * pixels + pixel) * c..][..c];
                sum.iter_mut().zip(feature).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        vec![y]
    }

    /// The weights are computed again: they are as large as the logits, and the forward pass keeps none.
    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let (masks, x) = (site.inputs[0], site.inputs[1]);
        let (masks_shape, x_shape) = (b.shape(masks), b.shape(x));
        let [batch, n, pixels, c] = [x_shape[0], masks_shape[1], x_shape[1] * x_shape[2], x_shape[3]];
        let weights = b.node(&site.named("weights"), Softmax { axis: 1 }, &[masks])?;
        let mut view =
            |what: &str, value, shape: Shape| b.node(&site.named(what), Reshape { shape }, &[value]);
        let weights_matrix = view("weights.matrix", weights, [batch, n, pixels].into())?;
        let x = view("features.matrix", x, [batch, pixels, c].into())?;
        let dy = site.grad()?;
        let mut grads = vec![None; 2];
        if site.needs[0] {
            let turned = MatMul { transpose_b: true, ..MatMul::new(Role::Map) };
            let dweights = b.node(&site.named("weights.product"), turned, &[dy, x])?;
            let dweights =
                b.node(&site.named("weights.grad"), Reshape { shape: masks_shape }, &[dweights])?;
            let grad = SoftmaxGrad { axis: 1 };
            grads[0] = Some(b.node(&site.named("masks.grad"), grad, &[weights, dweights])?);
        }
        if site.needs[1] {
            let turned = MatMul { transpose_a: true, ..MatMul::new(Role::Map) };
            let dx = b.node(&site.named("features.product"), turned, &[weights_matrix, dy])?;
            grads[1] = Some(b.node(&site.named("features.grad"), Reshape { shape: x_shape }, &[dx])?);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[0].shape.len() as u64 * (2 * inputs[1].shape[3] as u64 + 5)
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [b, n, h, w, c]: [usize; 5]| {
            Case::new(name, SoftMaskPool, &[&[b, n, h, w], &[b, h, w, c]])
                .fill(0, Filling::Uniform(-6.0, 6.0))
        };
        vec![
            case("one", [1, 1, 1, 1, 1]),
            case("odd", [2, 5, 7, 9, 19]),
            case("no_classes", [1, 0, 3, 3, 8]),
            case("no_images", [0, 4, 3, 3, 8]),
            case("no_channels", [1, 4, 3, 3, 0]),
            case("no_pixels", [1, 4, 0, 3, 8]),
            case("equal_logits", [1, 3, 5, 5, 8]).fill(0, Filling::Constant(0.0)),
            case("large_logits", [1, 17, 20, 23, 40]).fill(0, Filling::Uniform(-90.0, 90.0)),
            case("fcn", [1, 150, 64, 64, 512]).bench(),
            case("upernet", [1, 150, 32, 48, 256]).bench(),
        ]
    }
}
