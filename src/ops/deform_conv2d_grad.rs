//! Gradients of a deformable convolution with respect to its map, its offsets and its filter.

use super::deform_conv2d::Sampling;
use super::{
    Conv2d, Gradient, Inferred, Op, Operator, ValueType, case::Case, case::Filling, expect_inputs,
    expect_rank, expect_shape,
};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Gradient of [`DeformConv2d`](super::DeformConv2d)'s map and offsets. A pixel gets from every sample that
/// blends it the gradient of the sample, `sum over k of dy[b, p, q, k] * w[k, r, s, c]`, times its share; an
/// offset gets the same times the slope of the sample, over all channels. On a pixel's centre, where the
/// slope jumps, it is that towards larger coordinates.
///
/// Inputs: `dy` `[B, P, Q, K]`, filter `w` `[K, R, S, C]`, map `x` `[B, H, W, C]`, offsets
/// `[B, P, Q, 2 * R * S]`. Outputs: as the map and as the offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeformConv2dInputGrad {
    /// Step between outputs, in input pixels.
    pub stride: [usize; 2],
    /// Zero rows and columns before the map.
    pub padding: [usize; 2],
    /// Step between filter taps, in input pixels.
    pub dilation: [usize; 2],
}

impl Operator for DeformConv2dInputGrad {
    const NAME: &'static str = "deform_conv2d_input_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 4)?;
        let Self { stride, padding, dilation } = *self;
        Sampling { stride, padding, dilation }.check()?;
        let dy = expect_rank(inputs, 0, 4, "[B, P, Q, K]")?;
        let w = expect_rank(inputs, 1, 4, "[K, R, S, C]")?;
        let x = expect_rank(inputs, 2, 4, "[B, H, W, C]")?;
        expect_shape(inputs, 3, [dy[0], dy[1], dy[2], 2 * w[1] * w[2]], "offsets")?;
        if x[0] != dy[0] || x[3] != w[3] || w[0] != dy[3] {
            return Err(format!("no deformable convolution of {x} by {w} gives {dy}"));
        }
        Ok(vec![ValueType::map(x), inputs[3]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let Self { stride, padding, dilation } = *self;
        let [dy, w, x, offset] = [0, 1, 2, 3].map(|i| inputs[i]);
        let filter = w.shape();
        let (depth, taps) = (filter[3], filter[1] * filter[2]);
        let (mut dx, mut doffset) = (Tensor::zeros(x.shape()), Tensor::zeros(offset.shape()));
        let sampling = Sampling { stride, padding, dilation };
        sampling.for_each(x.shape(), [filter[1], filter[2]], offset, |pixel, tap, corners| {
            for c in 0..depth {
                let dy = &dy.data()[pixel * filter[0]..][..filter[0]];
                let products =
                    dy.iter().enumerate().map(|(k, dy)| dy * w.data()[(k * taps + tap) * depth + c]);
                let grad: f64 = products.sum();
                for corner in corners {
                    dx.data_mut()[corner.at + c] += corner.weight * grad;
                    for axis in 0..2 {
                        let slope = corner.slope[axis] * x.data()[corner.at + c];
                        doffset.data_mut()[(pixel * taps + tap) * 2 + axis] += slope * grad;
                    }
                }
            }
        });
        vec![dx, doffset]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let w = inputs[1].shape;
        let samples = inputs[3].shape.len() / 2 * w[3];
        2 * (inputs[0].shape.len() * w[1] * w[2] * w[3]) as u64 + 18 * samples as u64
    }

    fn cases() -> Vec<Case> {
        layers()
            .into_iter()
            .map(|layer| {
                let Conv2d { stride, padding, dilation, .. } = layer.conv;
                let op = DeformConv2dInputGrad { stride, padding, dilation };
                layer.case(op, [layer.y, layer.w, layer.x, layer.offset()], 3)
            })
            .collect()
    }
}

/// Gradient of [`DeformConv2d`](super::DeformConv2d)'s filter: `dw[k, r, s, c] = sum over pixels of
/// dy[b, p, q, k]` times the sample that `w[k, r, s, c]` met there.
///
/// Inputs: map `x` `[B, H, W, C]`, `dy` `[B, P, Q, K]`, offsets `[B, P, Q, 2 * R * S]`. Output: `dw`
/// `[K, R, S, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeformConv2dFilterGrad {
    /// Step between outputs, in input pixels.
    pub stride: [usize; 2],
    /// Zero rows and columns before the map.
    pub padding: [usize; 2],
    /// Step between filter taps, in input pixels.
    pub dilation: [usize; 2],
    /// Rows and columns of the filter.
    pub kernel: [usize; 2],
}

