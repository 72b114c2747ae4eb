//! AdamW in place, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::AdamW;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

struct Update {
    op: AdamW,
    parameters: usize,
    isa: Isa,
}

impl CpuOp for AdamW {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Update { op: *self, parameters: AdamW::parameters(context.inputs.len()), isa: context.isa })
    }
}

impl Kernel for Update {
    fn name(&self) -> String {
        "in place".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [scale, rates, ..] = args.inputs;
        let factors = Factors {
            scale: scale[0],
            keep: rates[0],
            step: rates[1],
            root: rates[2],
            beta1: self.op.beta1,
            beta2: self.op.beta2,
            eps: self.op.eps,
        };
        let (values, rest) = args.outputs.split_at_mut(3 * self.parameters);
        for (index, values) in values.chunks_exact_mut(3).enumerate() {
            let [parameter, first, second] = values else { continue };
            let bad = AtomicBool::new(false);
            let gradient = args.inputs[AdamW::operand(index, 1)].par_chunks(ELEMENTS_PER_TASK);
            let moments =
                first.par_chunks_mut(ELEMENTS_PER_TASK).zip(second.par_chunks_mut(ELEMENTS_PER_TASK));
            parameter.par_chunks_mut(ELEMENTS_PER_TASK).zip(gradient).zip(moments).for_each(
                |((p, g), (m, v))| {
                    let fine = if factors.scale.is_finite() {
                        update(self.isa, factors, p, g, m, v)
                    } else {
                        p.iter().all(|value| value.is_finite())
                    };
                    if !fine {
                        bad.store(true, Ordering::Relaxed);
                    }
                },
            );
            rest[0][index] = f32::from(u8::from(bad.load(Ordering::Relaxed)));
        }
    }
}

/// Factors of one update, the same for all elements of a parameter.
#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    keep: f32,
    step: f32,
    root: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

simd! {
    /// Updates a chunk and says whether the parameter stayed finite.
    fn update(isa, f: Factors, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) -> bool {
        // As an integer, so that the loop has no branch.
        let mut bad = 0;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * f.scale;
            *m += (g - *m) * (1.0 - f.beta1);
            *v = *v * f.beta2 + (1.0 - f.beta2) * g * g;
            *p = *p * f.keep - f.step * (*m / (v.sqrt() / f.root + f.eps));
            bad |= u32::from(!p.is_finite());
        }
        bad == 0
    }
}
