//! Attention within windows. A task takes the pixels of a row of windows that lie together in the map, and
//! for one window and head after the other gathers queries, keys and values, computes all logits, and writes
//! the weighted sums where the pixels are: nothing is rolled, padded or cut up in memory.
//!
//! The last row of windows of a shifted map holds pixels of the map's first rows and of its last: two tasks,
//! each with all keys of its windows. Biases are read from the table turned round, so that those of a query
//! and a row of keys lie side by side.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::attention::softmax_with_grad;
use super::exp::LANES;
use super::product::{Matrix, product, transpose};
use super::softmax;
use crate::isa::Isa;
use crate::ops::window_attention::MASKED;
use crate::ops::{WindowAttention, WindowAttentionGrad};
use rayon::prelude::*;
use std::ops::Range;

/// The geometry that both kernels share.
#[derive(Clone, Copy)]
struct Windows {
    op: WindowAttention,
    batch: usize,
    /// Height and width of the map.
    map: [usize; 2],
    channels: usize,
    isa: Isa,
}

/// Queries of a window: its rows `rows`, in row `row` of windows.
#[derive(Clone)]
struct Strip {
    row: usize,
    rows: Range<usize>,
}

impl Windows {
    fn new(op: WindowAttention, context: &Context<'_>) -> Self {
        let qkv = context.inputs[0].shape;
        let (batch, map, channels) = (qkv[0], [qkv[1], qkv[2]], qkv[3] / 3);
        Windows { op, batch, map, channels, isa: context.isa }
    }

    fn is_empty(&self) -> bool {
        self.batch * self.map[0] * self.map[1] * self.channels == 0
    }

    /// Windows down and across.
    fn count(&self) -> [usize; 2] {
        self.map.map(|size| size.div_ceil(self.op.window))
    }

    /// Pixels of a window.
    fn tokens(&self) -> usize {
        self.op.window * self.op.window
    }

    /// The same, in whole vectors.
    fn columns(&self) -> usize {
        self.tokens().next_multiple_of(LANES)
    }

    /// Channels of a head.
    fn depth(&self) -> usize {
        self.channels / self.op.heads
    }

    /// The map's first rows, which belong to the last row of windows.
    fn head(&self) -> usize {
        self.op.shift.min(self.map[0])
    }

    /// Where a token of window `across` of a strip's row of windows lies in the map.
    fn pixel(&self, row: usize, across: usize, token: usize) -> Option<usize> {
        let ([down, wide], window) = (self.count(), self.op.window);
        let y = self.op.source(row, token / window, down, self.map[0])?;
        let x = self.op.source(across, token % window, wide, self.map[1])?;
        Some(y * self.map[1] + x)
    }

    /// Copies one head's channels of block `block` of all tokens of a window, those of the bias where there
    /// is no pixel.
    fn gather(
        &self,
        qkv: &[f32],
        bias: &[f32],
        at: (usize, usize),
        block: usize,
        head: usize,
        out: &mut [f32],
    ) {
        let (d, wide) = (self.depth(), 3 * self.channels);
        for (token, out) in out.chunks_exact_mut(d).enumerate() {
            let row = self.pixel(at.0, at.1, token).map_or(bias, |pixel| &qkv[pixel * wide..][..wide]);
            out.copy_from_slice(&row[block * self.channels + head * d..][..d]);
        }
    }

    /// The table of biases, head by head, each from its last offset to its first.
    fn turn_table(&self, table: &[f32], out: &mut [f32]) {
        let (heads, offsets) = (self.op.heads, self.op.offsets());
        for (head, out) in out.chunks_exact_mut(offsets).enumerate() {
            for (offset, out) in out.iter_mut().rev().enumerate() {
                *out = table[offset * heads + head];
            }
        }
    }

    /// Adds biases and masks to the scaled logits of the queries of a strip in one window.
    fn add_biases(&self, strip: &Strip, across: usize, scale: f32, turned: &[f32], logits: &mut [f32]) {
        let ([down, wide], window) = (self.count(), self.op.window);
        for (query, logits) in logits.chunks_exact_mut(self.columns()).enumerate() {
            let (i, j) = (strip.rows.start + query / window, query % window);
            for (k, logits) in logits[..self.tokens()].chunks_exact_mut(window).enumerate() {
                let first = (k + window - 1 - i) * (2 * window - 1) + window - 1 - j;
                for (logit, bias) in logits.iter_mut().zip(&turned[first..]) {
                    *logit = *logit * scale + bias;
                }
                if self.op.is_parted(strip.row, down, i, k) {
                    logits.iter_mut().for_each(|logit| *logit += MASKED);
                } else {
                    let parted = |&l: &usize| self.op.is_parted(across, wide, j, l);
                    (0..window).filter(parted).for_each(|l| logits[l] += MASKED);
                }
            }
        }
    }
}

