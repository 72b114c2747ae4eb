//! Softmax cross-entropy: first the normalisation of every position, by columns, then loss or gradient.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::exp;
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::cross_entropy_loss::{CrossEntropyLoss, CrossEntropyLossGrad};
use rayon::prelude::*;

/// Positions of a task: three vectors of them stay in the first-level cache.
const COLUMNS: usize = 256;

/// Logits `[outer, classes, inner]`.
struct Extents {
    outer: usize,
    classes: usize,
    inner: usize,
    isa: Isa,
}

impl Extents {
    fn new(context: &Context<'_>) -> Self {
        let [outer, classes, inner] = [0, 1, 2].map(|axis| context.inputs[0].shape[axis]);
        Extents { outer, classes, inner, isa: context.isa }
    }

    /// The class that a label names; `None` if the position is ignored.
    fn class(&self, label: i32) -> Option<usize> {
        usize::try_from(label).ok().filter(|&class| class < self.classes)
    }

    fn positions(&self) -> usize {
        self.outer * self.inner
    }

    /// Largest logit and `1 / sum of exp(x - largest)` of every position.
    fn normalise(&self, logits: &[f32], max: &mut [f32], inverse: &mut [f32]) {
        let planes = logits.par_chunks(self.classes * self.inner);
        let results = max.par_chunks_mut(self.inner).zip(inverse.par_chunks_mut(self.inner));
        planes.zip(results).for_each(|(x, (max, inverse))| {
            let columns = max.par_chunks_mut(COLUMNS).zip(inverse.par_chunks_mut(COLUMNS));
            columns.enumerate().for_each(|(column, (max, inverse))| {
                normalise(self.isa, &x[column * COLUMNS..], self.inner, self.classes, max, inverse);
            });
        });
    }
}

simd! {
    /// Maximum and `1 / sum of exp(x - maximum)` over the classes of every column of `x`, whose classes lie
    /// `stride` apart.
    fn normalise(isa, x: &[f32], stride: usize, classes: usize, max: &mut [f32], inverse: &mut [f32]) {
        max.fill(f32::NEG_INFINITY);
        inverse.fill(0.0);
        for class in 0..classes {
            for (max, &x) in max.iter_mut().zip(&x[class * stride..]) {
                *max = if x > *max { x } else { *max };
            }
        }
        for class in 0..classes {
            for ((sum, max), &x) in inverse.iter_mut().zip(&*max).zip(&x[class * stride..]) {
                *sum += exp(x - max);
            }
        }
        inverse.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
    }
}

struct Forward(Extents);

impl CpuOp for CrossEntropyLoss {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Forward(Extents::new(context)))
    }
}

impl Kernel for Forward {
    fn name(&self) -> String {
        "columns".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.0.positions()
    }

    fn run(&self, args: &mut Args<'_>) {
        let extents = &self.0;
        let (logits, labels) = (args.inputs[0], args.input_i32(1));
        let (max, inverse) = args.workspace.split_at_mut(extents.positions());
        extents.normalise(logits, max, inverse);
        let mut total = 0.0;
        for (position, &label) in labels.iter().enumerate() {
            if let Some(class) = extents.class(label) {
                let row = position / extents.inner * extents.classes + class;
                let x = logits[row * extents.inner + position % extents.inner];
                total += f64::from(max[position]) - f64::from(x) - f64::from(inverse[position]).ln();
            }
        }
        args.outputs[0][0] = total as f32;
    }
}

struct Backward(Extents);

impl CpuOp for CrossEntropyLossGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Backward(Extents::new(context)))
    }
}

impl Kernel for Backward {
    fn name(&self) -> String {
        "columns".to_string()
    }

    fn workspace(&self) -> usize {
        2 * self.0.positions()
    }

    fn run(&self, args: &mut Args<'_>) {
        let extents = &self.0;
        let ([logits, _, upstream, ..], labels) = (args.inputs, args.input_i32(1));
        let (max, scale) = args.workspace.split_at_mut(extents.positions());
        extents.normalise(logits, max, scale);
        for (scale, &label) in scale.iter_mut().zip(labels) {
            *scale = if extents.class(label).is_some() { *scale * upstream[0] } else { 0.0 };
        }
        let (max, scale) = (&*max, &*scale);
        let inner = extents.inner.max(1);
        let rows = (ELEMENTS_PER_TASK / inner).max(1);
        args.outputs[0].par_chunks_mut(rows * inner).enumerate().for_each(|(task, dx)| {
            for (i, dx) in dx.chunks_mut(inner).enumerate() {
                let row = task * rows + i;
                let (outer, class) = (row / extents.classes, row % extents.classes);
                let here = outer * inner..(outer + 1) * inner;
                let column = Row {
                    class: class as i32,
                    upstream: upstream[0],
                    labels: &labels[here.clone()],
                    max: &max[here.clone()],
                    scale: &scale[here],
                };
                backward(extents.isa, column, &logits[row * inner..][..inner], dx);
            }
        });
    }
}

/// What holds for the logits of one class.
#[derive(Clone, Copy)]
struct Row<'a> {
    class: i32,
    upstream: f32,
    labels: &'a [i32],
    max: &'a [f32],
    scale: &'a [f32],
}

simd! {
    /// Gradient of one class.
    fn backward(isa, row: Row<'_>, logits: &[f32], dx: &mut [f32]) {
        let known = row.labels.iter().zip(row.max).zip(row.scale);
        for ((dx, &x), ((&label, &max), &scale)) in dx.iter_mut().zip(logits).zip(known) {
            let hit = if label == row.class { row.upstream } else { 0.0 };
            *dx = scale * exp(x - max) - hit;
        }
    }
}
