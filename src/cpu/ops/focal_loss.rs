//! Focal loss: a task is a fixed run of (object, class) rows.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::{LANES, sigmoid, softplus};
use super::{ELEMENTS_PER_TASK, Isa};
use crate::isa::simd;
use crate::ops::focal_loss::{FocalLoss, FocalLossGrad};
use rayon::prelude::*;

/// Logits `[objects, classes, inner]` as rows of `inner`.
struct Rows {
    classes: usize,
    inner: usize,
    rows: usize,
    alpha: f32,
    weighted: bool,
    isa: Isa,
}

/// What holds for one row of logits.
#[derive(Clone, Copy)]
struct Row<'a> {
    class: i32,
    weight: f32,
    alpha: f32,
    labels: &'a [i32],
}

impl Rows {
    fn new(context: &Context<'_>, alpha: f32, weighted: bool) -> Self {
        let logits = context.inputs[0].shape;
        let [objects, classes, inner] = [0, 1, 2].map(|axis| logits[axis]);
        Rows { classes, inner, rows: objects * classes, alpha, weighted, isa: context.isa }
    }

    /// Rows of a task.
    fn per_task(&self) -> usize {
        (ELEMENTS_PER_TASK / self.inner.max(1)).max(1)
    }

    fn tasks(&self) -> usize {
        self.rows.div_ceil(self.per_task())
    }

    fn row<'a>(&self, labels: &'a [i32], weights: &[f32], row: usize) -> Row<'a> {
        let (object, class) = (row / self.classes, row % self.classes);
        let weight = if self.weighted { weights[row % weights.len()] } else { 1.0 };
        let labels = &labels[object * self.inner..][..self.inner];
        Row { class: class as i32, weight, alpha: self.alpha, labels }
    }
}

struct Forward(Rows);

impl CpuOp for FocalLoss {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Forward(Rows::new(context, self.alpha, self.weighted)))
    }
}

impl Kernel for Forward {
    fn name(&self) -> String {
        "rows".to_string()
    }

    /// A double-precision partial sum a task, as two floats: the rounded sum and what is left of it.
    fn workspace(&self) -> usize {
        2 * self.0.tasks()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (rows, labels) = (&self.0, args.input_i32(1));
        let [logits, _, weights, ..] = args.inputs;
        let partial = &mut args.workspace[..2 * rows.tasks()];
        partial.par_chunks_mut(2).enumerate().for_each(|(task, partial)| {
            let first = task * rows.per_task();
            let mut total = 0.0;
            for row in first..(first + rows.per_task()).min(rows.rows) {
                let logits = &logits[row * rows.inner..][..rows.inner];
                total += forward(rows.isa, rows.row(labels, weights, row), logits);
            }
            partial[0] = total as f32;
            partial[1] = (total - f64::from(partial[0])) as f32;
        });
        args.outputs[0][0] = partial.iter().map(|&v| f64::from(v)).sum::<f64>() as f32;
    }
}

simd! {
    /// Loss of one row.
    fn forward(isa, row: Row<'_>, logits: &[f32]) -> f64 {
        const BLOCK: usize = 2048;
        let loss = |x: f32, label: i32| {
            let positive = label == row.class;
            // The loss of a negative at x is that of a positive at -x but for its weight.
            let (x, alpha) = if positive { (-x, row.alpha) } else { (x, 1.0 - row.alpha) };
            let p = sigmoid(x);
            alpha * (p * p) * softplus(x)
        };
        let mut total = 0.0;
        for (x, labels) in logits.chunks(BLOCK).zip(row.labels.chunks(BLOCK)) {
            let mut lanes = [0.0f32; LANES];
            let ((x, x_rest), (labels, labels_rest)) = (x.as_chunks::<LANES>(), labels.as_chunks::<LANES>());
            for (x, labels) in x.iter().zip(labels) {
                for lane in 0..LANES {
                    lanes[lane] += loss(x[lane], labels[lane]);
                }
            }
            for (lane, (&x, &label)) in x_rest.iter().zip(labels_rest).enumerate() {
                lanes[lane] += loss(x, label);
            }
            total += f64::from(lanes.iter().sum::<f32>());
        }
        total * f64::from(row.weight)
    }
}

struct Backward(Rows);

impl CpuOp for FocalLossGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Backward(Rows::new(context, self.alpha, self.weighted)))
    }
}

impl Kernel for Backward {
    fn name(&self) -> String {
        "rows".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (rows, labels) = (&self.0, args.input_i32(1));
        let [logits, _, weights, ..] = args.inputs;
        let upstream = args.inputs[2 + usize::from(rows.weighted)][0];
        let chunk = rows.per_task() * rows.inner.max(1);
        args.outputs[0].par_chunks_mut(chunk).enumerate().for_each(|(task, dx)| {
            for (i, dx) in dx.chunks_mut(rows.inner).enumerate() {
                let index = task * rows.per_task() + i;
                let mut row = rows.row(labels, weights, index);
                row.weight *= upstream;
                backward(rows.isa, row, &logits[index * rows.inner..][..rows.inner], dx);
            }
        });
    }
}

simd! {
    /// Gradient of one row, whose weight includes the upstream gradient.
    fn backward(isa, row: Row<'_>, logits: &[f32], dx: &mut [f32]) {
        for ((dx, &x), &label) in dx.iter_mut().zip(logits).zip(row.labels) {
            let positive = label == row.class;
            let (x, factor) =
                if positive { (-x, -row.alpha * row.weight) } else { (x, (1.0 - row.alpha) * row.weight) };
            let p = sigmoid(x);
            let q = sigmoid(-x);
            *dx = factor * (p * p) * (2.0 * q * softplus(x) + p);
        }
    }
}
