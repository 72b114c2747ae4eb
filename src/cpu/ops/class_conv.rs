//! The classifier of masks for one class of each map: a dot product a pixel.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::isa::{Isa, simd};
use crate::ops::ClassConv;
use rayon::prelude::*;

/// Sums of a dot product that go on side by side.
const LANES: usize = 32;

struct Dots {
    pixels: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for ClassConv {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let x = context.inputs[0].shape;
        Box::new(Dots { pixels: x[1] * x[2], channels: x[3], isa: context.isa })
    }
}

impl Kernel for Dots {
    fn name(&self) -> String {
        format!("dots {}", self.isa)
    }

    fn run(&self, args: &mut Args<'_>) {
        let classes = args.input_i32(3);
        let [x, weight, bias, ..] = args.inputs;
        if self.pixels == 0 {
            return;
        }
        args.outputs[0].par_chunks_mut(self.pixels).enumerate().for_each(|(n, y)| {
            let class = usize::try_from(classes[n]).ok().filter(|&class| class < bias.len());
            let Some(class) = class else { return y.fill(0.0) };
            let weight = &weight[class * self.channels..][..self.channels];
            let x = &x[n * self.pixels * self.channels..][..self.pixels * self.channels];
            dots(self.isa, x, weight, bias[class], y);
        });
    }
}

simd! {
    /// `y[i] = x[i] . weight + bias`.
    fn dots(isa, x: &[f32], weight: &[f32], bias: f32, y: &mut [f32]) {
        if weight.is_empty() {
            y.fill(bias);
            return;
        }
        let (weights, rest) = weight.as_chunks::<LANES>();
        for (y, x) in y.iter_mut().zip(x.chunks_exact(weight.len())) {
            let (blocks, tail) = x.as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for (x, w) in blocks.iter().zip(weights) {
                for lane in 0..LANES {
                    sums[lane] += x[lane] * w[lane];
                }
            }
            let tail: f32 = tail.iter().zip(rest).map(|(x, w)| x * w).sum();
            *y = sums.iter().sum::<f32>() + tail + bias;
        }
    }
}
