//! Gradients of a convolution with respect to its map and to its filter.

use super::{Gradient, Inferred, Operator, ValueType, case::Case, expect_inputs, expect_rank};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Where the taps of a convolution fall: all that the convolution and its two gradients have in common.
#[derive(Clone, Copy)]
pub(super) struct Taps {
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
}

impl Taps {
    /// Calls `term` for every result `[b, p, q, k]` and every tap `(r, s)` of its that lies inside the map:
    /// with where the channels lie in the map `x` and in the filter `w`, and where the result lies in `y`.
    pub fn for_each(
        &self,
        x: Shape,
        w: Shape,
        y: Shape,
        mut term: impl FnMut(Range<usize>, Range<usize>, usize),
    ) {
        let channels = w[3];
        let place = |axis: usize, out: usize, tap: usize| {
            let at = out * self.stride[axis] + tap * self.dilation[axis];
            at.checked_sub(self.padding[axis]).filter(|&at| at < x[1 + axis])
        };
        for pixel in 0..y[0] * y[1] * y[2] {
            let (image, row, column) = (pixel / (y[1] * y[2]), pixel / y[2] % y[1], pixel % y[2]);
            for tap in 0..w[1] * w[2] {
                let (Some(row), Some(column)) = (place(0, row, tap / w[2]), place(1, column, tap % w[2]))
                else {
                    continue;
                };
                let from = ((image * x[1] + row) * x[2] + column) * x[3];
                for k in 0..w[0] {
                    let x_at = from + k / (w[0] / self.groups) * channels;
                    let w_at = (k * w[1] * w[2] + tap) * channels;
                    term(x_at..x_at + channels, w_at..w_at + channels, pixel * w[0] + k);
                }
            }
        }
    }

    /// Checks that a convolution may have this map, filter and result.
    fn check(&self, x: Shape, w: Shape, y: Shape) -> std::result::Result<(), String> {
        if self.stride.contains(&0) || self.dilation.contains(&0) || self.groups == 0 {
            return Err(format!(
                "stride {:?}, dilation {:?} and groups {} must be positive",
                self.stride, self.dilation, self.groups
            ));
        }
        let channels = x[3] == w[3] * self.groups && w[0].is_multiple_of(self.groups) && w[0] == y[3];
        if x[0] != y[0] || !channels || w[1] * w[2] == 0 {
            return Err(format!("no convolution of {x} by {w} in {} groups gives {y}", self.groups));
        }
        Ok(())
    }
}

/// Gradient of [`Conv2d`](super::Conv2d)'s map: `dx[b, h, w, c] = sum of dy[b, p, q, k] * w[k, r, s, c]` over
/// the terms of the convolution that read `x[b, h, w, c]`.
///
/// Inputs: `dy` `[B, P, Q, K]`, filter `w` `[K, R, S, C / groups]`. Output: `dx` `[B, H, W, C]`. The padding
/// after the map does not matter: it decides `P` and `Q` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2dInputGrad {
    /// Step between outputs, in input pixels.
    pub stride: [usize; 2],
    /// Zero rows and columns before the map.
    pub padding: [usize; 2],
    /// Step between filter taps, in input pixels.
    pub dilation: [usize; 2],
    /// Blocks of channels that do not mix.
    pub groups: usize,
    /// Rows and columns of the map.
    pub size: [usize; 2],
}

impl Conv2dInputGrad {
    fn taps(&self) -> Taps {
        Taps { stride: self.stride, padding: self.padding, dilation: self.dilation, groups: self.groups }
    }
}

