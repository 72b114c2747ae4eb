//! 2-D convolution (cross-correlation, as everywhere in deep learning).

use super::conv2d_grad::{Conv2dFilterGrad, Conv2dInputGrad, Taps};
use super::{
    Backward, Inferred, Operator, Role, ValueType, case::Case, epilogue::Epilogue, expect_inputs, expect_rank,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[b, p, q, k] = sum over r, s, c of x[b, p*stride + r*dilation - padding, .., c] * w[k, r, s, c]`, then
/// the [`Epilogue`].
///
/// Inputs: `x` `[B, H, W, C]`, filter `w` `[K, R, S, C / groups]`, then the epilogue's operands. Output:
/// `[B, P, Q, K]`. Pairs are (vertical, horizontal). Samples outside the map are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2d {
    /// Step between outputs, in input pixels.
    pub stride: [usize; 2],
    /// Zero rows assumed above and zero columns assumed on the left of the map.
    pub padding: [usize; 2],
    /// Zero rows assumed below and zero columns assumed on the right of the map.
    pub padding_end: [usize; 2],
    /// Step between filter taps, in input pixels.
    pub dilation: [usize; 2],
    /// Input and output channels fall into this many blocks that do not mix.
    pub groups: usize,
    /// Fused tail.
    pub epilogue: Epilogue,
    /// What the result is: a map, unless it says where another operator reads.
    pub role: Role,
}

impl Conv2d {
    /// A convolution with stride 1, no padding, dilation 1, one group and no epilogue, which gives a map.
    pub fn new() -> Self {
        Conv2d {
            stride: [1; 2],
            padding: [0; 2],
            padding_end: [0; 2],
            dilation: [1; 2],
            groups: 1,
            epilogue: Epilogue::default(),
            role: Role::Map,
        }
    }

    /// The same with a square stride and `padding` zeros on every side.
    pub fn with(stride: usize, padding: usize) -> Self {
        Conv2d { stride: [stride; 2], padding: [padding; 2], padding_end: [padding; 2], ..Conv2d::new() }
    }

    /// A square stride with TensorFlow's "same" padding of a `size[0]` x `size[1]` map: outputs number
    /// `ceil(size / stride)`, and where the zeros that this takes are odd in number, the extra one comes
    /// **after** the map. The stem of EfficientNet, 3x3 with stride 2 on an even map, so has none before and
    /// one after. `reach` is a filter's extent, from its first tap to its last: the taps of one that is not
    /// dilated.
    pub fn same(size: [usize; 2], reach: usize, stride: usize) -> Self {
        let total = size.map(|size| {
            let last = size.div_ceil(stride.max(1)).saturating_sub(1) * stride;
            (last + reach).saturating_sub(size)
        });
        let padding = total.map(|zeros| zeros / 2);
        let padding_end = [total[0] - padding[0], total[1] - padding[1]];
        Conv2d { stride: [stride; 2], padding, padding_end, ..Conv2d::new() }
    }

    /// Output size along one axis, or `None` if the filter does not fit into the padded map.
    fn extent(&self, axis: usize, size: usize, taps: usize) -> Option<usize> {
        let reach = self.dilation[axis] * (taps.checked_sub(1)?) + 1;
        Some((size + self.padding[axis] + self.padding_end[axis]).checked_sub(reach)? / self.stride[axis] + 1)
    }

    /// Whether it can be [quantized](super::QuantizedConv2d) with filters of this shape: it has one group, or
    /// one for each channel and filter, no residual, and no more taps than f32 holds sums of integers of.
    pub fn is_quantizable(&self, w: Shape) -> bool {
        /// 127 times 255 each, up to 2^24.
        const MOST_TAPS: usize = 518;
        let depthwise = self.groups == w[0] && w[3] == 1 && w[1] * w[2] <= MOST_TAPS;
        let depthwise = depthwise && !self.epilogue.residual;
        self.groups == 1 || depthwise
    }

    /// Where the taps fall.
    fn taps(&self) -> Taps {
        Taps { stride: self.stride, padding: self.padding, dilation: self.dilation, groups: self.groups }
    }
}

impl Default for Conv2d {
    fn default() -> Self {
        Conv2d::new()
    }
}

impl Operator for Conv2d {
    const NAME: &'static str = "conv2d";
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2 + self.epilogue.operands())?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let w = expect_rank(inputs, 1, 4, "[K, R, S, C / groups]")?;
        if self.groups == 0 || x[3] != w[3] * self.groups || w[0] % self.groups != 0 {
            return Err(format!("{} groups do not divide map {x} and filter {w}", self.groups));
        }
        if self.stride.contains(&0) || self.dilation.contains(&0) {
            return Err(format!(
                "stride {:?} and dilation {:?} must be positive",
                self.stride, self.dilation
            ));
        }
        let (Some(p), Some(q)) = (self.extent(0, x[1], w[1]), self.extent(1, x[2], w[2])) else {
            return Err(format!("filter {w} (dilation {:?}) does not fit into map {x}", self.dilation));
        };
        let y = [x[0], p, q, w[0]].into();
        self.epilogue.check(inputs, y)?;
        Ok(vec![ValueType { role: self.role, ..ValueType::map(y) }])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, w) = (inputs[0], inputs[1]);
        let p = self.extent(0, x.shape()[1], w.shape()[1]).unwrap_or(0);
        let q = self.extent(1, x.shape()[2], w.shape()[2]).unwrap_or(0);
        let mut y = Tensor::zeros([x.shape()[0], p, q, w.shape()[0]]);
        let shape = y.shape();
        let out = y.data_mut();
        self.taps().for_each(x.shape(), w.shape(), shape, |x_at, w_at, y_at| {
            out[y_at] += x.data()[x_at].iter().zip(&w.data()[w_at]).map(|(x, w)| x * w).sum::<f64>();
        });
        self.epilogue.reference(&mut y, inputs);
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let mut grads = vec![None; site.inputs.len()];
        let dy = self.epilogue.backward(b, site, &mut grads)?;
        let Taps { stride, padding, dilation, groups } = self.taps();
        let (x, w) = (site.inputs[0], site.inputs[1]);
        if site.needs[0] {
            let size = [b.shape(x)[1], b.shape(x)[2]];
            let op = Conv2dInputGrad { stride, padding, dilation, groups, size };
            grads[0] = Some(b.node(&site.named("input.grad"), op, &[dy, w])?);
        }
        if site.needs[1] {
            let kernel = [b.shape(w)[1], b.shape(w)[2]];
            let op = Conv2dFilterGrad { stride, padding, dilation, groups, kernel };
            grads[1] = Some(b.node(&site.named("filter.grad"), op, &[x, dy])?);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        let w = inputs[1].shape;
        let per_output = 2 * (w[1] * w[2] * w[3]) as u64 + self.epilogue.flops();
        outputs[0].shape.len() as u64 * per_output
    }

    fn cases() -> Vec<Case> {
        use super::activation::Activation::{Relu, Relu6};
        let conv = Conv2d::with;
        let tail = |residual, activation| Epilogue { bias: true, residual, activation };
        let with_tail = |op: Conv2d, epilogue| Conv2d { epilogue, ..op };
        let grouped = |op: Conv2d, groups| Conv2d { groups, ..op };
        let asymmetric = |stride, before, after| Conv2d { padding_end: [after; 2], ..conv(stride, before) };
        let dilated = |padding, dilation| Conv2d { dilation: [dilation; 2], ..conv(1, padding) };
        let exact = |op: Conv2d| Conv2d { epilogue: Epilogue::BIAS, role: Role::Exact, ..op };
        vec![
            Case::new("k1", conv(1, 0), &[&[2, 3, 5, 33], &[17, 1, 1, 33]]),
            Case::new("k1_s2", conv(2, 0), &[&[1, 7, 6, 8], &[5, 1, 1, 8]]),
            Case::new("k1_one", conv(1, 0), &[&[1, 1, 1, 1], &[1, 1, 1, 1]]),
            Case::new("k1_empty", conv(1, 0), &[&[0, 4, 4, 3], &[5, 1, 1, 3]]),
            Case::new("k3", conv(1, 1), &[&[2, 7, 9, 3], &[5, 3, 3, 3]]),
            Case::new("k3_s2", conv(2, 1), &[&[1, 9, 7, 4], &[6, 3, 3, 4]]),
            Case::new("k3_one_pixel", conv(1, 1), &[&[2, 1, 1, 5], &[3, 3, 3, 5]]),
            Case::new("k3_no_padding", conv(1, 0), &[&[1, 9, 11, 16], &[16, 3, 3, 16]]),
            Case::new("k3_wide", conv(1, 1), &[&[1, 2, 67, 2], &[3, 3, 3, 2]]),
            Case::new("k3_dilated", dilated(4, 4), &[&[1, 10, 9, 3], &[4, 3, 3, 3]]),
            Case::new("k3_dilated_beyond", dilated(12, 12), &[&[1, 5, 7, 3], &[4, 3, 3, 3]]),
            Case::new("k5", conv(1, 2), &[&[1, 7, 6, 3], &[4, 5, 5, 3]]),
            Case::new("k7_s2", conv(2, 3), &[&[1, 19, 17, 3], &[8, 7, 7, 3]]),
            Case::new("k4_s4", conv(4, 0), &[&[1, 8, 12, 3], &[6, 4, 4, 3]]),
            Case::new("grouped", grouped(conv(1, 1), 2), &[&[2, 5, 5, 6], &[4, 3, 3, 3]]),
            // Filters as training has them: of a wider type than the maps.
            Case::new("wide_filter", conv(1, 1), &[&[1, 9, 11, 24], &[17, 3, 3, 24]]).exact(1),
            Case::new("wide_filter_stem", conv(2, 1), &[&[1, 9, 11, 3], &[24, 3, 3, 3]]).exact(1),
            Case::new("wide_filter_depthwise", grouped(conv(1, 1), 8), &[&[1, 6, 5, 8], &[8, 3, 3, 1]])
                .exact(1),
            Case::new("depthwise", grouped(conv(1, 1), 7), &[&[1, 6, 5, 7], &[7, 3, 3, 1]]),
            Case::new("depthwise_s2", grouped(conv(2, 2), 40), &[&[2, 13, 9, 40], &[40, 5, 5, 1]]),
            Case::new("depthwise_x2", grouped(conv(1, 1), 3), &[&[1, 6, 5, 3], &[6, 3, 3, 1]]),
            Case::new("k3_s2_after", asymmetric(2, 0, 1), &[&[2, 8, 10, 3], &[5, 3, 3, 3]]),
            Case::new("k3_s2_after_odd", asymmetric(2, 0, 1), &[&[1, 9, 7, 4], &[6, 3, 3, 4]]),
            Case::new("k3_after", asymmetric(1, 0, 2), &[&[1, 9, 13, 20], &[18, 3, 3, 20]]),
            Case::new("k3_before", asymmetric(1, 2, 0), &[&[1, 9, 13, 20], &[18, 3, 3, 20]]),
            Case::new("k1_after", asymmetric(1, 0, 1), &[&[1, 4, 5, 8], &[5, 1, 1, 8]]),
            Case::new(
                "depthwise_k3_after",
                grouped(asymmetric(2, 0, 1), 20),
                &[&[2, 8, 22, 20], &[20, 3, 3, 1]],
            ),
            Case::new(
                "depthwise_k5_after",
                grouped(asymmetric(2, 1, 2), 40),
                &[&[2, 14, 30, 40], &[40, 5, 5, 1]],
            ),
            Case::new(
                "depthwise_k5_after_odd",
                grouped(asymmetric(2, 1, 2), 9),
                &[&[1, 7, 9, 9], &[9, 5, 5, 1]],
            ),
            Case::new("depthwise_tiny", grouped(asymmetric(2, 1, 2), 33), &[&[1, 2, 2, 33], &[33, 5, 5, 1]]),
            Case::new(
                "k3_all_fused",
                with_tail(conv(1, 1), tail(true, Some(Relu))),
                &[&[1, 21, 30, 40], &[48, 3, 3, 40], &[48], &[1, 21, 30, 48]],
            ),
            Case::new(
                "k1_relu6",
                with_tail(conv(1, 0), tail(false, Some(Relu6))),
                &[&[1, 13, 17, 24], &[70, 1, 1, 24], &[70]],
            ),
            Case::new("offsets", exact(conv(1, 1)), &[&[1, 9, 11, 16], &[18, 3, 3, 16], &[18]]),
            Case::new("offsets_k1", exact(conv(1, 0)), &[&[2, 5, 7, 40], &[24, 1, 1, 40], &[24]]),
            Case::new("offsets_odd", exact(conv(2, 1)), &[&[1, 9, 8, 3], &[18, 3, 3, 3], &[18]]),
            Case::new("offsets_deep", exact(conv(1, 1)), &[&[1, 4, 5, 160], &[18, 3, 3, 160], &[18]]),
            Case::new(
                "stem_128x192",
                with_tail(conv(2, 3), tail(false, Some(Relu))),
                &[&[1, 128, 192, 3], &[64, 7, 7, 3], &[64]],
            )
            .bench(),
            Case::new("layer1_k3", conv(1, 1), &[&[1, 50, 84, 64], &[64, 3, 3, 64]]).bench(),
            Case::new("layer4_k3_s2", conv(2, 1), &[&[1, 16, 16, 512], &[512, 3, 3, 512]]).bench(),
            Case::new("layer3_k1", conv(1, 0), &[&[1, 32, 32, 1024], &[256, 1, 1, 1024]]).bench(),
            Case::new(
                "fpn_k3",
                with_tail(conv(1, 1), Epilogue::BIAS),
                &[&[1, 50, 84, 256], &[256, 3, 3, 256], &[256]],
            )
            .bench(),
            Case::new(
                "lite_depthwise_s2",
                with_tail(grouped(Conv2d::same([160, 160], 3, 2), 96), tail(false, Some(Relu6))),
                &[&[1, 160, 160, 96], &[96, 3, 3, 1], &[96]],
            )
            .bench(),
            Case::new(
                "lite_depthwise",
                with_tail(grouped(conv(1, 2), 144), tail(false, Some(Relu6))),
                &[&[1, 80, 80, 144], &[144, 5, 5, 1], &[144]],
            )
            .bench(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_is_tensorflows() {
        let padding = |size, kernel, stride| {
            let op = Conv2d::same([size; 2], kernel, stride);
            let out = op.extent(0, size, kernel);
            assert_eq!(out, Some(size.div_ceil(stride)), "{size} {kernel} {stride}");
            (op.padding[0], op.padding_end[0])
        };
        assert_eq!(padding(224, 3, 2), (0, 1));
        assert_eq!(padding(112, 5, 2), (1, 2));
        assert_eq!(padding(65, 3, 2), (1, 1));
        assert_eq!(padding(33, 5, 2), (2, 2));
        assert_eq!(padding(20, 5, 1), (2, 2));
        assert_eq!(padding(20, 1, 1), (0, 0));
        assert_eq!(padding(1, 5, 2), (2, 2));
        assert_eq!(padding(5, 1, 2), (0, 0));
    }
}
