//! Products with few rows and columns but a long K, such as the gradients of filters, whose K are the pixels:
//! K is cut into chunks whose partial sums are added in order.

use crate::isa::Isa;

use super::Epilogue;
use super::block::{Block, Dense, KC, MC, SharedMut, Target, for_each_task};
use super::operand::{Panels, Rows};
use super::vector::{on, tile_shape};

/// The fixed cut of `C[m, n] = A[m, k] B[k, n]` into tasks: a function of the shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongGemm {
    m: usize,
    n: usize,
    k: usize,
    isa: Isa,
    row_step: usize,
    col_step: usize,
    /// k of a chunk.
    chunk: usize,
}

impl LongGemm {
    /// The product of these extents.
    ///
    /// A task fills its rows of A once and its columns of B once, so it takes wide blocks of C; K is cut
    /// before the blocks get narrow, and is never cut so short that adding the partial sums would count.
    pub fn new(m: usize, n: usize, k: usize, isa: Isa) -> LongGemm {
        const WANTED: usize = 16;
        const WORTH: usize = 1 << 18;
        const COLS: usize = 256;
        const SHORTEST: usize = 4 * KC;
        let (mr, nr) = tile_shape(isa);
        let even =
            |n: usize, parts: usize, unit: usize| n.div_ceil(parts.max(1)).next_multiple_of(unit).max(unit);
        let mut row_step = even(m, m.div_ceil(MC), mr);
        let mut col_step = even(n, n.div_ceil(COLS), nr);
        let blocks = |rows: usize, cols: usize| (m.div_ceil(rows) * n.div_ceil(cols)).max(1);
        let chunks = WANTED.div_ceil(blocks(row_step, col_step)).min(k / SHORTEST).max(1);
        let chunk = even(k, chunks, KC);
        let tasks = |rows: usize, cols: usize| blocks(rows, cols) * k.div_ceil(chunk);
        let worth = |rows: usize, cols: usize| rows * cols * chunk.min(k) >= WORTH;
        while tasks(row_step, col_step) < WANTED && col_step > 2 * nr && worth(row_step, col_step) {
            col_step = even(col_step, 2, nr);
        }
        while tasks(row_step, col_step) < WANTED && row_step > 2 * mr && worth(row_step, col_step) {
            row_step = even(row_step, 2, mr);
        }
        LongGemm { m, n, k, isa, row_step, col_step, chunk }
    }

    /// Number of partial sums; at least 1.
    fn chunks(&self) -> usize {
        self.k.div_ceil(self.chunk).max(1)
    }

    /// Values of workspace that [`LongGemm::run`] needs: a partial sum a chunk.
    pub fn workspace_len(&self) -> usize {
        if self.chunks() == 1 { 0 } else { self.chunks() * self.m * self.n }
    }

    /// `c = A B`, dense.
    pub(crate) fn run<R: Rows, P: Panels>(&self, a: &R, b: &P, c: &mut [f32], workspace: &mut [f32]) {
        let LongGemm { m, n, k, isa, row_step, col_step, chunk } = *self;
        let (size, chunks) = (m * n, self.chunks());
        let c = &mut c[..size];
        let workspace = &mut workspace[..self.workspace_len()];
        let sums = if chunks == 1 { c.as_mut_ptr() } else { workspace.as_mut_ptr() };
        let target = Target { c: sums, ldc: n, finish: Epilogue::default().finish(m, n, n) };
        let (down, across) = (m.div_ceil(row_step), n.div_ceil(col_step));
        for_each_task(chunks * down * across, |i| {
            let (part, row, col) = (i / (down * across), i / across % down * row_step, i % across * col_step);
            let (rows, cols) = (row..(row + row_step).min(m), col..(col + col_step).min(n));
            let k = part * chunk..((part + 1) * chunk).min(k);
            let target = Target { c: target.origin().wrapping_add(part * size), ..target };
            on(isa, Block { a, b, target, places: &Dense, rows, cols, k });
        });
        if chunks > 1 {
            add_up(workspace, c);
        }
    }
}

/// `sum = parts[0] + parts[1] + ..` in this order, where the parts are as long as the sum.
pub(crate) fn add_up(parts: &[f32], sum: &mut [f32]) {
    /// Values of a task.
    const STEP: usize = 4096;
    let size = sum.len();
    let shared = SharedMut::new(sum);
    for_each_task(size.div_ceil(STEP), |i| {
        let (from, count) = (i * STEP, STEP.min(size - i * STEP));
        // SAFETY: every task has a range of its own.
        let sum = unsafe { std::slice::from_raw_parts_mut(shared.get().add(from), count) };
        sum.copy_from_slice(&parts[from..from + count]);
        for part in parts.chunks_exact(size).skip(1) {
            sum.iter_mut().zip(&part[from..from + count]).for_each(|(sum, part)| *sum += part);
        }
    });
}
