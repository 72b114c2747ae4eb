//! Self-attention without a map of all weights: a task takes a few queries of one image, and for one head
//! after the other computes their logits, the softmax and the weighted sum of the values in a buffer that
//! stays in cache.
//!
//! Keys are turned round first (`[D, N]` for every head), so that both products run along contiguous rows;
//! values are gathered head by head, because their rows lie far apart.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::exp::{LANES, exponentials, maximum};
use super::normalise::dot;
use super::product::{Matrix, product, transpose};
use crate::isa::simd;
use crate::ops::{Attention, AttentionGrad};
use rayon::prelude::*;

/// Queries of a task.
const QUERIES: usize = 8;

struct Blocks {
    heads: usize,
    batch: usize,
    n: usize,
    channels: usize,
    isa: Isa,
}

impl CpuOp for Attention {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let qkv = context.inputs[0].shape;
        let (batch, n, channels) = (qkv[0], qkv[1], qkv[2] / 3);
        Box::new(Blocks { heads: self.heads, batch, n, channels, isa: context.isa })
    }
}

impl Blocks {
    /// Channels of a head.
    fn depth(&self) -> usize {
        self.channels / self.heads
    }

    /// Objects, rounded up to whole vectors.
    fn columns(&self) -> usize {
        self.n.next_multiple_of(LANES)
    }

    /// Floats of one head's keys and values.
    fn head_len(&self) -> usize {
        self.depth() * (self.columns() + self.n)
    }

    /// Floats of the logits of all tasks of one image.
    fn logits_len(&self) -> usize {
        self.n.div_ceil(QUERIES) * QUERIES * self.columns()
    }

    /// Turns keys and gathers values of one head.
    fn gather(&self, qkv: &[f32], head: usize, out: &mut [f32]) {
        let (d, columns, row) = (self.depth(), self.columns(), 3 * self.channels);
        let (keys, values) = out.split_at_mut(d * columns);
        let source = Matrix { data: &qkv[self.channels + head * d..], stride: row };
        transpose(source, self.n, d, keys, columns);
        keys.chunks_exact_mut(columns).for_each(|keys| keys[self.n..].fill(0.0));
        for (value, object) in values.chunks_exact_mut(d).zip(qkv.chunks_exact(row)) {
            value.copy_from_slice(&object[2 * self.channels + head * d..][..d]);
        }
    }

    /// All heads of the queries `first ..` of one image, as many as `y` has rows.
    fn attend(&self, qkv: &[f32], first: usize, heads: &[f32], logits: &mut [f32], y: &mut [f32]) {
        let (d, n, columns, channels) = (self.depth(), self.n, self.columns(), self.channels);
        let queries = y.len() / channels;
        let scale = 1.0 / (d as f32).sqrt();
        for (head, gathered) in heads.chunks_exact(self.head_len()).enumerate() {
            let (keys, values) = gathered.split_at(d * columns);
            let query = Matrix { data: &qkv[first * 3 * channels + head * d..], stride: 3 * channels };
            let keys = Matrix { data: keys, stride: columns };
            product(self.isa, queries, d, columns, query, keys, logits, columns);
            let mut inverses = [0.0; QUERIES];
            weights(self.isa, &mut logits[..queries * columns], n, columns, scale, &mut inverses);
            let (weights, values) =
                (Matrix { data: logits, stride: columns }, Matrix { data: values, stride: d });
            product(self.isa, queries, n, d, weights, values, &mut y[head * d..], channels);
            for (row, inverse) in y.chunks_exact_mut(channels).zip(inverses) {
                row[head * d..][..d].iter_mut().for_each(|v| *v *= inverse);
            }
        }
    }
}

simd! {
    /// Turns every row of logits into weights, which the inverses make sum to 1.
    fn weights(isa, logits: &mut [f32], n: usize, stride: usize, scale: f32, inverses: &mut [f32; QUERIES]) {
        for (row, inverse) in logits.chunks_exact_mut(stride).zip(inverses) {
            let row = &mut row[..n];
            let max = maximum(row);
            *inverse = 1.0 / exponentials(row, max, scale);
        }
    }
}

impl Kernel for Blocks {
    fn name(&self) -> String {
        "query_blocks".to_string()
    }

    fn workspace(&self) -> usize {
        self.batch * (self.heads * self.head_len() + self.logits_len())
    }

    fn run(&self, args: &mut Args<'_>) {
        let (n, channels) = (self.n, self.channels);
        if self.batch * n * channels == 0 {
            return;
        }
        let image = self.heads * self.head_len();
        let (gathered, rest) = args.workspace.split_at_mut(self.batch * image);
        let logits = &mut rest[..self.batch * self.logits_len()];
        let images = args.inputs[0].par_chunks(3 * n * channels).zip(gathered.par_chunks_mut(image));
        images
            .zip(logits.par_chunks_mut(self.logits_len()))
            .zip(args.outputs[0].par_chunks_mut(n * channels))
            .for_each(|(((qkv, gathered), logits), y)| {
                let heads = gathered.par_chunks_mut(self.head_len()).enumerate();
                heads.for_each(|(head, out)| self.gather(qkv, head, out));
                let logits = logits.par_chunks_mut(QUERIES * self.columns());
                y.par_chunks_mut(QUERIES * channels).zip(logits).enumerate().for_each(
                    |(block, (y, logits))| {
                        self.attend(qkv, block * QUERIES, gathered, logits, y);
                    },
                );
            });
    }
}

