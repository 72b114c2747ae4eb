//! Non-maximum suppression that says which boxes stay.

use super::non_max_suppression::{area, iou};
use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling, Tolerance},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Which boxes are the best of which no two of one class overlap much: boxes are taken by descending score
/// (of equals the first), unless their intersection over union with one of their class that was taken exceeds
/// a threshold. What else there is of a box may then be gathered.
///
/// Inputs: boxes `[B, N, 4]`, scores `[B, N]`, classes `[B, N]`. Outputs: which of the N each is `[B, keep]`,
/// its score `[B, keep]`, its class `[B, keep]`, and how many there are `[B]`; the places after those hold
/// zeros.
///
/// Boxes whose score is not positive (NaN is not), and those without width or height, do not count. All is in
/// f32. As [`NonMaxSuppression`](super::NonMaxSuppression), but for classes that are operands and boxes that
/// are intersected where they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistinctBoxes {
    /// A larger intersection over union suppresses.
    pub iou_threshold: f32,
    /// Most boxes taken of an image.
    pub keep: usize,
}

impl DistinctBoxes {
    /// Whether a box of this score counts.
    pub fn counts(score: f32, [left, top, right, bottom]: [f32; 4]) -> bool {
        score > 0.0 && right - left > 0.0 && bottom - top > 0.0
    }
}

impl Operator for DistinctBoxes {
    const NAME: &'static str = "distinct_boxes";
    const GRADIENT: Gradient = Gradient::None("a choice moves by jumps");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 3)?;
        let boxes = expect_rank(inputs, 0, 3, "[B, N, 4]")?;
        let (batch, n) = (boxes[0], boxes[1]);
        expect_shape(inputs, 0, [batch, n, 4], "boxes")?;
        expect_shape(inputs, 1, [batch, n], "scores")?;
        expect_indices(inputs, 2, [batch, n], "classes")?;
        if i32::try_from(n).is_err() {
            return Err(format!("boxes {boxes} are too many for 32-bit indices"));
        }
        Ok(vec![
            ValueType::index([batch, self.keep]),
            ValueType::exact([batch, self.keep]),
            ValueType::index([batch, self.keep]),
            ValueType::index([batch]),
        ])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [batch, n] = [0, 1].map(|axis| inputs[1].shape()[axis]);
        let mut outputs = [
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch]),
        ];
        for b in 0..batch {
            let sides = |i: usize| [0, 1, 2, 3].map(|side| inputs[0].data()[4 * (b * n + i) + side] as f32);
            let score = |i: usize| inputs[1].data()[b * n + i] as f32;
            let class = |i: usize| inputs[2].data()[b * n + i];
            let mut order: Vec<usize> =
                (0..n).filter(|&i| DistinctBoxes::counts(score(i), sides(i))).collect();
            order.sort_by(|&i, &j| score(j).total_cmp(&score(i)));
            let mut taken: Vec<usize> = Vec::new();
            for i in order {
                let suppresses = |&j: &usize| {
                    let (a, b) = (sides(j), sides(i));
                    class(i) == class(j) && iou(a, area(a), b, area(b)) > self.iou_threshold
                };
                if taken.len() < self.keep && !taken.iter().any(suppresses) {
                    taken.push(i);
                }
            }
            for (place, &i) in taken.iter().enumerate() {
                let row = b * self.keep + place;
                outputs[0].data_mut()[row] = i as f64;
                outputs[1].data_mut()[row] = f64::from(score(i));
                outputs[2].data_mut()[row] = class(i);
            }
            outputs[3].data_mut()[b] = taken.len() as f64;
        }
        outputs.into()
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        // Every box against half of what is kept.
        7 * (inputs[1].shape.len() * self.keep) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, classes, keep, [b, n]: [usize; 2]| {
            let op = DistinctBoxes { iou_threshold: 0.3, keep };
            Case::new(name, op, &[&[b, n, 4], &[b, n], &[b, n]])
                .exact(0)
                .exact(1)
                .fill(0, Filling::Uniform(0.0, 40.0))
                .fill(1, Filling::Uniform(-0.2, 1.0))
                .fill(2, Filling::Index(0, classes))
                .tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 1, 1, [1, 1]),
            case("odd", 3, 50, [2, 67]),
            case("one_class", 1, 30, [1, 90]),
            case("fewer_kept", 2, 3, [2, 67]),
            case("none", 2, 4, [1, 0]),
            case("equal_scores", 2, 30, [1, 63]).fill(1, Filling::Constant(0.5)),
            case("no_scores", 2, 30, [1, 13]).fill(1, Filling::Constant(0.0)),
            case("candidates", 80, 100, [1, 4000]).fill(0, Filling::Uniform(0.0, 800.0)).bench(),
        ]
    }
}
