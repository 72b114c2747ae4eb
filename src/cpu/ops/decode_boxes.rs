//! Boxes of anchors and of boxes, each by itself, with the roundings of upstream's f32.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::decode_boxes::{DecodeAnchors, DecodeBoxes, MOST_GROWTH, ScaleBoxes};
use crate::tensor::Shape;
use rayon::prelude::*;

/// Boxes of a task.
const BOXES_PER_TASK: usize = ELEMENTS_PER_TASK / 16;

/// As the reference's; NaN stays.
fn decoded(from: [f32; 4], deltas: [f32; 4], image: &[f32]) -> [f32; 4] {
    let most = MOST_GROWTH.ln() as f32;
    let along = |axis: usize, bound: f32| {
        let (low, high) = (from[axis], from[axis + 2]);
        let centre = (low + high) * 0.5 + (high - low) * deltas[axis];
        let half = (high - low) * deltas[axis + 2].clamp(-most, most).exp() * 0.5;
        [clip(centre - half, bound), clip(centre + half, bound)]
    };
    let ([left, right], [top, bottom]) = (along(0, image[1]), along(1, image[0]));
    [left, top, right, bottom]
}

fn clip(at: f32, bound: f32) -> f32 {
    if at < 0.0 {
        0.0
    } else if at > bound {
        bound.max(0.0)
    } else {
        at
    }
}

fn four(values: &[f32]) -> [f32; 4] {
    [values[0], values[1], values[2], values[3]]
}

struct Anchors {
    op: DecodeAnchors,
    half: [[f32; 2]; 3],
    map: Shape,
    /// Boxes of an image.
    count: usize,
}

impl CpuOp for DecodeAnchors {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (map, count) = (context.inputs[0].shape, context.inputs[1].shape[1]);
        Box::new(Anchors { op: *self, half: self.half_sides(), map, count })
    }
}

impl Kernel for Anchors {
    fn name(&self) -> String {
        "anchors".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (indices, [deltas, _, image, ..]) = (args.input_i32(1), args.inputs);
        let Anchors { op, half, map, count } = self;
        let (anchors, pixels) = (half.len(), map[1] * map[2]);
        let last = (pixels * anchors).saturating_sub(1);
        args.outputs[0].par_chunks_mut(4 * BOXES_PER_TASK).enumerate().for_each(|(task, boxes)| {
            for (i, out) in boxes.chunks_exact_mut(4).enumerate() {
                let place = task * BOXES_PER_TASK + i;
                // An index is one of an anchor: whoever made it took it from a list of as many.
                let (b, index) = (place / count, (indices[place].max(0) as usize).min(last));
                let pixel = index / anchors;
                let x = (pixel % map[2] * op.stride) as f32;
                let y = (pixel / map[2] * op.stride) as f32;
                let [width, height] = half[index % anchors];
                let anchor = [x - width, y - height, x + width, y + height];
                let by = four(&deltas[4 * (b * pixels * anchors + index)..]);
                out.copy_from_slice(&decoded(anchor, by, &image[4 * b..]));
            }
        });
    }
}

struct Moved {
    stds: [f32; 4],
    /// Boxes of an image, and those that each becomes.
    count: usize,
    classes: usize,
}

impl CpuOp for DecodeBoxes {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let deltas = context.inputs[1].shape;
        Box::new(Moved { stds: self.stds, count: deltas[1], classes: deltas[2] / 4 })
    }
}

impl Kernel for Moved {
    fn name(&self) -> String {
        "boxes".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [from, deltas, image, ..] = args.inputs;
        args.outputs[0].par_chunks_mut(4 * BOXES_PER_TASK).enumerate().for_each(|(task, boxes)| {
            for (i, out) in boxes.chunks_exact_mut(4).enumerate() {
                let place = task * BOXES_PER_TASK + i;
                let row = place / self.classes;
                let mut by = four(&deltas[4 * place..]);
                by.iter_mut().zip(self.stds).for_each(|(by, std)| *by *= std);
                out.copy_from_slice(&decoded(four(&from[4 * row..]), by, &image[4 * (row / self.count)..]));
            }
        });
    }
}

struct Scaled {
    to_photo: bool,
    count: usize,
}

impl CpuOp for ScaleBoxes {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Scaled { to_photo: self.to_photo, count: context.inputs[0].shape[1] })
    }
}

impl Kernel for Scaled {
    fn name(&self) -> String {
        "scale".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [boxes, image, ..] = args.inputs;
        let chunks =
            args.outputs[0].par_chunks_mut(4 * BOXES_PER_TASK).zip(boxes.par_chunks(4 * BOXES_PER_TASK));
        chunks.enumerate().for_each(|(task, (out, boxes))| {
            for (i, (out, at)) in out.chunks_exact_mut(4).zip(boxes.chunks_exact(4)).enumerate() {
                let image = &image[4 * ((task * BOXES_PER_TASK + i) / self.count)..];
                for side in 0..4 {
                    let factor = image[3 - side % 2];
                    out[side] = if self.to_photo { at[side] / factor } else { at[side] * factor };
                }
            }
        });
    }
}
