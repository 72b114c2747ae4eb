//! Suppression of boxes, image by image: they are sorted once, and each is compared with what was taken of
//! its class, until enough are taken.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::non_max_suppression::best_first;
use crate::ops::DistinctBoxes;
use crate::ops::non_max_suppression::{area, iou};

struct Greedy {
    op: DistinctBoxes,
    boxes: usize,
}

impl CpuOp for DistinctBoxes {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Greedy { op: *self, boxes: context.inputs[0].shape[1] })
    }
}

impl Kernel for Greedy {
    fn name(&self) -> String {
        "greedy".to_string()
    }

    fn workspace(&self) -> usize {
        self.boxes
    }

    fn run(&self, args: &mut Args<'_>) {
        let (all_classes, [all_boxes, all_scores, ..]) = (args.input_i32(2), args.inputs);
        let (n, keep) = (self.boxes, self.op.keep);
        let [places, taken_scores, taken_classes, counts, ..] = &mut args.outputs;
        let places: &mut [i32] = bytemuck::cast_slice_mut(places);
        let taken_classes: &mut [i32] = bytemuck::cast_slice_mut(taken_classes);
        let counts: &mut [i32] = bytemuck::cast_slice_mut(counts);
        places.fill(0);
        taken_scores.fill(0.0);
        taken_classes.fill(0);
        for (b, count) in counts.iter_mut().enumerate() {
            let boxes = &all_boxes.as_chunks::<4>().0[b * n..][..n];
            let (scores, classes) = (&all_scores[b * n..][..n], &all_classes[b * n..][..n]);
            let order: &mut [u32] = bytemuck::cast_slice_mut(args.workspace);
            let mut found = 0;
            for i in (0..n).filter(|&i| DistinctBoxes::counts(scores[i], boxes[i])) {
                order[found] = i as u32;
                found += 1;
            }
            let order = &mut order[..found];
            best_first(order, scores);
            let places = &mut places[b * keep..][..keep];
            let mut taken = 0;
            for &i in order.iter() {
                if taken == keep {
                    break;
                }
                let i = i as usize;
                let own = area(boxes[i]);
                let suppresses = |&j: &i32| {
                    let j = j as usize;
                    classes[j] == classes[i]
                        && iou(boxes[j], area(boxes[j]), boxes[i], own) > self.op.iou_threshold
                };
                if places[..taken].iter().any(suppresses) {
                    continue;
                }
                places[taken] = i as i32;
                taken_scores[b * keep + taken] = scores[i];
                taken_classes[b * keep + taken] = classes[i];
                taken += 1;
            }
            *count = taken as i32;
        }
    }
}
