//! Deformable convolution (Dai et al., *Deformable Convolutional Networks*, ICCV 2017), without modulation.

use super::deform_conv2d_grad::{DeformConv2dFilterGrad, DeformConv2dInputGrad, layers};
use super::{
    Backward, Conv2d, Inferred, Operator, ValueType, case::Case, case::Filling, epilogue::Epilogue,
    expect_inputs, expect_shape,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// A [`Conv2d`] whose every tap is moved by an offset of its own: where the convolution reads
/// `x[b, h, w, c]`, this reads the map at `(h, w) + offset`, bilinearly between the four pixels around it.
/// Pixels outside the map are zero, and so is a point that lies a whole pixel or more outside.
///
/// Inputs: those of the convolution, which has one group; then the offsets `[B, P, Q, 2 * R * S]` in pixels,
/// `(down, right)` tap by tap, taps row by row, [exact](super::Role::Exact): rounded to bf16, a point five
/// pixels away would be sought up to 1/64 of one beside its place. Output: that of the convolution.
///
/// Source: `mmcv/ops/deform_conv.py`, `DeformConv2d`, with one group of offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeformConv2d {
    /// Where the taps fall without offsets, and the fused tail.
    pub conv: Conv2d,
}

impl DeformConv2d {
    /// Which operand the offsets are.
    pub fn offset_input(&self) -> usize {
        2 + self.conv.epilogue.operands()
    }

    /// How the points follow from pixels, taps and offsets.
    fn sampling(&self) -> Sampling {
        let Conv2d { stride, padding, dilation, .. } = self.conv;
        Sampling { stride, padding, dilation }
    }
}

/// Where taps fall: all that the convolution and its gradients have in common.
#[derive(Clone, Copy)]
pub(super) struct Sampling {
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

/// A pixel near a sampling point.
pub(super) struct Corner {
    /// Its first channel in the map.
    pub at: usize,
    /// Its share in the sample, and the derivatives of that by the point's row and column.
    pub weight: f64,
    pub slope: [f64; 2],
}

impl Sampling {
    /// Calls `term` for every pixel of the result and every tap of its, in this order, with the pixels of the
    /// map around the point.
    pub fn for_each(
        &self,
        x: Shape,
        kernel: [usize; 2],
        offset: &Tensor<f64>,
        mut term: impl FnMut(usize, usize, &[Corner]),
    ) {
        let (y, taps) = (offset.shape(), kernel[0] * kernel[1]);
        for pixel in 0..y[0] * y[1] * y[2] {
            let (image, out) = (pixel / (y[1] * y[2]), [pixel / y[2] % y[1], pixel % y[2]]);
            for tap in 0..taps {
                let place = [tap / kernel[1], tap % kernel[1]];
                let point = [0, 1].map(|axis| {
                    let at = out[axis] * self.stride[axis] + place[axis] * self.dilation[axis];
                    at as f64 - self.padding[axis] as f64 + offset.data()[(pixel * taps + tap) * 2 + axis]
                });
                term(pixel, tap, &corners(x, image, point));
            }
        }
    }

