//! Boxes from what a network says of anchors or of other boxes.
//!
//! A box is `(left, top, right, bottom)` in pixels. What a photo's size has to do with it comes as one more
//! operand, the *image*: `[B, 4]`, for each its height and width in the network's input, without padding,
//! then by how much the photo was enlarged to that, vertically and horizontally.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling, Tolerance},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A box is made at most this many times as wide or high as it was: upstream's `wh_ratio_clip`, 16 / 1000,
/// inverted.
pub const MOST_GROWTH: f64 = 1000.0 / 16.0;

const NO_GRADIENT: Gradient = Gradient::None("two-stage detectors are not trained");

/// The values of an image that clip boxes: `[height, width]`.
fn bounds(image: &Tensor<f64>, index: usize) -> [f64; 2] {
    [image.data()[4 * index], image.data()[4 * index + 1]]
}

/// A box moved and resized by `(right, down, log width, log height)` in units of its own size, within an
/// image of `[height, width]` (Ren et al., *Faster R-CNN*, section 3.1.2).
fn decoded(from: [f64; 4], deltas: [f64; 4], [height, width]: [f64; 2]) -> [f64; 4] {
    let most = MOST_GROWTH.ln();
    let along = |axis: usize, bound: f64| {
        let (low, high) = (from[axis], from[axis + 2]);
        let centre = (low + high) / 2.0 + (high - low) * deltas[axis];
        let half = (high - low) * deltas[axis + 2].clamp(-most, most).exp() / 2.0;
        [centre - half, centre + half].map(|at| at.clamp(0.0, bound.max(0.0)))
    };
    let ([left, right], [top, bottom]) = (along(0, width), along(1, height));
    [left, top, right, bottom]
}

/// Boxes out of those anchors of one level of a pyramid that are listed: `y[b, n]` is anchor `indices[b, n]`
/// as the network moves it, clipped to the image.
///
/// Inputs: deltas `[B, H, W, 4 A]`, `(right, down, log width, log height)` for each of the A anchors of a
/// pixel; indices `[B, n]` of anchors, `(row W + column) A + anchor`; the image `[B, 4]`. Output: boxes
/// `[B, n, 4]`.
///
/// The anchors of a pixel are centred at the corner of its cell, `stride` pixels apart, and have the area of
/// a square of `scale * stride` pixels, at each of three ratios of height to width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeAnchors {
    /// Pixels of the image between neighbours.
    pub stride: usize,
    /// Side of an anchor as wide as high, in strides.
    pub scale: f32,
    /// Height over width of the anchors of a pixel.
    pub ratios: [f32; 3],
}

impl DecodeAnchors {
    /// Half the width and half the height of each anchor of a pixel, rounded as upstream does.
    pub fn half_sides(&self) -> [[f32; 2]; 3] {
        self.ratios.map(|ratio| {
            let (side, root) = (self.stride as f32, ratio.sqrt());
            [0.5 * (side * (1.0 / root) * self.scale), 0.5 * (side * root * self.scale)]
        })
    }
}

impl Operator for DecodeAnchors {
    const NAME: &'static str = "decode_anchors";
    const GRADIENT: Gradient = NO_GRADIENT;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let deltas = expect_rank(inputs, 0, 4, "[B, H, W, 4 A]")?;
        let indices = inputs[1].shape;
        if indices.rank() != 2 || deltas[3] != 4 * self.ratios.len() || indices[0] != deltas[0] {
            return Err(format!(
                "indices {indices} are not of {} anchors a pixel of {deltas}",
                self.ratios.len()
            ));
        }
        expect_indices(inputs, 1, indices, "indices")?;
        expect_shape(inputs, 2, [deltas[0], 4], "image")?;
        Ok(vec![ValueType::exact([deltas[0], indices[1], 4])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (deltas, indices, image) = (inputs[0], inputs[1], inputs[2]);
        let (map, [batch, count]) = (deltas.shape(), [0, 1].map(|axis| indices.shape()[axis]));
        let (anchors, half) = (self.ratios.len(), self.half_sides());
        let mut boxes = Vec::new();
        for place in 0..batch * count {
            let (b, index) = (place / count, indices.data()[place] as usize);
            let (x, y) = (index / anchors % map[2] * self.stride, index / anchors / map[2] * self.stride);
            let [half_width, half_height] = half[index % anchors].map(f64::from);
            let (x, y) = (x as f64, y as f64);
            let anchor = [x - half_width, y - half_height, x + half_width, y + half_height];
            let at = 4 * (b * map[1] * map[2] * anchors + index);
            boxes.extend(decoded(anchor, [0, 1, 2, 3].map(|i| deltas.data()[at + i]), bounds(image, b)));
        }
        vec![Tensor::new([batch, count, 4], boxes)]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        5 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, stride, [b, h, w, n]: [usize; 4]| {
            let op = DecodeAnchors { stride, scale: 8.0, ratios: [0.5, 1.0, 2.0] };
            Case::new(name, op, &[&[b, h, w, 12], &[b, n], &[b, 4]])
                .fill(1, Filling::Index(0, (3 * h * w) as i32))
                .fill(2, Filling::Uniform(20.0, 90.0))
                .exact(2)
                .tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", 4, [1, 1, 1, 1]),
            case("odd", 8, [2, 5, 7, 31]),
            case("none", 8, [2, 5, 7, 0]),
            case("coarse", 64, [1, 2, 3, 18]),
            case("grows", 16, [1, 4, 6, 40]).fill(0, Filling::Uniform(-9.0, 9.0)),
            case("level_2", 4, [1, 200, 336, 1000]).bench(),
        ]
    }
}

/// Boxes that a head has moved, clipped to the image.
///
/// Inputs: boxes `[B, N, 4]`; deltas `[B, N, 4 K]`, those of [`DecodeAnchors`] for each of K classes (or one
/// for all), in units of the `stds`; the image `[B, 4]`. Output: boxes `[B, N K, 4]`, the classes of a box
/// one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeBoxes {
    /// Factors of the deltas.
    pub stds: [f32; 4],
}

