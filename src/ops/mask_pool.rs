//! K-Net's hard-mask pooling.

use super::{Backward, Gradient, Inferred, Operator, ValueType, case::Case, expect_inputs, expect_rank};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[b, n, c] = sum of x[b, h, w, c] over the pixels with masks[b, n, h, w] > 0`: the grouped feature of
/// every object (K-Net, equation 3, with the mask hardened at probability 0.5, that is logit 0).
///
/// Inputs: mask logits `[B, N, H, W]`, features `x` `[B, H, W, C]`. Output: `[B, N, C]`. The comparison is
/// strict, so a pixel whose logit is 0 or NaN belongs to no object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskPool;

impl Operator for MaskPool {
    const NAME: &'static str = "mask_pool";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let masks = expect_rank(inputs, 0, 4, "[B, N, H, W]")?;
        let x = expect_rank(inputs, 1, 4, "[B, H, W, C]")?;
        if [masks[0], masks[2], masks[3]] != [x[0], x[1], x[2]] {
            return Err(format!("masks {masks} are not over the pixels of features {x}"));
        }
        Ok(vec![ValueType::rows([x[0], masks[1], x[3]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (masks, x) = (inputs[0], inputs[1]);
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        let (n, pixels) = (masks.shape()[1], h * w);
        let mut y = Tensor::zeros([batch, n, c]);
        for object in 0..batch * n {
            let sum = &mut y.data_mut()[object * c..][..c];
            for pixel in 0..pixels {
                if masks.data()[object * pixels + pixel] > 0.0 {
                    let feature = &x.data()[(object / n * pixels + pixel) * c..][..c];
                    sum.iter_mut().zip(feature).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let inputs = [site.inputs[0], site.grad()?];
        let dx = site.needs[1].then(|| b.node(&site.named("features.grad"), MaskPoolGrad, &inputs));
        Ok(vec![None, dx.transpose()?])
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        2 * inputs[0].shape.len() as u64 * inputs[1].shape[3] as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Filling::{Constant, Uniform};
        vec![
            Case::new("one", MaskPool, &[&[1, 1, 1, 1], &[1, 1, 1, 1]]),
            Case::new("odd", MaskPool, &[&[2, 5, 7, 9], &[2, 7, 9, 19]]),
            Case::new("no_objects", MaskPool, &[&[1, 0, 3, 3], &[1, 3, 3, 8]]),
            Case::new("zero_logits", MaskPool, &[&[1, 3, 5, 5], &[1, 5, 5, 8]]).fill(0, Constant(0.0)),
            Case::new("sparse", MaskPool, &[&[1, 17, 20, 23], &[1, 20, 23, 40]]).fill(0, Uniform(-9.0, 1.0)),
            Case::new("knet", MaskPool, &[&[1, 100, 64, 64], &[1, 64, 64, 256]]).bench(),
        ]
    }
}

/// Gradient of [`MaskPool`]'s features:
/// `dx[b, h, w, c] = sum of dy[b, n, c] over the masks with masks[b, n, h, w] > 0`.
///
/// Inputs: mask logits `[B, N, H, W]`, `dy` `[B, N, C]`. Output: `[B, H, W, C]`. The hard mask has no
/// gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskPoolGrad;

impl Operator for MaskPoolGrad {
    const NAME: &'static str = "mask_pool_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let masks = expect_rank(inputs, 0, 4, "[B, N, H, W]")?;
        let dy = expect_rank(inputs, 1, 3, "[B, N, C]")?;
        if [masks[0], masks[1]] != [dy[0], dy[1]] {
            return Err(format!("gradient {dy} is not of the objects of masks {masks}"));
        }
        Ok(vec![ValueType::map([masks[0], masks[2], masks[3], dy[2]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (masks, dy) = (inputs[0], inputs[1]);
        let [batch, n, h, w] = [0, 1, 2, 3].map(|axis| masks.shape()[axis]);
        let (pixels, c) = (h * w, dy.shape()[2]);
        let mut dx = Tensor::zeros([batch, h, w, c]);
        for object in 0..batch * n {
            let grad = &dy.data()[object * c..][..c];
            for pixel in 0..pixels {
                if masks.data()[object * pixels + pixel] > 0.0 {
                    let feature = &mut dx.data_mut()[(object / n * pixels + pixel) * c..][..c];
                    feature.iter_mut().zip(grad).for_each(|(dx, dy)| *dx += dy);
                }
            }
        }
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        2 * inputs[0].shape.len() as u64 * inputs[1].shape[2] as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Filling::{Constant, Uniform};
        vec![
            Case::new("one", MaskPoolGrad, &[&[1, 1, 1, 1], &[1, 1, 1]]),
            Case::new("odd", MaskPoolGrad, &[&[2, 5, 7, 9], &[2, 5, 19]]),
            Case::new("no_objects", MaskPoolGrad, &[&[1, 0, 3, 3], &[1, 0, 8]]),
            Case::new("zero_logits", MaskPoolGrad, &[&[1, 3, 5, 5], &[1, 3, 8]]).fill(0, Constant(0.0)),
            Case::new("sparse", MaskPoolGrad, &[&[2, 17, 20, 23], &[2, 17, 40]]).fill(0, Uniform(-9.0, 1.0)),
            Case::new("knet", MaskPoolGrad, &[&[1, 100, 64, 64], &[1, 100, 256]]).bench(),
        ]
    }
}
