//! Candidates of an anchor-free head, each by itself.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::sigmoid;
use crate::ops::DecodePoints;
use crate::ops::decode_points::OF_LEVEL;

/// Pixels of a level's map, and its candidates.
struct Level {
    rows: usize,
    columns: usize,
    candidates: usize,
}

struct Candidates {
    op: DecodePoints,
    batch: usize,
    levels: Vec<Level>,
}

impl CpuOp for DecodePoints {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let level = |first: usize| {
            let (map, best) = (context.inputs[first].shape, context.inputs[first + 3].shape);
            Level { rows: map[1], columns: map[2], candidates: best[1] }
        };
        let levels = (0..self.strides.len()).map(|index| level(OF_LEVEL * index)).collect();
        let batch = context.outputs[0].shape[0];
        Box::new(Candidates { op: self.clone(), batch, levels })
    }
}

impl Kernel for Candidates {
    fn name(&self) -> String {
        "points".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let op = &self.op;
        let image = args.inputs[OF_LEVEL * self.levels.len()];
        let mut at = 0;
        for b in 0..self.batch {
            let [height, width] = [image[4 * b].max(0.0), image[4 * b + 1].max(0.0)];
            for (level, map) in self.levels.iter().enumerate() {
                let first = OF_LEVEL * level;
                let candidates = args.input_i32(first + 4);
                let [distances, logits, scale, best] = [0, 1, 2, 3].map(|i| args.inputs[first + i]);
                let stride = op.strides[level] as f32;
                let last = (map.rows * map.columns * op.classes).saturating_sub(1);
                for place in b * map.candidates..(b + 1) * map.candidates {
                    // An index is one of a pair: whoever made it took it from a list of as many.
                    let candidate = (candidates[place].max(0) as usize).min(last);
                    let [x, y] = op.place(level, map.columns, candidate).map(|at| at as f32);
                    let pixel = b * map.rows * map.columns + candidate / op.classes;
                    let far = |side: usize| (distances[4 * pixel + side] * scale[0]).max(0.0) * stride;
                    let clip = |at: f32, bound: f32| at.clamp(0.0, bound);
                    let sides = [
                        clip(x - far(0), width),
                        clip(y - far(1), height),
                        clip(x + far(2), width),
                        clip(y + far(3), height),
                    ];
                    let score = best[place];
                    let counts = score > op.score_threshold;
                    args.outputs[0][4 * at..][..4].copy_from_slice(&sides);
                    args.outputs[1][at] = if counts { score * sigmoid(logits[pixel]) } else { 0.0 };
                    args.outputs[3][3 * at..][..3].copy_from_slice(&[x, y, op.range as f32 * stride]);
                    args.output_i32(2)[at] = (candidate % op.classes) as i32;
                    at += 1;
                }
            }
        }
    }
}