/// A task takes one head of one image; a second round copies its results to where they belong.
struct HeadsGrad(Blocks);

/// Memory of one head: keys and values turned round, two maps of objects by objects and one more for the
/// transpose of either, and the results.
struct HeadMemory<'a> {
    turned: &'a mut [f32],
    weights: &'a mut [f32],
    grads: &'a mut [f32],
    transposed: &'a mut [f32],
    results: &'a mut [f32],
}

impl CpuOp for AttentionGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let dy = context.inputs[1].shape;
        let (batch, n, channels) = (dy[0], dy[1], dy[2]);
        Box::new(HeadsGrad(Blocks { heads: self.heads, batch, n, channels, isa: context.isa }))
    }
}

impl HeadsGrad {
    /// Floats of a map of objects by objects.
    fn map_len(&self) -> usize {
        self.0.n * self.0.columns()
    }

    /// Floats of keys or values turned round.
    fn turned_len(&self) -> usize {
        self.0.depth() * self.0.columns()
    }

    /// Floats of the memory of one head.
    fn memory_len(&self) -> usize {
        self.turned_len() + 3 * self.map_len() + 3 * self.0.n * self.0.depth()
    }

    fn split<'a>(&self, memory: &'a mut [f32]) -> HeadMemory<'a> {
        let (turned, rest) = memory.split_at_mut(self.turned_len());
        let (weights, rest) = rest.split_at_mut(self.map_len());
        let (grads, rest) = rest.split_at_mut(self.map_len());
        let (transposed, results) = rest.split_at_mut(self.map_len());
        HeadMemory { turned, weights, grads, transposed, results }
    }

    /// Gradients of queries, keys and values of one head, one after the other.
    fn differentiate(&self, qkv: &[f32], dy: &[f32], head: usize, memory: HeadMemory<'_>) {
        let (isa, n, d, columns, channels) =
            (self.0.isa, self.0.n, self.0.depth(), self.0.columns(), self.0.channels);
        let part = |block: usize| Matrix { data: &qkv[block * channels + head * d..], stride: 3 * channels };
        let (queries, keys, values) = (part(0), part(1), part(2));
        let dy = Matrix { data: &dy[head * d..], stride: channels };
        let HeadMemory { turned, weights, grads, transposed, results } = memory;
        let (dq, rest) = results.split_at_mut(n * d);
        let (dk, dv) = rest.split_at_mut(n * d);
        for (left, right, out) in [(queries, keys, &mut *weights), (dy, values, &mut *grads)] {
            transpose(right, n, d, turned, columns);
            turned.chunks_exact_mut(columns).for_each(|row| row[n..].fill(0.0));
            let right = Matrix { data: turned, stride: columns };
            product(isa, n, d, columns, left, right, out, columns);
        }
        softmax_with_grad(isa, n, 1.0 / (d as f32).sqrt(), columns, weights, grads);
        for (map, right, out) in [(&*weights, dy, dv), (&*grads, queries, dk)] {
            transpose(Matrix { data: map, stride: columns }, n, n, transposed, columns);
            product(isa, n, n, d, Matrix { data: transposed, stride: columns }, right, out, d);
        }
        product(isa, n, n, d, Matrix { data: grads, stride: columns }, keys, dq, d);
    }
}

simd! {
    /// Turns every row of logits, which are to be multiplied by `scale`, into weights, and the gradients of
    /// these into those of the logits.
    pub(super) fn softmax_with_grad(
        isa, n: usize, scale: f32, stride: usize, weights: &mut [f32], grads: &mut [f32],
    ) {
        for (weights, grads) in weights.chunks_exact_mut(stride).zip(grads.chunks_exact_mut(stride)) {
            let (weights, grads) = (&mut weights[..n], &mut grads[..n]);
            let max = maximum(weights);
            let inverse = 1.0 / exponentials(weights, max, scale);
            weights.iter_mut().for_each(|v| *v *= inverse);
            let mean = dot(weights, grads) as f32;
            grads.iter_mut().zip(weights).for_each(|(grad, p)| *grad = *p * (*grad - mean) * scale);
        }
    }
}

impl Kernel for HeadsGrad {
    fn name(&self) -> String {
        "heads".to_string()
    }

    fn workspace(&self) -> usize {
        self.0.batch * self.0.heads * self.memory_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        let Blocks { heads, batch, n, channels, .. } = self.0;
        if batch * n * channels == 0 {
            return;
        }
        let (d, [qkv, dy, ..]) = (self.0.depth(), args.inputs);
        let memory = &mut args.workspace[..batch * heads * self.memory_len()];
        memory.par_chunks_mut(self.memory_len()).enumerate().for_each(|(task, memory)| {
            let (b, head) = (task / heads, task % heads);
            let (qkv, dy) = (&qkv[b * n * 3 * channels..], &dy[b * n * channels..]);
            self.differentiate(qkv, dy, head, self.split(memory));
        });
        args.outputs[0].par_chunks_mut(3 * channels).with_min_len(QUERIES).enumerate().for_each(
            |(row, out)| {
                let (b, object) = (row / n, row % n);
                for (i, out) in out.chunks_exact_mut(d).enumerate() {
                    let (block, head) = (i / heads, i % heads);
                    let results = (b * heads + head + 1) * self.memory_len() - 3 * n * d;
                    out.copy_from_slice(&memory[results + (block * n + object) * d..][..d]);
                }
            },
        );
    }
}
