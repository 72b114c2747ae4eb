//! Non-maximum suppression, image by image: candidates are sorted once, and each is compared with what was
//! taken of its class, until enough are taken.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::ops::non_max_suppression::{NonMaxSuppression, area, iou};

/// Floats of a taken box in scratch: its moved sides, its area, and its class as bits.
const TAKEN: usize = 6;

/// Sorts indices of scores: the best first, of equals the lower index.
pub(super) fn best_first(order: &mut [u32], scores: &[f32]) {
    order
        .sort_unstable_by(|&i, &j| scores[j as usize].total_cmp(&scores[i as usize]).then_with(|| i.cmp(&j)));
}

struct Greedy {
    op: NonMaxSuppression,
    boxes: usize,
    candidates: usize,
}

impl CpuOp for NonMaxSuppression {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (boxes, candidates) = (context.inputs[0].shape[1], context.inputs[1].shape[1]);
        Box::new(Greedy { op: self.clone(), boxes, candidates })
    }
}

/// Operands, results and scratch of one image.
struct Image<'a> {
    boxes: &'a [f32],
    scores: &'a [f32],
    counted: usize,
    taken_boxes: &'a mut [f32],
    taken_scores: &'a mut [f32],
    classes: &'a mut [i32],
    count: &'a mut i32,
    scratch: &'a mut [f32],
}

impl Greedy {
    fn scratch(&self) -> usize {
        self.candidates + TAKEN * self.op.keep
    }

    fn suppress(&self, image: Image<'_>) {
        let (each, op) = (self.candidates / self.boxes.max(1), &self.op);
        let sides = |candidate: usize| -> [f32; 4] {
            let at = 4 * (candidate / each);
            [image.boxes[at], image.boxes[at + 1], image.boxes[at + 2], image.boxes[at + 3]]
        };
        let (order, taken) = image.scratch.split_at_mut(self.candidates);
        let order: &mut [u32] = bytemuck::cast_slice_mut(order);
        let (mut found, mut largest) = (0, f32::NEG_INFINITY);
        for (candidate, &score) in image.scores.iter().enumerate() {
            if score > op.score_threshold && op.groups.row(candidate) < image.counted {
                let [left, top, right, bottom] = sides(candidate);
                if !op.drop_empty || (right - left > 0.0 && bottom - top > 0.0) {
                    order[found] = candidate as u32;
                    found += 1;
                    largest = largest.max(left).max(top).max(right).max(bottom);
                }
            }
        }
        let order = &mut order[..found];
        best_first(order, image.scores);
        image.taken_boxes.fill(0.0);
        image.taken_scores.fill(0.0);
        image.classes.fill(0);
        let mut count = 0;
        for &candidate in order.iter() {
            if count == op.keep {
                break;
            }
            let candidate = candidate as usize;
            let (class, at) = (op.groups.of(candidate), sides(candidate));
            let moved = at.map(|side| side + class as f32 * (largest + 1.0));
            let own = area(moved);
            let suppresses = |other: &[f32; TAKEN]| {
                let [left, top, right, bottom, size, of] = *other;
                of.to_bits() == class as u32
                    && iou([left, top, right, bottom], size, moved, own) > op.iou_threshold
            };
            let (known, free) = taken.split_at_mut(TAKEN * count);
            if known.as_chunks::<TAKEN>().0.iter().any(suppresses) {
                continue;
            }
            free[..4].copy_from_slice(&moved);
            (free[4], free[5]) = (own, f32::from_bits(class as u32));
            image.taken_boxes[4 * count..][..4].copy_from_slice(&at);
            image.taken_scores[count] = image.scores[candidate];
            image.classes[count] = class as i32;
            count += 1;
        }
        *image.count = count as i32;
    }
}

impl Kernel for Greedy {
    fn name(&self) -> String {
        "greedy".to_string()
    }

    fn workspace(&self) -> usize {
        self.scratch()
    }

    fn run(&self, args: &mut Args<'_>) {
        let counts = if self.op.counted { args.input_i32(2) } else { &[] };
        let [boxes, scores, ..] = args.inputs;
        let keep = self.op.keep;
        let [taken_boxes, taken_scores, classes, count, ..] = &mut args.outputs;
        let classes: &mut [i32] = bytemuck::cast_slice_mut(classes);
        let count: &mut [i32] = bytemuck::cast_slice_mut(count);
        for (b, count) in count.iter_mut().enumerate() {
            self.suppress(Image {
                boxes: &boxes[4 * self.boxes * b..][..4 * self.boxes],
                scores: &scores[self.candidates * b..][..self.candidates],
                counted: counts.get(b).map_or(self.candidates, |&counted| counted.max(0) as usize),
                taken_boxes: &mut taken_boxes[4 * keep * b..][..4 * keep],
                taken_scores: &mut taken_scores[keep * b..][..keep],
                classes: &mut classes[keep * b..][..keep],
                count,
                scratch: args.workspace,
            });
        }
    }
}
