//! Non-maximum suppression.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling, Tolerance},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Which class a candidate is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Groups {
    /// The candidates of all so many classes for a first box, then those for the next.
    Interleaved(usize),
    /// So many candidates of the first class, then those of the next.
    Consecutive(Vec<usize>),
}

impl Groups {
    /// The class of a candidate.
    pub fn of(&self, candidate: usize) -> usize {
        match self {
            Groups::Interleaved(classes) => candidate % classes,
            Groups::Consecutive(counts) => {
                let mut end = 0;
                let ended = |count: &&usize| {
                    end += **count;
                    end <= candidate
                };
                counts.iter().take_while(ended).count()
            }
        }
    }

    /// The box that a candidate's classes are of: candidates of all classes in a row are of one.
    pub fn row(&self, candidate: usize) -> usize {
        match self {
            Groups::Interleaved(classes) => candidate / classes,
            Groups::Consecutive(_) => candidate,
        }
    }

    /// Whether these are classes of so many candidates.
    fn fit(&self, candidates: usize) -> bool {
        match self {
            Groups::Interleaved(classes) => *classes > 0 && candidates.is_multiple_of(*classes),
            Groups::Consecutive(counts) => counts.iter().sum::<usize>() == candidates,
        }
    }
}

/// The best boxes of which no two of one class overlap much: candidates are taken by descending score (of
/// equals the first), unless their intersection over union with one that was taken exceeds a threshold.
///
/// Inputs: boxes `[B, M, 4]`; scores `[B, N]`, where each box has `N / M` candidates in a row; and, if
/// `counted`, of how many [rows](Groups::row) of each image there is more than zeros, `[B]`: the candidates
/// of others do not count.
/// Outputs: boxes `[B, keep, 4]`, scores `[B, keep]`, classes `[B, keep]`, and how many were taken, `[B]`;
/// the places after those hold zeros.
///
/// Candidates whose score is not above the threshold (NaN is not) do not count. As upstream, a box of class
/// `c` is moved by `c * (largest coordinate + 1)` before it is intersected, all in f32: an intersection over
/// union carries the rounding of moved coordinates. Sides are differences of coordinates, without one more.
///
/// Source: `mmcv/ops/nms.py`, `batched_nms`, and `mmcv/ops/csrc/pytorch/cpu/nms.cpp`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NonMaxSuppression {
    /// A larger intersection over union suppresses.
    pub iou_threshold: f32,
    /// Candidates must score more.
    pub score_threshold: f32,
    /// Boxes must have a width and a height.
    pub drop_empty: bool,
    /// Classes of the candidates.
    pub groups: Groups,
    /// Whether the number of rows is an operand.
    pub counted: bool,
    /// Most boxes taken of an image.
    pub keep: usize,
}

/// Intersection over union of two boxes with their areas, rounded as upstream does. NaN of two boxes without
/// area.
#[inline]
pub fn iou(a: [f32; 4], area_a: f32, b: [f32; 4], area_b: f32) -> f32 {
    let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let both = width * height;
    both / (area_a + area_b - both)
}

/// Width times height.
#[inline]
pub fn area(b: [f32; 4]) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

