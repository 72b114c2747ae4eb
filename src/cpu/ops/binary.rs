//! Pointwise functions of two operands, vectorised in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::binary::{Binary, BinaryKind};
use rayon::prelude::*;

struct Pointwise {
    kind: BinaryKind,
    isa: Isa,
}

impl CpuOp for Binary {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Pointwise { kind: self.kind, isa: context.isa })
    }
}

impl Kernel for Pointwise {
    fn name(&self) -> String {
        format!("{:?}", self.kind).to_lowercase()
    }

    fn run(&self, args: &mut Args<'_>) {
        let b = args.inputs[1];
        let a = args.inputs[0].par_chunks(ELEMENTS_PER_TASK);
        let y = args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK);
        y.zip(a).enumerate().for_each(|(task, (y, a))| {
            combine(self.isa, self.kind, a, b, task * ELEMENTS_PER_TASK, y);
        });
    }
}

simd! {
    /// `y = kind(a, b)` for the elements from `start`; `b` is repeated.
    fn combine(isa, kind: BinaryKind, a: &[f32], b: &[f32], start: usize, y: &mut [f32]) {
        match kind {
            BinaryKind::Add => repeat(a, b, start, y, |a, b| a + b),
            BinaryKind::Mul => repeat(a, b, start, y, |a, b| a * b),
        }
    }
}

#[inline(always)]
fn repeat(a: &[f32], b: &[f32], start: usize, y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    if let &[b] = b {
        y.iter_mut().zip(a).for_each(|(y, &a)| *y = f(a, b));
        return;
    }
    let (mut at, mut phase) = (0, start % b.len());
    while at < y.len() {
        let len = (b.len() - phase).min(y.len() - at);
        let operands = a[at..at + len].iter().zip(&b[phase..phase + len]);
        y[at..at + len].iter_mut().zip(operands).for_each(|(y, (&a, &b))| *y = f(a, b));
        (at, phase) = (at + len, 0);
    }
}
