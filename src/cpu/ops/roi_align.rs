//! Features of boxes. The mean over the samples of a bin is separable: along each axis a bin has one weight
//! for each pixel that any of its samples touches. Rows of the level are taken once each: a pixel row,
//! blended along its columns into the bins, is added to those rows of bins that it has a weight in.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::isa::{Isa, simd};
use crate::ops::RoiAlign;
use crate::tensor::Shape;
use rayon::prelude::*;

/// Most tasks, and thus tables of weights.
const TASKS: usize = 64;

/// Channels whose sums stay in registers.
const BLOCK: usize = 32;

struct Pyramid {
    op: RoiAlign,
    levels: Vec<Shape>,
    /// Boxes of an image, and of all.
    count: usize,
    rows: usize,
    isa: Isa,
}

impl CpuOp for RoiAlign {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (boxes, levels) =
            context.inputs.split_last().map_or((Shape::from([0, 0, 4]), &[][..]), |(b, l)| (b.shape, l));
        let levels = levels.iter().map(|level| level.shape).collect();
        let (count, rows) = (boxes[1], boxes[0] * boxes[1]);
        Box::new(Pyramid { op: *self, levels, count, rows, isa: context.isa })
    }
}

/// The weights of pixels along an axis in each bin, `[bins, pixels]`, and which pixels have any.
struct Weights<'a> {
    of: &'a [f32],
    pixels: usize,
    first: usize,
    end: usize,
}

impl<'a> Weights<'a> {
    fn new(op: &RoiAlign, level: usize, [low, high]: [f32; 2], pixels: usize, table: &'a mut [f32]) -> Self {
        let samples = op.samples(level, low, high);
        let table = &mut table[..op.size * pixels];
        table.fill(0.0);
        let (mut first, mut end) = (pixels, 0);
        let share = 1.0 / samples.count.max(1) as f32;
        for (bin, row) in table.chunks_exact_mut(pixels.max(1)).enumerate() {
            for taps in (0..samples.count).filter_map(|index| samples.taps(bin, index, pixels)) {
                for (at, weight) in taps {
                    row[at] += weight * share;
                }
                (first, end) = (first.min(taps[0].0), end.max(taps[1].0 + 1));
            }
        }
        Weights { of: table, pixels, first, end }
    }

    /// The pixels that a bin has weights for.
    fn of_bin(&self, bin: usize) -> (usize, &[f32]) {
        if self.first >= self.end {
            return (0, &[]);
        }
        let row = &self.of[bin * self.pixels..][self.first..self.end];
        let start = row.iter().position(|&w| w != 0.0).unwrap_or(row.len());
        let end = row.iter().rposition(|&w| w != 0.0).map_or(start, |last| last + 1);
        (self.first + start, &row[start..end])
    }
}

impl Pyramid {
    /// Floats of the weights of a box, along both axes.
    fn table(&self) -> usize {
        let longest = |axis: usize| self.levels.iter().map(|level| level[axis]).max().unwrap_or(0);
        self.op.size * (longest(1) + longest(2))
    }

    fn per_task(&self) -> usize {
        self.rows.div_ceil(TASKS).max(1)
    }

    /// The features of the box `b` in image `image`.
    fn pool(&self, maps: &[&[f32]], image: usize, b: [f32; 4], table: &mut [f32], out: &mut [f32]) {
        out.fill(0.0);
        let level = self.op.level(b, self.levels.len());
        let [height, width, channels] = [1, 2, 3].map(|axis| self.levels[level][axis]);
        let map = &maps[level][image * height * width * channels..][..height * width * channels];
        let (down, across) = table.split_at_mut(self.op.size * height);
        let down = Weights::new(&self.op, level, [b[1], b[3]], height, down);
        let across = Weights::new(&self.op, level, [b[0], b[2]], width, across);
        for bin in 0..self.op.size {
            let (first, weights) = across.of_bin(bin);
            if weights.is_empty() {
                continue;
            }
            for y in down.first..down.end {
                let pixels = &map[(y * width + first) * channels..][..weights.len() * channels];
                for row in 0..self.op.size {
                    let weight = down.of[row * height + y];
                    if weight != 0.0 {
                        let out = &mut out[(row * self.op.size + bin) * channels..][..channels];
                        blend(self.isa, weight, weights, pixels, out);
                    }
                }
            }
        }
    }
}

simd! {
    /// Adds to `out` `weight` times the sum of pixels with these weights.
    fn blend(isa, weight: f32, weights: &[f32], pixels: &[f32], out: &mut [f32]) {
        let channels = out.len();
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        for (block, out) in blocks.iter_mut().enumerate() {
            let mut sums = [0.0; BLOCK];
            for (pixel, &w) in weights.iter().enumerate() {
                let x = &pixels[pixel * channels + block * BLOCK..][..BLOCK];
                for c in 0..BLOCK {
                    sums[c] += w * x[c];
                }
            }
            for c in 0..BLOCK {
                out[c] += weight * sums[c];
            }
        }
        let done = channels - rest.len();
        for (c, out) in rest.iter_mut().enumerate() {
            let sum: f32 = weights.iter().enumerate().map(|(pixel, &w)| w * pixels[pixel * channels + done + c]).sum();
            *out += weight * sum;
        }
    }
}

impl Kernel for Pyramid {
    fn name(&self) -> String {
        format!("separable {}", self.isa)
    }

    fn workspace(&self) -> usize {
        TASKS.min(self.rows) * self.table()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (levels, table) = (self.levels.len(), self.table());
        let row = args.outputs[0].len() / self.rows.max(1);
        if row == 0 || table == 0 {
            args.outputs[0].fill(0.0);
            return;
        }
        let (maps, boxes) = (&args.inputs[..levels], args.inputs[levels]);
        let per_task = self.per_task();
        let tasks = args.outputs[0].par_chunks_mut(per_task * row).zip(args.workspace.par_chunks_mut(table));
        tasks.enumerate().for_each(|(task, (out, table))| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let place = task * per_task + i;
                let b = &boxes[4 * place..];
                self.pool(maps, place / self.count, [b[0], b[1], b[2], b[3]], table, out);
            }
        });
    }
}