struct Attend(Windows);

impl CpuOp for WindowAttention {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Attend(Windows::new(*self, context)))
    }
}

impl Attend {
    /// Floats of a task: queries, keys and values of a head, keys turned round, logits, results.
    fn task_len(&self) -> usize {
        let (n, d) = (self.0.tokens(), self.0.depth());
        4 * n * d + (d + n) * self.0.columns()
    }

    /// Tasks of an image: the map's first rows, and the rows of windows below them.
    fn tasks(&self) -> usize {
        1 + (self.0.map[0] - self.0.head()).div_ceil(self.0.op.window)
    }

    /// The pixels of `y`, whole rows of the map from row `first` on, which are queries of `strip`.
    fn attend(
        &self,
        inputs: [&[f32]; 2],
        turned: &[f32],
        strip: &Strip,
        first: usize,
        memory: &mut [f32],
        y: &mut [f32],
    ) {
        let Windows { op, map, channels, isa, .. } = self.0;
        let (n, d, columns, offsets) = (self.0.tokens(), self.0.depth(), self.0.columns(), op.offsets());
        let [qkv, bias] = inputs;
        let queries = strip.rows.len() * op.window;
        let from = strip.rows.start * op.window;
        let (query, rest) = memory.split_at_mut(n * d);
        let (gathered, rest) = rest.split_at_mut(n * d);
        let (keys, rest) = rest.split_at_mut(d * columns);
        let (logits, rest) = rest.split_at_mut(n * columns);
        let results = &mut rest[..n * d];
        let scale = 1.0 / (d as f32).sqrt();
        for (across, head) in (0..self.0.count()[1]).flat_map(|a| (0..op.heads).map(move |h| (a, h))) {
            let at = (strip.row, across);
            self.0.gather(qkv, bias, at, 0, head, query);
            self.0.gather(qkv, bias, at, 1, head, gathered);
            transpose(Matrix { data: gathered, stride: d }, n, d, keys, columns);
            keys.chunks_exact_mut(columns).for_each(|keys| keys[n..].fill(0.0));
            let logits = &mut logits[..queries * columns];
            let left = Matrix { data: &query[from * d..], stride: d };
            product(isa, queries, d, columns, left, Matrix { data: keys, stride: columns }, logits, columns);
            self.0.add_biases(strip, across, scale, &turned[head * offsets..][..offsets], logits);
            softmax::rows(isa, n, columns, logits);
            self.0.gather(qkv, bias, at, 2, head, gathered);
            let (weights, values) =
                (Matrix { data: logits, stride: columns }, Matrix { data: gathered, stride: d });
            product(isa, queries, n, d, weights, values, results, d);
            for (query, result) in results[..queries * d].chunks_exact(d).enumerate() {
                if let Some(pixel) = self.0.pixel(strip.row, across, from + query) {
                    let to = (pixel - first * map[1]) * channels + head * d;
                    y[to..to + d].copy_from_slice(result);
                }
            }
        }
    }
}

impl Kernel for Attend {
    fn name(&self) -> String {
        "windows".to_string()
    }

    fn workspace(&self) -> usize {
        self.0.op.heads * self.0.op.offsets() + self.0.batch * self.tasks() * self.task_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        let Windows { op, batch, map, channels, .. } = self.0;
        if self.0.is_empty() {
            return;
        }
        let [qkv, bias, table, ..] = args.inputs;
        let (turned, memory) = args.workspace.split_at_mut(op.heads * op.offsets());
        self.0.turn_table(table, turned);
        let turned = &*turned;
        let (row, pixels, head) = (map[1] * channels, map[0] * map[1], self.0.head());
        let (last, cut) = (self.0.count()[0] - 1, op.window - op.shift);
        let tasks = self.tasks() * self.task_len();
        let images = args.outputs[0].par_chunks_mut(pixels * channels).zip(memory.par_chunks_mut(tasks));
        images.take(batch).zip(qkv.par_chunks(pixels * 3 * channels)).for_each(|((y, memory), qkv)| {
            let (first, rest) = y.split_at_mut(head * row);
            let (memory, others) = memory.split_at_mut(self.task_len());
            let inputs = [qkv, bias];
            rayon::join(
                || {
                    if head > 0 {
                        let strip = Strip { row: last, rows: cut..cut + head };
                        self.attend(inputs, turned, &strip, 0, memory, first);
                    }
                },
                || {
                    let strips = rest.par_chunks_mut(op.window * row);
                    strips.zip(others.par_chunks_mut(self.task_len())).enumerate().for_each(
                        |(index, (y, memory))| {
                            let strip = Strip { row: index, rows: 0..y.len() / row };
                            self.attend(inputs, turned, &strip, head + index * op.window, memory, y);
                        },
                    );
                },
            );
        });
    }
}