impl Operator for DeformConv2dFilterGrad {
    const NAME: &'static str = "deform_conv2d_filter_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let Self { stride, padding, dilation, kernel } = *self;
        Sampling { stride, padding, dilation }.check()?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let dy = expect_rank(inputs, 1, 4, "[B, P, Q, K]")?;
        expect_shape(inputs, 2, [dy[0], dy[1], dy[2], 2 * kernel[0] * kernel[1]], "offsets")?;
        if x[0] != dy[0] {
            return Err(format!("no deformable convolution of {x} gives {dy}"));
        }
        Ok(vec![ValueType::weight([dy[3], kernel[0], kernel[1], x[3]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let Self { stride, padding, dilation, kernel } = *self;
        let [x, dy, offset] = [0, 1, 2].map(|i| inputs[i]);
        let (depth, rows, taps) = (x.shape()[3], dy.shape()[3], kernel[0] * kernel[1]);
        let mut dw = Tensor::zeros([rows, kernel[0], kernel[1], depth]);
        let out = dw.data_mut();
        let sampling = Sampling { stride, padding, dilation };
        sampling.for_each(x.shape(), kernel, offset, |pixel, tap, corners| {
            for c in 0..depth {
                let sample: f64 = corners.iter().map(|corner| corner.weight * x.data()[corner.at + c]).sum();
                for k in 0..rows {
                    out[(k * taps + tap) * depth + c] += sample * dy.data()[pixel * rows + k];
                }
            }
        });
        vec![dw]
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        let w = outputs[0].shape;
        let samples = inputs[2].shape.len() / 2 * w[3];
        2 * (inputs[1].shape.len() * w[1] * w[2] * w[3]) as u64 + 7 * samples as u64
    }

    fn cases() -> Vec<Case> {
        layers()
            .into_iter()
            .map(|layer| {
                let Conv2d { stride, padding, dilation, .. } = layer.conv;
                let kernel = [layer.w[1], layer.w[2]];
                let op = DeformConv2dFilterGrad { stride, padding, dilation, kernel };
                layer.case(op, [layer.x, layer.y, layer.offset()], 2)
            })
            .collect()
    }
}

/// A deformable convolution that is a case, with its gradients.
pub(super) struct Layer {
    name: &'static str,
    pub conv: Conv2d,
    pub x: Shape,
    pub w: Shape,
    pub y: Shape,
    /// Of what the offsets are.
    fill: Filling,
    bench: bool,
}

impl Layer {
    /// A layer of a square `kernel`, whose offsets go up to `reach` pixels.
    fn new(
        name: &'static str,
        x: [usize; 4],
        k: usize,
        kernel: usize,
        [stride, padding, dilation]: [usize; 3],
        reach: f64,
    ) -> Layer {
        let out = |size: usize| (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
        Layer {
            name,
            conv: Conv2d { dilation: [dilation; 2], ..Conv2d::with(stride, padding) },
            x: x.into(),
            w: [k, kernel, kernel, x[3]].into(),
            y: [x[0], out(x[1]), out(x[2]), k].into(),
            fill: if reach == 0.0 { Filling::Constant(0.0) } else { Filling::Uniform(-reach, reach) },
            bench: false,
        }
    }

    fn bench(self) -> Layer {
        Layer { bench: true, ..self }
    }

    /// Shape of the offsets.
    pub fn offset(&self) -> Shape {
        [self.y[0], self.y[1], self.y[2], 2 * self.w[1] * self.w[2]].into()
    }

    /// The case over these operands, of which one is the offsets.
    pub fn case<const N: usize>(&self, op: impl Into<Op>, operands: [Shape; N], offset: usize) -> Case {
        let operands: Vec<&[usize]> = operands.iter().map(Shape::dims).collect();
        let case = Case::new(self.name, op, &operands).exact(offset).fill(offset, self.fill);
        if self.bench { case.bench() } else { case }
    }
}

/// Offsets within and beyond the map, strides, dilations, channels that are no multiple of a vector, and
/// layers of a ResNet.
pub(super) fn layers() -> Vec<Layer> {
    let new = Layer::new;
    vec![
        new("k3", [2, 7, 9, 3], 5, 3, [1, 1, 1], 1.5),
        new("k3_one_pixel", [2, 1, 1, 5], 3, 3, [1, 1, 1], 0.8),
        new("k3_no_padding", [1, 9, 11, 16], 16, 3, [1, 0, 1], 1.0),
        new("k3_s2", [1, 9, 7, 4], 6, 3, [2, 1, 1], 2.0),
        new("k3_s2_even", [2, 8, 10, 16], 18, 3, [2, 1, 1], 1.0),
        new("k3_dilated", [1, 10, 9, 3], 4, 3, [1, 2, 2], 1.0),
        new("k3_far", [1, 6, 5, 20], 7, 3, [1, 1, 1], 9.0),
        new("k3_beyond", [1, 4, 5, 6], 7, 3, [1, 1, 1], 1e9),
        new("k3_on_pixels", [1, 6, 5, 8], 7, 3, [1, 1, 1], 0.0),
        new("k3_wide", [1, 2, 67, 33], 40, 3, [1, 1, 1], 1.0),
        new("k3_chunks", [2, 13, 17, 64], 70, 3, [1, 1, 1], 3.0),
        new("k3_deep", [1, 5, 7, 200], 24, 3, [1, 1, 1], 1.5),
        new("k3_empty", [0, 4, 4, 3], 5, 3, [1, 1, 1], 1.0),
        new("k1", [2, 3, 5, 33], 17, 1, [1, 0, 1], 1.0),
        new("k5", [1, 7, 6, 3], 4, 5, [1, 2, 1], 1.0),
        new("layer2", [1, 32, 44, 128], 128, 3, [1, 1, 1], 1.0).bench(),
        new("layer3_s2", [1, 32, 44, 256], 256, 3, [2, 1, 1], 1.0).bench(),
        new("layer4", [1, 8, 11, 512], 512, 3, [1, 1, 1], 1.0).bench(),
    ]
}
