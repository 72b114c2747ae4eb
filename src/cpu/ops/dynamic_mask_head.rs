//! Mask heads with computed parameters. What they read is laid out once, a plane a channel, those of where a
//! pixel is before the features; an object is a task, and sixteen pixels go through its layers together.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::isa::{Isa, simd};
use crate::ops::DynamicMaskHead;
use crate::ops::dynamic_mask_head::{HIDDEN, Layers};
use crate::tensor::Shape;
use rayon::prelude::*;

/// Pixels that go through the layers together.
const LANES: usize = 16;

struct Heads {
    op: DynamicMaskHead,
    map: Shape,
    objects: usize,
    isa: Isa,
}

impl CpuOp for DynamicMaskHead {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (map, objects) = (context.inputs[0].shape, context.inputs[1].shape[1]);
        Box::new(Heads { op: *self, map, objects, isa: context.isa })
    }
}

impl Heads {
    /// Floats of a plane, whole blocks.
    fn plane(&self) -> usize {
        (self.map[1] * self.map[2]).next_multiple_of(LANES)
    }

    /// Fills plane `index`: columns, rows, then the channels of one image's features.
    fn fill(&self, index: usize, x: &[f32], plane: &mut [f32]) {
        let (width, channels) = (self.map[2], self.map[3]);
        for (pixel, value) in plane.iter_mut().enumerate().take(self.map[1] * width) {
            *value = match index {
                0 => self.op.at(pixel % width) as f32,
                1 => self.op.at(pixel / width) as f32,
                _ => x[pixel * channels + index - 2],
            };
        }
    }
}

impl Kernel for Heads {
    fn name(&self) -> String {
        format!("planes {}", self.isa)
    }

    fn workspace(&self) -> usize {
        (self.map[3] + 2) * self.plane()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (counts, [x, parameters, places, ..]) = (args.input_i32(3), args.inputs);
        let (pixels, channels) = (self.map[1] * self.map[2], self.map[3]);
        let each = DynamicMaskHead::parameters(channels);
        if pixels * self.objects == 0 {
            return;
        }
        let (masks, plane) = (args.outputs[0].chunks_exact_mut(self.objects * pixels), self.plane());
        for (b, masks) in masks.enumerate() {
            let x = &x[b * pixels * channels..][..pixels * channels];
            let planes = args.workspace.par_chunks_mut(plane).enumerate();
            planes.for_each(|(index, plane)| self.fill(index, x, plane));
            let (planes, count) = (&*args.workspace, usize::try_from(counts[b]).unwrap_or(0));
            masks.par_chunks_mut(pixels).enumerate().for_each(|(object, mask)| {
                if object >= count {
                    return mask.fill(0.0);
                }
                let object = b * self.objects + object;
                let layers = Layers::of(&parameters[object * each..][..each], channels);
                head(self.isa, planes, plane, &places[3 * object..][..3], layers, mask);
            });
        }
    }
}

/// Adds to each sum its weight, of rows of `stride`, times the values of one input.
#[inline(always)]
fn add(sums: &mut [[f32; LANES]; HIDDEN], weights: &[f32], stride: usize, input: usize, x: &[f32; LANES]) {
    for (row, sums) in sums.iter_mut().enumerate() {
        let weight = weights[row * stride + input];
        for lane in 0..LANES {
            sums[lane] += weight * x[lane];
        }
    }
}

/// Sums that begin as biases.
#[inline(always)]
fn biases(biases: &[f32]) -> [[f32; LANES]; HIDDEN] {
    std::array::from_fn(|row| [biases[row]; LANES])
}

#[inline(always)]
fn relu(x: &[f32; LANES]) -> [f32; LANES] {
    x.map(|x| if x > 0.0 { x } else { 0.0 })
}

simd! {
    /// The logits of one object.
    fn head(isa, planes: &[f32], plane: usize, place: &[f32], layers: Layers<'_, f32>, mask: &mut [f32]) {
        let (inputs, scale) = (planes.len() / plane, 1.0 / place[2]);
        for (block, mask) in mask.chunks_mut(LANES).enumerate() {
            let mut first = biases(layers.biases[0]);
            for input in 0..inputs {
                let from = input * plane + block * LANES;
                let mut x = [0.0; LANES];
                x.copy_from_slice(&planes[from..from + LANES]);
                if input < 2 {
                    x = x.map(|at| (place[input] - at) * scale);
                }
                add(&mut first, layers.weights[0], inputs, input, &x);
            }
            let mut second = biases(layers.biases[1]);
            for (input, x) in first.iter().enumerate() {
                add(&mut second, layers.weights[1], HIDDEN, input, &relu(x));
            }
            let mut last = [layers.biases[2][0]; LANES];
            for (weight, x) in layers.weights[2].iter().zip(&second) {
                let x = relu(x);
                for lane in 0..LANES {
                    last[lane] += weight * x[lane];
                }
            }
            mask.copy_from_slice(&last[..mask.len()]);
        }
    }
}