/// A task takes a row of windows; a second round copies the gradients of pixels to where they belong, and
/// adds up those of the table and of the bias in the order of tasks.
struct Differentiate(Windows);

impl CpuOp for WindowAttentionGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Differentiate(Windows::new(self.of, context)))
    }
}

/// Memory of a task of [`Differentiate`].
struct Memory<'a> {
    /// Gradients of the row of windows, window by window, token by token, and at their end those of the table
    /// and of the bias.
    grads: &'a mut [f32],
    gathered: [&'a mut [f32]; 4],
    turned: &'a mut [f32],
    maps: [&'a mut [f32]; 3],
    result: &'a mut [f32],
}

impl Differentiate {
    /// Floats of a task's gradients of pixels, of the table and of the bias.
    fn grads_len(&self) -> [usize; 3] {
        let Windows { op, channels, .. } = self.0;
        [self.0.count()[1] * self.0.tokens() * 3 * channels, op.heads * op.offsets(), 3 * channels]
    }

    fn task_len(&self) -> usize {
        let (n, d, columns) = (self.0.tokens(), self.0.depth(), self.0.columns());
        self.grads_len().iter().sum::<usize>() + 5 * n * d + (d + 3 * n) * columns
    }

    fn split<'a>(&self, memory: &'a mut [f32]) -> Memory<'a> {
        let (n, d, columns) = (self.0.tokens(), self.0.depth(), self.0.columns());
        let (grads, mut rest) = memory.split_at_mut(self.grads_len().iter().sum());
        let mut take = |len: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        Memory {
            grads,
            gathered: std::array::from_fn(|_| take(n * d)),
            turned: take(d * columns),
            maps: std::array::from_fn(|_| take(n * columns)),
            result: take(n * d),
        }
    }

    /// The gradients of a row of windows.
    fn differentiate(&self, inputs: [&[f32]; 3], turned_table: &[f32], row: usize, memory: Memory<'_>) {
        let Windows { op, channels, isa, .. } = self.0;
        let (n, d, columns, offsets) = (self.0.tokens(), self.0.depth(), self.0.columns(), op.offsets());
        let [qkv, bias, dy] = inputs;
        let Memory { grads, gathered: [queries, keys, values, dys], turned, maps, result } = memory;
        let [weights, dlogits, transposed] = maps;
        let [pixels, table, _] = self.grads_len();
        let (dqkv, shared) = grads.split_at_mut(pixels);
        let (dtable, dbias) = shared.split_at_mut(table);
        dtable.fill(0.0);
        dbias.fill(0.0);
        let strip = Strip { row, rows: 0..op.window };
        let scale = 1.0 / (d as f32).sqrt();
        for (across, head) in (0..self.0.count()[1]).flat_map(|a| (0..op.heads).map(move |h| (a, h))) {
            for (block, to) in [&mut *queries, keys, values].into_iter().enumerate() {
                self.0.gather(qkv, bias, (row, across), block, head, to);
            }
            for (token, to) in dys.chunks_exact_mut(d).enumerate() {
                match self.0.pixel(row, across, token) {
                    Some(pixel) => to.copy_from_slice(&dy[pixel * channels + head * d..][..d]),
                    None => to.fill(0.0),
                }
            }
            let plain = |data| Matrix { data, stride: d };
            for (left, right, out) in [(&*queries, &*keys, &mut *weights), (&*dys, &*values, &mut *dlogits)] {
                transpose(plain(right), n, d, turned, columns);
                turned.chunks_exact_mut(columns).for_each(|row| row[n..].fill(0.0));
                product(
                    isa,
                    n,
                    d,
                    columns,
                    plain(left),
                    Matrix { data: turned, stride: columns },
                    out,
                    columns,
                );
            }
            self.0.add_biases(&strip, across, scale, &turned_table[head * offsets..][..offsets], weights);
            softmax_with_grad(isa, n, 1.0, columns, weights, dlogits);
            self.add_to_table(dlogits, &mut dtable[head * offsets..][..offsets]);
            let mut put = |block: usize, result: &[f32], factor: f32| {
                for (token, result) in result.chunks_exact(d).enumerate() {
                    let to = ((across * n + token) * 3 + block) * channels + head * d;
                    dqkv[to..to + d].iter_mut().zip(result).for_each(|(to, v)| *to = v * factor);
                    if self.0.pixel(row, across, token).is_none() {
                        let shared = &mut dbias[block * channels + head * d..][..d];
                        shared.iter_mut().zip(result).for_each(|(to, v)| *to += v * factor);
                    }
                }
            };
            product(isa, n, n, d, Matrix { data: dlogits, stride: columns }, plain(keys), result, d);
            put(0, result, scale);
            for (block, map, right, factor) in [(1, &*dlogits, &*queries, scale), (2, &*weights, &*dys, 1.0)]
            {
                transpose(Matrix { data: map, stride: columns }, n, n, transposed, columns);
                let left = Matrix { data: transposed, stride: columns };
                product(isa, n, n, d, left, plain(right), result, d);
                put(block, result, factor);
            }
        }
    }

    /// Adds the gradients of logits to those of their biases, which are in the order of the turned table.
    fn add_to_table(&self, dlogits: &[f32], dtable: &mut [f32]) {
        let window = self.0.op.window;
        for (query, row) in dlogits.chunks_exact(self.0.columns()).enumerate() {
            let (i, j) = (query / window, query % window);
            for (k, row) in row[..self.0.tokens()].chunks_exact(window).enumerate() {
                let first = (k + window - 1 - i) * (2 * window - 1) + window - 1 - j;
                dtable[first..].iter_mut().zip(row).for_each(|(to, v)| *to += v);
            }
        }
    }
}