    /// Checks that stride and dilation are such.
    pub fn check(&self) -> std::result::Result<(), String> {
        match self.stride.contains(&0) || self.dilation.contains(&0) {
            true => {
                Err(format!("stride {:?} and dilation {:?} must be positive", self.stride, self.dilation))
            }
            false => Ok(()),
        }
    }
}

/// The pixels of an image around a point; none if it lies a whole pixel outside, or nowhere (NaN).
fn corners(x: Shape, image: usize, point: [f64; 2]) -> Vec<Corner> {
    let inside = |axis: usize| point[axis] > -1.0 && point[axis] < x[1 + axis] as f64;
    if !inside(0) || !inside(1) {
        return Vec::new();
    }
    // Along an axis, the pixel before the point and that after it: place, share, derivative of the share.
    let along = |axis: usize| {
        let before = point[axis].floor();
        let share = point[axis] - before;
        let both = [(before as isize, 1.0 - share, -1.0), (before as isize + 1, share, 1.0)];
        both.into_iter().filter(move |(at, ..)| (0..x[1 + axis] as isize).contains(at))
    };
    let corner = |(row, down, by_row): (isize, f64, f64), (column, right, by_column): (isize, f64, f64)| {
        let at = ((image * x[1] + row as usize) * x[2] + column as usize) * x[3];
        Corner { at, weight: down * right, slope: [by_row * right, down * by_column] }
    };
    along(0).flat_map(|row| along(1).map(move |column| corner(row, column))).collect()
}

impl Operator for DeformConv2d {
    const NAME: &'static str = "deform_conv2d";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let last = self.offset_input();
        expect_inputs(inputs, last + 1)?;
        if self.conv.groups != 1 {
            return Err(format!("{} groups, deformable convolution has one", self.conv.groups));
        }
        let result = self.conv.infer(&inputs[..last])?;
        let (y, w) = (result[0].shape, inputs[1].shape);
        expect_shape(inputs, last, [y[0], y[1], y[2], 2 * w[1] * w[2]], "offsets")?;
        Ok(result)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, w, offset) = (inputs[0], inputs[1], inputs[self.offset_input()]);
        let (filter, places) = (w.shape(), offset.shape());
        let (depth, taps) = (filter[3], filter[1] * filter[2]);
        let mut y = Tensor::zeros([places[0], places[1], places[2], filter[0]]);
        let out = y.data_mut();
        self.sampling().for_each(x.shape(), [filter[1], filter[2]], offset, |pixel, tap, corners| {
            for c in 0..depth {
                let sample: f64 = corners.iter().map(|corner| corner.weight * x.data()[corner.at + c]).sum();
                for k in 0..filter[0] {
                    out[pixel * filter[0] + k] += sample * w.data()[(k * taps + tap) * depth + c];
                }
            }
        });
        self.conv.epilogue.reference(&mut y, inputs);
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut grads = vec![None; site.inputs.len()];
        let dy = self.conv.epilogue.backward(b, site, &mut grads)?;
        let Sampling { stride, padding, dilation } = self.sampling();
        let last = self.offset_input();
        let (x, w, offset) = (site.inputs[0], site.inputs[1], site.inputs[last]);
        if site.needs[0] || site.needs[last] {
            let op = DeformConv2dInputGrad { stride, padding, dilation };
            let found = b.nodes(&site.named("input.grad"), op, &[dy, w, x, offset])?;
            (grads[0], grads[last]) = (Some(found[0]), Some(found[1]));
        }
        if site.needs[1] {
            let kernel = [b.shape(w)[1], b.shape(w)[2]];
            let op = DeformConv2dFilterGrad { stride, padding, dilation, kernel };
            grads[1] = Some(b.node(&site.named("filter.grad"), op, &[x, dy, offset])?);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        // A sample blends four pixels.
        let (w, offset) = (inputs[1].shape, inputs[self.offset_input()].shape);
        let samples = offset.len() / 2 * w[3];
        self.conv.flops(inputs, outputs) + 7 * samples as u64
    }

    fn cases() -> Vec<Case> {
        let mut cases: Vec<Case> = layers()
            .into_iter()
            .map(|layer| {
                let op = DeformConv2d { conv: layer.conv };
                layer.case(op, [layer.x, layer.w, layer.offset()], 2)
            })
            .collect();
        let relu = Epilogue { activation: Some(super::activation::Activation::Relu), ..Epilogue::BIAS };
        let shapes: [&[usize]; 4] = [&[1, 21, 30, 40], &[48, 3, 3, 40], &[48], &[1, 21, 30, 18]];
        let op = DeformConv2d { conv: Conv2d { epilogue: relu, ..Conv2d::with(1, 1) } };
        cases.push(Case::new("bias_relu", op, &shapes).exact(3).fill(3, Filling::Uniform(-2.0, 2.0)));
        let all = Epilogue { residual: true, ..relu };
        let shapes: [&[usize]; 5] = [&[2, 9, 8, 16], &[20, 3, 3, 16], &[20], &[2, 5, 4, 20], &[2, 5, 4, 18]];
        let op = DeformConv2d { conv: Conv2d { epilogue: all, ..Conv2d::with(2, 1) } };
        cases.push(Case::new("all_fused", op, &shapes).exact(4));
        cases
    }
}