impl Operator for NonMaxSuppression {
    const NAME: &'static str = "non_max_suppression";
    const GRADIENT: Gradient = Gradient::None("a choice moves by jumps");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2 + usize::from(self.counted))?;
        let boxes = expect_rank(inputs, 0, 3, "[B, M, 4]")?;
        let scores = expect_rank(inputs, 1, 2, "[B, N]")?;
        let (batch, m, n) = (boxes[0], boxes[1], scores[1]);
        if boxes[2] != 4 || scores[0] != batch || (n > 0 && (m == 0 || !n.is_multiple_of(m))) {
            return Err(format!("scores {scores} are not of boxes {boxes}"));
        }
        if !self.groups.fit(n) || i32::try_from(n).is_err() {
            return Err(format!("{n} candidates are not in groups {:?}", self.groups));
        }
        if self.counted {
            expect_indices(inputs, 2, [batch], "counts")?;
        }
        expect_shape(inputs, 0, [batch, m, 4], "boxes")?;
        Ok(vec![
            ValueType::exact([batch, self.keep, 4]),
            ValueType::exact([batch, self.keep]),
            ValueType::index([batch, self.keep]),
            ValueType::index([batch]),
        ])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (boxes, scores) = (inputs[0], inputs[1]);
        let [batch, m, n] = [boxes.shape()[0], boxes.shape()[1], scores.shape()[1]];
        let mut outputs = [
            Tensor::zeros([batch, self.keep, 4]),
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch, self.keep]),
            Tensor::zeros([batch]),
        ];
        for b in 0..batch {
            let counted = if self.counted { inputs[2].data()[b] as usize } else { n };
            let score = |i: usize| scores.data()[b * n + i] as f32;
            let at = |i: usize| {
                let first = 4 * (b * m + i / (n / m));
                [0, 1, 2, 3].map(|side| boxes.data()[first + side] as f32)
            };
            let counts = |&i: &usize| {
                let found = at(i);
                let sides = !self.drop_empty || (found[2] - found[0] > 0.0 && found[3] - found[1] > 0.0);
                score(i) > self.score_threshold && sides && self.groups.row(i) < counted
            };
            let mut order: Vec<usize> = (0..n).filter(counts).collect();
            let largest = order.iter().flat_map(|&i| at(i)).fold(f32::NEG_INFINITY, f32::max);
            let moved = |i: usize| at(i).map(|side| side + self.groups.of(i) as f32 * (largest + 1.0));
            order.sort_by(|&i, &j| score(j).total_cmp(&score(i)));
            let mut taken: Vec<usize> = Vec::new();
            for i in order {
                let class = self.groups.of(i);
                let suppresses = |&j: &usize| {
                    let (a, b) = (moved(j), moved(i));
                    self.groups.of(j) == class && iou(a, area(a), b, area(b)) > self.iou_threshold
                };
                if taken.len() < self.keep && !taken.iter().any(suppresses) {
                    taken.push(i);
                }
            }
            for (place, &i) in taken.iter().enumerate() {
                let row = b * self.keep + place;
                for (side, value) in at(i).into_iter().enumerate() {
                    outputs[0].data_mut()[4 * row + side] = f64::from(value);
                }
                outputs[1].data_mut()[row] = f64::from(score(i));
                outputs[2].data_mut()[row] = self.groups.of(i) as f64;
            }
            outputs[3].data_mut()[b] = taken.len() as f64;
        }
        outputs.into()
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        // Every candidate against half of what is kept.
        7 * (inputs[1].shape.len() * self.keep) as u64
    }

    fn cases() -> Vec<Case> {
        let op = |groups, keep| NonMaxSuppression {
            iou_threshold: 0.5,
            score_threshold: -1.0,
            drop_empty: false,
            groups,
            counted: false,
            keep,
        };
        let case = |name: &str, op: NonMaxSuppression, [b, m, n]: [usize; 3]| {
            Case::new(name, op, &[&[b, m, 4], &[b, n]])
                .exact(0)
                .exact(1)
                .fill(0, Filling::Uniform(0.0, 40.0))
                .tolerance(Tolerance::EXACT)
        };
        let one = || Groups::Interleaved(1);
        let levels = Groups::Consecutive(vec![40, 0, 25, 12]);
        let counted =
            NonMaxSuppression { counted: true, score_threshold: 0.1, ..op(Groups::Interleaved(7), 20) };
        let rpn = Groups::Consecutive(vec![1000, 1000, 1000, 1000, 819]);
        vec![
            case("one", op(one(), 1), [1, 1, 1]),
            case("odd", op(one(), 50), [2, 37, 37]),
            case("fewer_kept", op(one(), 3), [2, 37, 37]),
            case("none", op(one(), 4), [1, 0, 0]),
            case("equal", op(one(), 9), [1, 20, 20]).fill(0, Filling::Constant(3.0)),
            case("equal_scores", op(one(), 30), [1, 33, 33]).fill(1, Filling::Constant(0.5)),
            case("below", NonMaxSuppression { score_threshold: 2.0, ..op(one(), 5) }, [1, 9, 9]),
            case("levels", NonMaxSuppression { drop_empty: true, ..op(levels, 60) }, [2, 77, 77]),
            case("classes", op(Groups::Interleaved(5), 40), [1, 60, 60]),
            case("shared", op(Groups::Interleaved(5), 40), [2, 12, 60]),
            {
                let case = Case::new("counted", counted, &[&[2, 12, 4], &[2, 84], &[2]]);
                let case = case.exact(0).exact(1).fill(0, Filling::Uniform(0.0, 40.0));
                case.fill(2, Filling::Index(0, 12)).tolerance(Tolerance::EXACT)
            },
            case("proposals", NonMaxSuppression { iou_threshold: 0.7, ..op(rpn, 1000) }, [1, 4819, 4819])
                .fill(0, Filling::Uniform(0.0, 800.0))
                .bench(),
        ]
    }
}