impl Kernel for Differentiate {
    fn name(&self) -> String {
        "rows of windows".to_string()
    }

    fn workspace(&self) -> usize {
        self.0.op.heads * self.0.op.offsets() + self.0.batch * self.0.count()[0] * self.task_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        let Windows { op, batch, map, channels, .. } = self.0;
        let [dqkv, dbias, dtable, ..] = &mut args.outputs;
        if self.0.is_empty() {
            dbias.fill(0.0);
            dtable.fill(0.0);
            return;
        }
        let [qkv, bias, table, dy, ..] = args.inputs;
        let (turned, rest) = args.workspace.split_at_mut(op.heads * op.offsets());
        self.0.turn_table(table, turned);
        let (turned, rows, pixels) = (&*turned, self.0.count()[0], map[0] * map[1]);
        let memory = &mut rest[..batch * rows * self.task_len()];
        memory.par_chunks_mut(self.task_len()).enumerate().for_each(|(task, memory)| {
            let (b, row) = (task / rows, task % rows);
            let (qkv, dy) = (&qkv[b * pixels * 3 * channels..], &dy[b * pixels * channels..]);
            self.differentiate([qkv, bias, dy], turned, row, self.split(memory));
        });
        let memory = &*memory;
        let window = op.window;
        // Position in its window, and that window, of a pixel along an axis.
        let place = |at: usize, windows: usize| {
            let rolled = (at + windows * window - op.shift) % (windows * window);
            (rolled / window, rolled % window)
        };
        dqkv.par_chunks_mut(map[1] * 3 * channels).enumerate().for_each(|(line, out)| {
            let (b, y) = (line / map[0], line % map[0]);
            let (row, i) = place(y, rows);
            let grads = &memory[(b * rows + row) * self.task_len()..];
            for (x, out) in out.chunks_exact_mut(3 * channels).enumerate() {
                let (across, j) = place(x, self.0.count()[1]);
                let token = across * self.0.tokens() + i * window + j;
                out.copy_from_slice(&grads[token * 3 * channels..][..3 * channels]);
            }
        });
        let [pixels, table, _] = self.grads_len();
        let sum = |at: usize| -> f32 {
            memory.chunks_exact(self.task_len()).map(|task| f64::from(task[pixels + at])).sum::<f64>() as f32
        };
        for (head, offset) in (0..op.heads).flat_map(|h| (0..op.offsets()).map(move |o| (h, o))) {
            dtable[offset * op.heads + head] = sum((head + 1) * op.offsets() - 1 - offset);
        }
        dbias.iter_mut().enumerate().for_each(|(at, out)| *out = sum(table + at));
    }
}