impl Operator for Conv2dInputGrad {
    const NAME: &'static str = "conv2d_input_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let dy = expect_rank(inputs, 0, 4, "[B, P, Q, K]")?;
        let w = expect_rank(inputs, 1, 4, "[K, R, S, C / groups]")?;
        let x: Shape = [dy[0], self.size[0], self.size[1], w[3] * self.groups].into();
        self.taps().check(x, w, dy)?;
        Ok(vec![ValueType::map(x)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (dy, w) = (inputs[0], inputs[1]);
        let x: Shape = [dy.shape()[0], self.size[0], self.size[1], w.shape()[3] * self.groups].into();
        let mut dx = Tensor::zeros(x);
        let out = dx.data_mut();
        self.taps().for_each(x, w.shape(), dy.shape(), |x_at, w_at, y_at| {
            let dy = dy.data()[y_at];
            out[x_at].iter_mut().zip(&w.data()[w_at]).for_each(|(dx, w)| *dx += dy * w);
        });
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let w = inputs[1].shape;
        2 * (inputs[0].shape.len() * w[1] * w[2] * w[3]) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |layer: &Layer| {
            let Layer { taps: Taps { stride, padding, dilation, groups }, x, w, y, .. } = *layer;
            let op = Conv2dInputGrad { stride, padding, dilation, groups, size: [x[1], x[2]] };
            layer.case(op, [y, w])
        };
        // Filters as training has them: of a wider type than the maps.
        let new = Layer::new;
        let wide = [
            new("wide_filter", [1, 9, 13, 20], 18, 3, [1, 1, 1, 1]),
            new("wide_filter_s2", [1, 9, 14, 24], 40, 3, [2, 1, 1, 1]),
            new("wide_filter_depthwise", [1, 9, 7, 16], 16, 3, [1, 1, 1, 16]),
            new("wide_filter_depthwise_s2", [1, 9, 7, 16], 16, 3, [2, 1, 1, 16]),
        ];
        layers().iter().map(case).chain(wide.iter().map(|layer| case(layer).exact(1))).collect()
    }
}

/// Gradient of [`Conv2d`](super::Conv2d)'s filter: `dw[k, r, s, c] = sum of dy[b, p, q, k] * x[b, h, w, c]`
/// over the terms of the convolution that read `w[k, r, s, c]`.
///
/// Inputs: map `x` `[B, H, W, C]`, `dy` `[B, P, Q, K]`. Output: `dw` `[K, R, S, C / groups]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2dFilterGrad {
    /// Step between outputs, in input pixels.
    pub stride: [usize; 2],
    /// Zero rows and columns before the map.
    pub padding: [usize; 2],
    /// Step between filter taps, in input pixels.
    pub dilation: [usize; 2],
    /// Blocks of channels that do not mix.
    pub groups: usize,
    /// Rows and columns of the filter.
    pub kernel: [usize; 2],
}

impl Conv2dFilterGrad {
    fn taps(&self) -> Taps {
        Taps { stride: self.stride, padding: self.padding, dilation: self.dilation, groups: self.groups }
    }

    fn filter(&self, x: Shape, dy: Shape) -> Shape {
        [dy[3], self.kernel[0], self.kernel[1], x[3] / self.groups.max(1)].into()
    }
}

impl Operator for Conv2dFilterGrad {
    const NAME: &'static str = "conv2d_filter_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let dy = expect_rank(inputs, 1, 4, "[B, P, Q, K]")?;
        let w = self.filter(x, dy);
        self.taps().check(x, w, dy)?;
        Ok(vec![ValueType::weight(w)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, dy) = (inputs[0], inputs[1]);
        let w = self.filter(x.shape(), dy.shape());
        let mut dw = Tensor::zeros(w);
        let out = dw.data_mut();
        self.taps().for_each(x.shape(), w, dy.shape(), |x_at, w_at, y_at| {
            let dy = dy.data()[y_at];
            out[w_at].iter_mut().zip(&x.data()[x_at]).for_each(|(dw, x)| *dw += dy * x);
        });
        vec![dw]
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        let w = outputs[0].shape;
        2 * (inputs[1].shape.len() * w[1] * w[2] * w[3]) as u64
    }

    fn cases() -> Vec<Case> {
        layers()
            .into_iter()
            .map(|layer| {
                let Layer { taps: Taps { stride, padding, dilation, groups }, x, w, y, .. } = layer;
                let op = Conv2dFilterGrad { stride, padding, dilation, groups, kernel: [w[1], w[2]] };
                layer.case(op, [x, y])
            })
            .collect()
    }
}

/// A convolution whose gradients are cases.
struct Layer {
    name: &'static str,
    taps: Taps,
    x: Shape,
    w: Shape,
    y: Shape,
    bench: bool,
}

