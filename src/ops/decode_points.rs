//! Candidates of an anchor-free head.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling, Tolerance},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What a head without anchors (Tian et al., *FCOS*, 2019) says of the best pairs of a place and a class, of
/// all levels one after the other.
///
/// Inputs, five for each level: distances `[B, H, W, 4]` from a place to the left, upper, right and lower
/// side of its box; logits `[B, H, W, 1]` of how central the place is; the level's scale, one float; the
/// scores `[B, k]` of the best pairs, and which they are, `[B, k]`, `(row W + column) classes + class`. Then
/// the image, as [`decode_boxes`](super::decode_boxes) says it. Outputs, for the N pairs of all levels:
///
/// - boxes `[B, N, 4]`: a distance is `max(distance * scale, 0) * stride` pixels (NaN is none), from the
///   centre of the place's cell; clipped to the image;
/// - scores `[B, N]`, times the probability that the place is central; 0 of those not above the threshold;
/// - classes `[B, N]`;
/// - places `[B, N, 3]`: column and row of the centre in pixels, and `range * stride`, the size of the
///   objects that the level is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodePoints {
    /// Pixels of the image between neighbours, of each level.
    pub strides: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
    /// Scores are above it.
    pub score_threshold: f32,
    /// Size of the objects of a level, in its strides.
    pub range: usize,
}

/// Operands of a level.
pub const OF_LEVEL: usize = 5;

impl DecodePoints {
    /// Column and row, in pixels, of the place of a candidate in a map of so many columns.
    pub fn place(&self, level: usize, columns: usize, candidate: usize) -> [usize; 2] {
        let (pixel, stride) = (candidate / self.classes, self.strides[level]);
        [pixel % columns * stride + stride / 2, pixel / columns * stride + stride / 2]
    }
}

impl Operator for DecodePoints {
    const NAME: &'static str = "decode_points";
    const GRADIENT: Gradient = Gradient::None("detectors that K-Net is compared with are not trained");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, OF_LEVEL * self.strides.len() + 1)?;
        let mut count = 0;
        let mut batch = 0;
        for level in 0..self.strides.len() {
            let first = OF_LEVEL * level;
            let map = expect_rank(inputs, first, 4, "[B, H, W, 4]")?;
            batch = map[0];
            let best = expect_rank(inputs, first + 3, 2, "[B, k]")?;
            expect_shape(inputs, first, [batch, map[1], map[2], 4], "distances")?;
            expect_shape(inputs, first + 1, [batch, map[1], map[2], 1], "logits")?;
            expect_shape(inputs, first + 3, [batch, best[1]], "scores")?;
            expect_indices(inputs, first + 4, [batch, best[1]], "candidates")?;
            if inputs[first + 2].shape.len() != 1 || best[1] > map[1] * map[2] * self.classes {
                let scale = inputs[first + 2];
                return Err(format!(
                    "scale {scale} and candidates {best} of {} classes in map {map}",
                    self.classes
                ));
            }
            count += best[1];
        }
        if self.classes == 0 || self.strides.is_empty() {
            return Err(format!("{} levels of {} classes", self.strides.len(), self.classes));
        }
        expect_shape(inputs, OF_LEVEL * self.strides.len(), [batch, 4], "image")?;
        Ok(vec![
            ValueType::exact([batch, count, 4]),
            ValueType::exact([batch, count]),
            ValueType::index([batch, count]),
            ValueType::exact([batch, count, 3]),
        ])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let image = inputs[OF_LEVEL * self.strides.len()];
        let batch = image.shape()[0];
        let (mut boxes, mut scores) = (Vec::new(), Vec::new());
        let (mut classes, mut places) = (Vec::new(), Vec::new());
        for b in 0..batch {
            let [height, width] = [0, 1].map(|side| image.data()[4 * b + side].max(0.0));
            for (level, operands) in inputs.chunks_exact(OF_LEVEL).enumerate() {
                let [distances, logits, scale, best, candidates] = operands else { unreachable!() };
                let [rows, columns, k] = [distances.shape()[1], distances.shape()[2], best.shape()[1]];
                let stride = self.strides[level] as f64;
                for place in b * k..(b + 1) * k {
                    let candidate = candidates.data()[place] as usize;
                    let [x, y] = self.place(level, columns, candidate).map(|at| at as f64);
                    let pixel = b * rows * columns + candidate / self.classes;
                    let far = |side: usize| {
                        (distances.data()[4 * pixel + side] * scale.data()[0]).max(0.0) * stride
                    };
                    let clip = |at: f64, bound: f64| at.clamp(0.0, bound);
                    boxes.extend([clip(x - far(0), width), clip(y - far(1), height)]);
                    boxes.extend([clip(x + far(2), width), clip(y + far(3), height)]);
                    let score = best.data()[place];
                    let central = 1.0 / (1.0 + (-logits.data()[pixel]).exp());
                    let counts = score > f64::from(self.score_threshold);
                    scores.push(if counts { score * central } else { 0.0 });
                    classes.push((candidate % self.classes) as f64);
                    places.extend([x, y, self.range as f64 * stride]);
                }
            }
        }
        let levels = inputs.chunks_exact(OF_LEVEL);
        let count = levels.map(|operands| operands[3].shape()[1]).sum();
        vec![
            Tensor::new([batch, count, 4], boxes),
            Tensor::new([batch, count], scores),
            Tensor::new([batch, count], classes),
            Tensor::new([batch, count, 3], places),
        ]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        24 * outputs[1].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, batch: usize, classes: usize, levels: &[[usize; 3]]| {
            let strides = (0..levels.len()).map(|level| 8 << level).collect();
            let op = DecodePoints { strides, classes, score_threshold: 0.3, range: 8 };
            let mut shapes: Vec<Vec<usize>> = Vec::new();
            for &[h, w, k] in levels {
                shapes.extend([vec![batch, h, w, 4], vec![batch, h, w, 1], vec![1]]);
                shapes.extend([vec![batch, k], vec![batch, k]]);
            }
            shapes.push(vec![batch, 4]);
            let mut case = Case::new(name, op, &shapes.iter().map(|shape| &shape[..]).collect::<Vec<_>>());
            for (level, &[h, w, _]) in levels.iter().enumerate() {
                let first = OF_LEVEL * level;
                case = case.exact(first).exact(first + 1).exact(first + 3);
                case =
                    case.fill(first, Filling::Uniform(-0.5, 3.0)).fill(first + 2, Filling::Uniform(0.5, 1.5));
                case = case.fill(first + 3, Filling::Uniform(0.0, 1.0));
                case = case.fill(first + 4, Filling::Index(0, (h * w * classes) as i32));
            }
            let image = OF_LEVEL * levels.len();
            case.exact(image).fill(image, Filling::Uniform(20.0, 90.0)).tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", 1, 1, &[[1, 1, 1]]),
            case("odd", 2, 3, &[[5, 7, 31], [3, 4, 20], [2, 2, 12]]),
            case("none", 1, 3, &[[5, 7, 0]]),
            case("no_images", 0, 3, &[[5, 7, 4]]),
            case(
                "levels",
                1,
                80,
                &[[100, 168, 1000], [50, 84, 1000], [25, 42, 1000], [13, 21, 1000], [7, 11, 1000]],
            )
            .bench(),
        ]
    }
}
