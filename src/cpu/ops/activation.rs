//! Pointwise activations, vectorised in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::{gelu, gelu_slope, sigmoid};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::activation::{Activate, ActivateGrad, Activation};
use rayon::prelude::*;

struct Pointwise {
    activation: Activation,
    isa: Isa,
}

impl CpuOp for Activate {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Pointwise { activation: self.activation, isa: context.isa })
    }
}

impl Kernel for Pointwise {
    fn name(&self) -> String {
        format!("{:?}", self.activation).to_lowercase()
    }

    fn run(&self, args: &mut Args<'_>) {
        let x = args.inputs[0].par_chunks(ELEMENTS_PER_TASK);
        let y = args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK);
        y.zip(x).for_each(|(y, x)| {
            y.copy_from_slice(x);
            apply(self.isa, self.activation, y);
        });
    }
}

struct PointwiseGrad {
    activation: Activation,
    isa: Isa,
}

impl CpuOp for ActivateGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(PointwiseGrad { activation: self.activation, isa: context.isa })
    }
}

impl Kernel for PointwiseGrad {
    fn name(&self) -> String {
        format!("{:?}", self.activation).to_lowercase()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [read, dy, ..] = args.inputs.map(|input| input.par_chunks(ELEMENTS_PER_TASK));
        let dx = args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK);
        dx.zip(read).zip(dy).for_each(|((dx, read), dy)| match self.activation.clamp() {
            Some((low, high)) => clamp_grad(self.isa, low, high, read, dy, dx),
            None if self.activation == Activation::Gelu => gelu_grad(self.isa, read, dy, dx),
            None => sigmoid_grad(self.isa, read, dy, dx),
        });
    }
}

simd! {
    /// `dy` where `y` lies strictly inside the range, else 0.
    fn clamp_grad(isa, low: f32, high: f32, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = if y > low && y < high { dy } else { 0.0 };
        }
    }
}

simd! {
    /// `dy * y * (1 - y)`.
    fn sigmoid_grad(isa, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = dy * (y * (1.0 - y));
        }
    }
}

simd! {
    /// `dy` times the slope at `x`.
    fn gelu_grad(isa, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = dy * gelu_slope(x);
        }
    }
}

/// `min(max(v, low), high)`; the comparisons are written so that NaN stays.
#[inline(always)]
pub(crate) fn clamped(v: f32, low: f32, high: f32) -> f32 {
    let raised = if v < low { low } else { v };
    if raised > high { high } else { raised }
}

/// Applies an activation in place.
pub(crate) fn apply(isa: Isa, activation: Activation, y: &mut [f32]) {
    match activation.clamp() {
        Some((low, high)) => clamp(isa, low, high, y),
        None if activation == Activation::Gelu => gelus(isa, y),
        None => sigmoids(isa, y),
    }
}

simd! {
    /// `min(max(y, low), high)` in place.
    fn clamp(isa, low: f32, high: f32, y: &mut [f32]) {
        for v in y {
            *v = clamped(*v, low, high);
        }
    }
}

simd! {
    /// The sigmoid in place.
    fn sigmoids(isa, y: &mut [f32]) {
        for v in y {
            *v = sigmoid(*v);
        }
    }
}

simd! {
    /// GELU in place.
    fn gelus(isa, y: &mut [f32]) {
        for v in y {
            *v = gelu(*v);
        }
    }
}
