//! A convolution that also does what its neighbours would read its result, or its residual, again for.

use super::{
    Conv2d, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, epilogue::Epilogue,
    expect_rank,
};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// A [`Conv2d`] with tails that save passes over memory: the residual may have half the size, and the
/// statistics that a group norm needs come with the result. `fuse_conv_tails` of the CUDA back end makes
/// these, for GPUs alone.
///
/// Inputs: those of the convolution; its residual is `[B, P / 2, Q / 2, K]` if `upsampled`. Outputs:
/// `[B, P, Q, K]`; if `groups`, the [moments] of each group of channels, `[B, ceil(P * Q / 64), 2 * groups]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusedConv2d {
    /// The convolution.
    pub conv: Conv2d,
    /// The residual is brought to twice its size by repeating every pixel.
    pub upsampled: bool,
    /// Groups of neighbouring channels whose moments are a result.
    pub groups: Option<usize>,
}

/// Pixels of a part whose moments are taken together: `PART_PIXELS` of `kernels/common/moments.cuh`.
pub const PART_PIXELS: usize = 64;

/// Shape of the moments of a map `[B, H, W, C]`: `[B, parts, 2 * groups]`.
pub fn moments_shape(map: Shape, groups: usize) -> Shape {
    [map[0], (map[1] * map[2]).div_ceil(PART_PIXELS), 2 * groups].into()
}

/// For every part of [`PART_PIXELS`] pixels of an image (the last may be shorter), in their order, and every
/// group of neighbouring channels: the mean, and the sum of squares of the distances from it. The moments of
/// the whole follow from those of its parts without losing digits (Chan, Golub and LeVeque 1979).
pub fn moments(map: &Tensor<f64>, groups: usize) -> Tensor<f64> {
    let (shape, width) = (map.shape(), map.shape()[3] / groups);
    let pixels = shape[1] * shape[2];
    let mut moments = Tensor::zeros(moments_shape(shape, groups));
    let parts = moments.shape()[1];
    for (i, pair) in moments.data_mut().chunks_exact_mut(2).enumerate() {
        let (part, group) = (i / groups, i % groups);
        let first = part % parts * PART_PIXELS;
        let rows = first..(first + PART_PIXELS).min(pixels);
        let row = |pixel: usize| ((part / parts * pixels + pixel) * groups + group) * width;
        let values = || rows.clone().flat_map(|pixel| &map.data()[row(pixel)..][..width]);
        let mean = values().sum::<f64>() / (rows.len() * width) as f64;
        pair.copy_from_slice(&[mean, values().map(|v| (v - mean).powi(2)).sum()]);
    }
    moments
}

impl FusedConv2d {
    /// The convolution without its residual, if that has half the size.
    fn plain(&self) -> Conv2d {
        let residual = self.conv.epilogue.residual && !self.upsampled;
        Conv2d { epilogue: Epilogue { residual, ..self.conv.epilogue }, ..self.conv }
    }
}

impl Operator for FusedConv2d {
    const NAME: &'static str = "fused_conv2d";
    const GRADIENT: Gradient = Gradient::None("made of operators that have one, for inference");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let wanted = 2 + self.conv.epilogue.operands();
        super::expect_inputs(inputs, wanted)?;
        let plain = self.plain();
        let mut outputs = plain.infer(&inputs[..2 + plain.epilogue.operands()])?;
        let y = outputs[0].shape;
        if self.upsampled {
            let index = self.conv.epilogue.residual_input().ok_or("no residual to be upsampled")?;
            let residual = expect_rank(inputs, index, 4, "[B, P / 2, Q / 2, K]")?;
            if residual.dims() != [y[0], y[1] / 2, y[2] / 2, y[3]] || y[1] % 2 + y[2] % 2 > 0 {
                return Err(format!("residual {residual} is not half as large as {y}"));
            }
        }
        if let Some(groups) = self.groups {
            if groups == 0 || !y[3].is_multiple_of(groups) {
                return Err(format!("{groups} groups do not divide the channels of {y}"));
            }
            outputs.push(ValueType::exact(moments_shape(y, groups)));
        }
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let residual = self.conv.epilogue.residual_input().filter(|_| self.upsampled);
        let large = residual.map(|index| {
            let [b, h, w, c] = [0, 1, 2, 3].map(|axis| inputs[index].shape()[axis]);
            Tensor::from_fn([b, 2 * h, 2 * w, c], |at| {
                inputs[index].data()[((at[0] * h + at[1] / 2) * w + at[2] / 2) * c + at[3]]
            })
        });
        let operands: Vec<&Tensor<f64>> = (0..inputs.len())
            .map(|i| large.as_ref().filter(|_| Some(i) == residual).unwrap_or(inputs[i]))
            .collect();
        let mut outputs = self.conv.reference(&operands);
        outputs.extend(self.groups.map(|groups| moments(&outputs[0], groups)));
        outputs
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        let moments = if self.groups.is_some() { 4 * outputs[0].shape.len() as u64 } else { 0 };
        self.conv.flops(inputs, outputs) + moments
    }

    fn cases() -> Vec<Case> {
        let relu = Some(super::activation::Activation::Relu);
        let case = |name: &str, (taps, stride): (usize, usize), x: [usize; 4], filters, upsampled, groups| {
            let epilogue = Epilogue { bias: true, residual: upsampled, activation: None };
            let conv = Conv2d { epilogue, ..Conv2d::with(stride, taps / 2) };
            let y = [x[1], x[2]].map(|side| (side - 1) / stride + 1);
            let residual = [x[0], y[0] / 2, y[1] / 2, filters];
            let filter = [filters, taps, taps, x[3]];
            let shapes: &[&[usize]] = &[&x, &filter, &[filters], &residual];
            let shapes = &shapes[..2 + epilogue.operands()];
            Case::new(name, FusedConv2d { conv, upsampled, groups }, shapes).tolerance(Tolerance {
                relative_l2: 2e-6,
                reason: "f32 accumulation; moments are taken of f32 parts whose distances from a mean are exact to 6e-8",
            })
        };
        let mut activated = case("activated", (1, 1), [1, 9, 15, 16], 64, false, Some(8));
        if let super::Op::FusedConv2d(op) = &mut activated.op {
            op.conv.epilogue.activation = relu;
        }
        vec![
            case("one_pixel", (1, 1), [1, 1, 1, 8], 64, false, Some(8)),
            case("lateral", (1, 1), [1, 10, 14, 24], 40, true, None),
            case("lateral_batch", (1, 1), [2, 4, 6, 8], 24, true, None),
            // Whole parts of each image, ragged ones, and parts that cross from an image to the next.
            case("moments", (1, 1), [2, 8, 16, 16], 72, false, Some(9)),
            case("moments_k3", (3, 1), [1, 13, 21, 16], 64, false, Some(8)),
            case("moments_k3_s2", (3, 2), [1, 26, 30, 16], 64, false, Some(8)),
            case("moments_across", (1, 1), [3, 5, 9, 16], 32, false, Some(4)),
            // Deep over few pixels: the reduction is split.
            case("moments_split", (3, 1), [1, 8, 8, 192], 64, false, Some(8)),
            // Groups that are no chunk of any type.
            case("wide_groups", (1, 1), [1, 9, 15, 16], 48, false, Some(2)),
            activated,
            case("lateral_moments", (1, 1), [1, 12, 16, 64], 256, true, Some(32)),
            case("sfpn_k3", (3, 1), [1, 8, 12, 256], 256, false, Some(32)),
        ]
    }
}
