//! K-Net's hard-mask pooling.

use super::{Inferred, Operator, ValueType, case::Case, expect_inputs, expect_rank};
use crate::tensor::Tensor;

/// `y[b, n, c] = sum of x[b, h, w, c] over the pixels with masks[b, n, h, w] > 0`: the grouped feature of every
/// object (K-Net, equation 3, with the mask hardened at probability 0.5, that is logit 0).
///
/// Inputs: mask logits `[B, N, H, W]`, features `x` `[B, H, W, C]`. Output: `[B, N, C]`. The comparison is strict,
/// so a pixel whose logit is 0 or NaN belongs to no object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
        Ok(vec![ValueType::f32([x[0], masks[1], x[3]])])
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

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        2 * inputs[0].shape.len() as u64 * inputs[1].shape[3] as u64
    }

    fn cases() -> Vec<Case> {
        use super::case::Fill::{Constant, Uniform};
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
