//! Pointwise functions of two operands, vectorised in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::cpu::element::Element;
use crate::isa::simd;
use crate::ops::binary::{Binary, BinaryKind};
use crate::tensor::DType;
use half::bf16;
use rayon::prelude::*;
use std::marker::PhantomData;

/// The second operand is stored as `B`, the other and the result as `A`.
struct Pointwise<A, B> {
    kind: BinaryKind,
    isa: Isa,
    /// Values of both operands.
    lens: [usize; 2],
    elements: PhantomData<fn(B) -> A>,
}

impl<A: Element, B: Element> Pointwise<A, B> {
    fn boxed(op: &Binary, context: &Context<'_>) -> Box<dyn Kernel> {
        let lens = [0, 1].map(|index| context.inputs[index].shape.len());
        Box::new(Pointwise::<A, B> { kind: op.kind, isa: context.isa, lens, elements: PhantomData })
    }
}

impl CpuOp for Binary {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Pointwise::<f32, f32>::boxed(self, context)
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        match [context.inputs[0].dtype, context.inputs[1].dtype, context.outputs[0].dtype] {
            [DType::BF16, DType::BF16, DType::BF16] => Some(Pointwise::<bf16, bf16>::boxed(self, context)),
            [DType::BF16, DType::F32, DType::BF16] => Some(Pointwise::<bf16, f32>::boxed(self, context)),
            _ => None,
        }
    }
}

impl<A: Element, B: Element> Kernel for Pointwise<A, B> {
    fn name(&self) -> String {
        format!("{:?}", self.kind).to_lowercase()
    }

    fn run(&self, args: &mut Args<'_>) {
        let b = args.map::<B>(1, self.lens[1]);
        let a = args.map::<A>(0, self.lens[0]).par_chunks(ELEMENTS_PER_TASK);
        let y = args.map_mut::<A>(0, self.lens[0]).par_chunks_mut(ELEMENTS_PER_TASK);
        y.zip(a).enumerate().for_each(|(task, (y, a))| {
            combine(self.isa, self.kind, a, b, task * ELEMENTS_PER_TASK, y);
        });
    }
}

simd! {
    /// `y = kind(a, b)` for the elements from `start`; `b` is repeated.
    fn combine<A: Element, B: Element>(
        isa, kind: BinaryKind, a: &[A], b: &[B], start: usize, y: &mut [A],
    ) {
        match kind {
            BinaryKind::Add => repeat(a, b, start, y, |a, b| a + b),
            BinaryKind::Mul => repeat(a, b, start, y, |a, b| a * b),
        }
    }
}

#[inline(always)]
fn repeat<A: Element, B: Element>(a: &[A], b: &[B], start: usize, y: &mut [A], f: impl Fn(f32, f32) -> f32) {
    if let [b] = b {
        let b = b.widen();
        y.iter_mut().zip(a).for_each(|(y, a)| *y = A::narrow(f(a.widen(), b)));
        return;
    }
    let (mut at, mut phase) = (0, start % b.len());
    while at < y.len() {
        let len = (b.len() - phase).min(y.len() - at);
        let operands = a[at..at + len].iter().zip(&b[phase..phase + len]);
        let y = y[at..at + len].iter_mut();
        y.zip(operands).for_each(|(y, (a, b))| *y = A::narrow(f(a.widen(), b.widen())));
        (at, phase) = (at + len, 0);
    }
}
