//! Mean over a map: one task a block of channels, summed in double precision in the order of the pixels.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::isa::{Isa, simd};
use crate::ops::GlobalAvgPool;
use rayon::prelude::*;

struct Mean {
    /// Pixels of one image.
    pixels: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for GlobalAvgPool {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let x = context.inputs[0].shape;
        Box::new(Mean { pixels: x[1] * x[2], channels: x[3], isa: context.isa })
    }
}

/// Channels whose sums are kept in registers.
const BLOCK: usize = 32;

impl Kernel for Mean {
    fn name(&self) -> String {
        "global_avg_pool".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (channels, image) = (self.channels, self.pixels * self.channels);
        if channels == 0 {
            return;
        }
        let images = args.inputs[0].par_chunks(image).zip(args.outputs[0].par_chunks_mut(channels));
        images.for_each(|(x, y)| {
            y.par_chunks_mut(BLOCK).enumerate().for_each(|(block, y)| {
                mean(self.isa, &x[block * BLOCK..], channels, y);
            });
        });
    }
}

simd! {
    /// The means of the first `y.len()` channels of `x`, whose pixels lie `channels` apart.
    fn mean(isa, x: &[f32], channels: usize, y: &mut [f32]) {
        let mut sums = [0f64; BLOCK];
        let mut pixels = 0u32;
        for pixel in x.chunks(channels) {
            pixels += 1;
            match pixel.first_chunk::<BLOCK>() {
                Some(pixel) if y.len() == BLOCK => {
                    for lane in 0..BLOCK {
                        sums[lane] += f64::from(pixel[lane]);
                    }
                }
                _ => sums.iter_mut().zip(&pixel[..y.len()]).for_each(|(sum, &x)| *sum += f64::from(x)),
            }
        }
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = (sum / f64::from(pixels)) as f32;
        }
    }
}