impl Operator for DecodeBoxes {
    const NAME: &'static str = "decode_boxes";
    const GRADIENT: Gradient = NO_GRADIENT;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let boxes = expect_rank(inputs, 0, 3, "[B, N, 4]")?;
        let deltas = expect_rank(inputs, 1, 3, "[B, N, 4 K]")?;
        if boxes[2] != 4 || [boxes[0], boxes[1]] != [deltas[0], deltas[1]] || !deltas[2].is_multiple_of(4) {
            return Err(format!("deltas {deltas} are not of boxes {boxes}"));
        }
        expect_shape(inputs, 2, [boxes[0], 4], "image")?;
        Ok(vec![ValueType::exact([boxes[0], boxes[1] * (deltas[2] / 4), 4])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (boxes, deltas, image) = (inputs[0], inputs[1], inputs[2]);
        let [batch, count, classes] = [boxes.shape()[0], boxes.shape()[1], deltas.shape()[2] / 4];
        let mut moved = Vec::new();
        for place in 0..batch * count * classes {
            let row = place / classes;
            let from = [0, 1, 2, 3].map(|i| boxes.data()[4 * row + i]);
            let by = [0, 1, 2, 3].map(|i| deltas.data()[4 * place + i] * f64::from(self.stds[i]));
            moved.extend(decoded(from, by, bounds(image, row / count)));
        }
        vec![Tensor::new([batch, count * classes, 4], moved)]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        6 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [b, n, k]: [usize; 3]| {
            Case::new(
                name,
                DecodeBoxes { stds: [0.1, 0.1, 0.2, 0.2] },
                &[&[b, n, 4], &[b, n, 4 * k], &[b, 4]],
            )
            .exact(0)
            .fill(0, Filling::Uniform(0.0, 80.0))
            .fill(2, Filling::Uniform(20.0, 90.0))
            .exact(2)
            .tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", [1, 1, 1]),
            case("odd", [2, 13, 5]),
            case("none", [1, 0, 5]),
            case("grows", [1, 40, 3]).fill(1, Filling::Uniform(-60.0, 60.0)),
            case("classes", [1, 1000, 80]).bench(),
        ]
    }
}

/// Boxes between the network's input and the photo: divided, or else multiplied, by the image's enlargement.
///
/// Inputs: boxes `[B, N, 4]`, the image `[B, 4]`. Output: boxes `[B, N, 4]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleBoxes {
    /// From the network's input to the photo.
    pub to_photo: bool,
}

impl Operator for ScaleBoxes {
    const NAME: &'static str = "scale_boxes";
    const GRADIENT: Gradient = NO_GRADIENT;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let boxes = expect_rank(inputs, 0, 3, "[B, N, 4]")?;
        expect_shape(inputs, 0, [boxes[0], boxes[1], 4], "boxes")?;
        expect_shape(inputs, 1, [boxes[0], 4], "image")?;
        Ok(vec![ValueType::exact(boxes)])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (mut boxes, image) = (inputs[0].clone(), inputs[1].data());
        let row = 4 * boxes.shape()[1];
        for (i, v) in boxes.data_mut().iter_mut().enumerate() {
            // Even coordinates are horizontal, and so is the second factor.
            let factor = image[4 * (i / row) + 3 - i % 2];
            *v = if self.to_photo { *v / factor } else { *v * factor };
        }
        vec![boxes]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, to_photo, [b, n]: [usize; 2]| {
            Case::new(name, ScaleBoxes { to_photo }, &[&[b, n, 4], &[b, 4]])
                .exact(0)
                .exact(1)
                .fill(1, Filling::Uniform(0.5, 2.0))
                .tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", true, [1, 1]),
            case("odd", true, [3, 7]),
            case("back", false, [2, 5]),
            case("none", false, [2, 0]),
            case("classes", true, [1, 80_000]).bench(),
        ]
    }
}
