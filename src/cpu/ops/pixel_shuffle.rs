//! Blocks of pixels as channels of one, and back: a task a row of blocks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::ops::{PixelShuffle, PixelUnshuffle};
use crate::tensor::Shape;
use rayon::prelude::*;

/// A map and the map of its blocks.
#[derive(Clone, Copy)]
struct Blocks {
    factor: usize,
    map: Shape,
    blocks: Shape,
}

impl Blocks {
    /// Floats of a row of the map, and of one of blocks.
    fn rows(&self) -> [usize; 2] {
        [self.map, self.blocks].map(|shape| shape[2] * shape[3])
    }

    /// Whether there is nothing to move.
    fn is_empty(&self) -> bool {
        self.map.is_empty() || self.blocks.is_empty()
    }

    /// The rows of the map, of those at `at` within an image, that row `block` of blocks holds.
    fn lines(&self, block: usize) -> std::ops::Range<usize> {
        let first = block * self.factor;
        first..(first + self.factor).min(self.map[1])
    }
}

struct Gather(Blocks);

impl CpuOp for PixelUnshuffle {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (map, blocks) = (context.inputs[0].shape, context.outputs[0].shape);
        Box::new(Gather(Blocks { factor: self.factor, map, blocks }))
    }
}

impl Kernel for Gather {
    fn name(&self) -> String {
        "pixel_unshuffle".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let Blocks { factor, map, blocks } = self.0;
        if self.0.is_empty() {
            args.outputs[0].fill(0.0);
            return;
        }
        let ([row, block_row], channels) = (self.0.rows(), map[3]);
        let x = args.inputs[0];
        args.outputs[0].par_chunks_mut(block_row).enumerate().for_each(|(index, y)| {
            let (image, block) = (index / blocks[1], index % blocks[1]);
            let lines = self.0.lines(block);
            if lines.len() < factor || !map[2].is_multiple_of(factor) {
                y.fill(0.0);
            }
            for (i, line) in lines.enumerate() {
                let pixels = x[(image * map[1] + line) * row..][..row].chunks_exact(channels);
                for (column, pixel) in pixels.enumerate() {
                    let (block, j) = (column / factor, column % factor);
                    let to = &mut y[block * blocks[3] + i * factor + j..];
                    to.iter_mut().step_by(factor * factor).zip(pixel).for_each(|(to, v)| *to = *v);
                }
            }
        });
    }
}

struct Scatter(Blocks);

impl CpuOp for PixelShuffle {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (blocks, map) = (context.inputs[0].shape, context.outputs[0].shape);
        Box::new(Scatter(Blocks { factor: self.factor, map, blocks }))
    }
}

impl Kernel for Scatter {
    fn name(&self) -> String {
        "pixel_shuffle".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let Blocks { factor, map, blocks } = self.0;
        if self.0.is_empty() {
            return;
        }
        let ([row, block_row], channels) = (self.0.rows(), map[3]);
        let x = args.inputs[0];
        args.outputs[0].par_chunks_mut(row).enumerate().for_each(|(index, y)| {
            let (image, line) = (index / map[1], index % map[1]);
            let x = &x[(image * blocks[1] + line / factor) * block_row..][..block_row];
            for (column, pixel) in y.chunks_exact_mut(channels).enumerate() {
                let from = column / factor * blocks[3] + line % factor * factor + column % factor;
                pixel.iter_mut().zip(x[from..].iter().step_by(factor * factor)).for_each(|(to, v)| *to = *v);
            }
        });
    }
}
