//! Dropout by factors, one task a few rows of channels; without them a copy.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::reshape::Copy;
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::Dropout;
use rayon::prelude::*;

/// Images `[B, pixels, C]` and factors `[B, width]`.
struct Scale {
    pixels: usize,
    channels: usize,
    width: usize,
    isa: Isa,
}

impl CpuOp for Dropout {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let &[x, factors] = context.inputs else { return Box::new(Copy) };
        let [images, width] = [factors.shape[0], factors.shape[1]];
        let channels = x.shape.last();
        let pixels = x.shape.len() / (images * channels).max(1);
        Box::new(Scale { pixels, channels, width, isa: context.isa })
    }
}

impl Kernel for Scale {
    fn name(&self) -> String {
        "rows".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let ([x, factors, ..], y) = (args.inputs, &mut *args.outputs[0]);
        let Scale { pixels, channels, width, isa } = *self;
        if y.is_empty() {
            return;
        }
        let rows = (ELEMENTS_PER_TASK / channels).max(1);
        y.par_chunks_mut(rows * channels).zip(x.par_chunks(rows * channels)).enumerate().for_each(
            |(task, (y, x))| {
                for (row, (y, x)) in y.chunks_mut(channels).zip(x.chunks(channels)).enumerate() {
                    let image = (task * rows + row) / pixels;
                    scale(isa, x, &factors[image * width..][..width], y);
                }
            },
        );
    }
}

simd! {
    /// `y = x factors`, of one factor for all channels or one for each.
    fn scale(isa, x: &[f32], factors: &[f32], y: &mut [f32]) {
        match *factors {
            [factor] => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * factor),
            _ => y.iter_mut().zip(x).zip(factors).for_each(|((y, &x), &factor)| *y = x * factor),
        }
    }
}