impl Layer {
    /// A layer of a square `kernel`; as many zeros follow the map as come before it.
    fn new(
        name: &'static str,
        x: [usize; 4],
        k: usize,
        kernel: usize,
        [stride, padding, dilation, groups]: [usize; 4],
    ) -> Layer {
        let out = |size: usize| (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
        Layer {
            name,
            taps: Taps { stride: [stride; 2], padding: [padding; 2], dilation: [dilation; 2], groups },
            x: x.into(),
            w: [k, kernel, kernel, x[3] / groups].into(),
            y: [x[0], out(x[1]), out(x[2]), k].into(),
            bench: false,
        }
    }

    /// The same with an output of another size: other zeros after the map.
    fn out(mut self, p: usize, q: usize) -> Layer {
        self.y = [self.y[0], p, q, self.y[3]].into();
        self
    }

    fn bench(mut self) -> Layer {
        self.bench = true;
        self
    }

    fn case(&self, op: impl Into<super::Op>, inputs: [Shape; 2]) -> Case {
        let case = Case::new(self.name, op, &[inputs[0].dims(), inputs[1].dims()]);
        if self.bench { case.bench() } else { case }
    }
}

/// Edges of the tiles, strides, paddings, dilations and groups, and layers of K-Net.
fn layers() -> Vec<Layer> {
    let new = Layer::new;
    vec![
        new("k1", [2, 3, 5, 33], 17, 1, [1, 0, 1, 1]),
        new("k1_one", [1, 1, 1, 1], 1, 1, [1, 0, 1, 1]),
        new("k1_empty", [0, 4, 4, 3], 5, 1, [1, 0, 1, 1]),
        new("k1_s2", [1, 7, 6, 8], 5, 1, [2, 0, 1, 1]),
        new("k1_s2_wide", [2, 12, 37, 20], 40, 1, [2, 0, 1, 1]),
        new("k1_padded", [1, 4, 5, 8], 5, 1, [1, 1, 1, 1]),
        new("k3", [2, 7, 9, 3], 5, 3, [1, 1, 1, 1]),
        new("k3_one_pixel", [2, 1, 1, 5], 3, 3, [1, 1, 1, 1]),
        new("k3_no_padding", [1, 9, 11, 16], 16, 3, [1, 0, 1, 1]),
        new("k3_winograd", [1, 30, 41, 40], 48, 3, [1, 1, 1, 1]),
        new("k3_after", [1, 9, 13, 20], 18, 3, [1, 0, 1, 1]).out(9, 13),
        new("k3_before", [1, 9, 13, 20], 18, 3, [1, 2, 1, 1]).out(9, 13),
        new("k3_s2", [1, 9, 7, 4], 6, 3, [2, 1, 1, 1]),
        new("k3_s2_wide", [2, 19, 45, 24], 40, 3, [2, 1, 1, 1]),
        new("k3_s2_after", [2, 8, 10, 3], 5, 3, [2, 0, 1, 1]).out(4, 5),
        new("k3_dilated", [1, 10, 9, 3], 4, 3, [1, 4, 4, 1]),
        new("k3_dilated_beyond", [1, 5, 7, 3], 4, 3, [1, 12, 12, 1]),
        new("k3_dilated_s2", [1, 11, 13, 5], 4, 3, [2, 2, 2, 1]),
        new("k3_dilated_s3", [1, 11, 13, 5], 4, 3, [3, 2, 2, 1]),
        new("k5", [1, 7, 6, 3], 4, 5, [1, 2, 1, 1]),
        new("k5_s2_after", [1, 10, 14, 17], 12, 5, [2, 1, 1, 1]).out(5, 7),
        new("k7_s2", [1, 19, 17, 3], 8, 7, [2, 3, 1, 1]),
        new("k4_s4", [1, 8, 12, 3], 6, 4, [4, 0, 1, 1]),
        new("k3_many_pixels", [2, 66, 71, 24], 20, 3, [1, 1, 1, 1]),
        new("k3_many_filters", [1, 12, 20, 40], 136, 3, [1, 1, 1, 1]),
        new("grouped", [2, 5, 5, 6], 4, 3, [1, 1, 1, 2]),
        new("grouped_s2", [1, 15, 18, 40], 60, 3, [2, 1, 1, 2]),
        new("depthwise", [1, 6, 5, 7], 7, 3, [1, 1, 1, 7]),
        new("depthwise_tall", [3, 40, 37, 24], 24, 3, [1, 1, 1, 24]),
        new("depthwise_k5", [2, 11, 23, 33], 33, 5, [1, 2, 1, 33]),
        new("depthwise_s2", [2, 13, 9, 40], 40, 5, [2, 2, 1, 40]),
        new("depthwise_k3_s2_after", [2, 8, 22, 20], 20, 3, [2, 0, 1, 20]).out(4, 11),
        new("depthwise_k5_s2_after", [2, 14, 30, 40], 40, 5, [2, 1, 1, 40]).out(7, 15),
        new("depthwise_dilated", [1, 13, 12, 17], 17, 3, [1, 2, 2, 17]),
        new("depthwise_x2", [1, 6, 5, 3], 6, 3, [1, 1, 1, 3]),
        new("stem", [2, 128, 192, 3], 64, 7, [2, 3, 1, 1]).bench(),
        new("layer2_k3", [2, 64, 64, 128], 128, 3, [1, 1, 1, 1]).bench(),
        new("layer2_k3_s2", [2, 64, 64, 128], 128, 3, [2, 1, 1, 1]).bench(),
        new("layer1_k1", [2, 128, 128, 256], 64, 1, [1, 0, 1, 1]).bench(),
        new("layer4_k1", [2, 16, 16, 2048], 512, 1, [1, 0, 1, 1]).bench(),
        new("lite_expand", [4, 80, 80, 24], 144, 1, [1, 0, 1, 1]).bench(),
        new("lite_project", [4, 80, 80, 192], 32, 1, [1, 0, 1, 1]).bench(),
        new("lite_fpn", [1, 80, 80, 96], 96, 3, [1, 1, 1, 1]).bench(),
        new("lite_depthwise_k3", [4, 80, 80, 144], 144, 3, [1, 1, 1, 144]).bench(),
        new("lite_depthwise_k5", [4, 40, 40, 240], 240, 5, [1, 2, 1, 240]).bench(),
        new("lite_depthwise_s2", [4, 80, 80, 144], 144, 3, [2, 0, 1, 144]).out(40, 40).bench(),
    ]
}
