//! Pointwise activations, vectorised in fixed chunks.

use super::super::isa::simd;
use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::ops::activation::{Activate, Activation};
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

/// Applies an activation in place.
pub(crate) fn apply(isa: Isa, activation: Activation, y: &mut [f32]) {
    match (activation.clamp(), activation) {
        (Some((low, high)), _) => clamp(isa, low, high, y),
        (None, _) => sigmoid(isa, y),
    }
}

simd! {
    /// `min(max(y, low), high)` in place; comparisons are written so that NaN stays.
    fn clamp(isa, low: f32, high: f32, y: &mut [f32]) {
        for v in y {
            let raised = if *v < low { low } else { *v };
            *v = if raised > high { high } else { raised };
        }
    }
}

simd! {
    /// `1 / (1 + exp(-y))` in place.
    fn sigmoid(isa, y: &mut [f32]) {
        for v in y {
            *v = 1.0 / (1.0 + (-*v).exp());
        }
    }
}
