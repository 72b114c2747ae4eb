//! One task: a block of C, all of its K, run by one thread.
//!
//! K is cut into blocks of at most [`KC`]; per block the rows of A are filled into strips on the stack (they
//! stay in L2), and each panel of B (in L1) meets all strips. Partial sums wait in C itself.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::copy_nonoverlapping;

use rayon::prelude::*;

use crate::isa::Isa;

use super::kernel::{CHUNK, Finish, Tile};
use super::operand::{Panels, Rows, strip_len};
use super::vector::{Arch, Job, on, tile_shape};

/// Most k of one block: a panel of `KC x 32` fills two thirds of a 48 KiB L1.
pub(crate) const KC: usize = 256;
/// Most rows of one block: a multiple of every `MR`; with `KC` columns 168 KiB of L2. K-Net's 153 objects
/// fit, so that the pixels of a mask product are packed once.
pub(crate) const MC: usize = 168;
/// Widest panel.
const NR_MAX: usize = 32;
/// Most rows of a tile.
const MR_MAX: usize = 14;

/// Scratch of one task, on its stack and never initialised as a whole.
#[repr(align(64))]
struct Scratch<const N: usize>([f32; N]);

/// A pointer to C that tasks share; they write disjoint blocks.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T = f32>(*mut T);

// SAFETY: every user hands disjoint ranges to its tasks.
unsafe impl<T> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedMut<T> {}

impl<T: Copy> SharedMut<T> {
    pub fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }
    pub fn get(self) -> *mut T {
        self.0
    }
}

/// C and what is done to it: `finish` points at the origin of C.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub c: *mut f32,
    pub ldc: usize,
    pub finish: Finish,
}

// SAFETY: bias and residual are only read, C is written by disjoint blocks.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The origin of C, as a method so that closures capture the whole (`Sync`) struct.
    pub fn origin(&self) -> *mut f32 {
        self.c
    }

    /// The part of C that starts at column `col`.
    pub fn columns_from(&self, col: usize) -> Target {
        Target { c: self.c.wrapping_add(col), ldc: self.ldc, finish: self.finish.at(0, col, self.ldc) }
    }
}

/// Where the rows of C lie.
pub(crate) trait Places: Sync {
    /// Offset of row `row` of C, and how many rows from it on, at most `rows`, lie `ldc` apart.
    fn locate(&self, row: usize, rows: usize, ldc: usize) -> (usize, usize);
}

/// All rows of C lie `ldc` apart.
pub(crate) struct Dense;

impl Places for Dense {
    #[inline(always)]
    fn locate(&self, row: usize, rows: usize, ldc: usize) -> (usize, usize) {
        (row * ldc, rows)
    }
}

/// The length of the K blocks: as equal as multiples of [`CHUNK`] allow.
pub(crate) fn k_block(k: usize) -> usize {
    k.div_ceil(k.div_ceil(KC).max(1)).next_multiple_of(CHUNK).max(CHUNK)
}

/// Computes rows x columns `cols` of C over `k`. `cols` starts at a multiple of `NR`.
pub(crate) struct Block<'a, R, P, L> {
    pub a: &'a R,
    pub b: &'a P,
    pub target: Target,
    /// Only [`Dense`] rows may have a residual.
    pub places: &'a L,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub k: Range<usize>,
}

impl<R: Rows, P: Panels, L: Places> Job for Block<'_, R, P, L> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let mut strips = MaybeUninit::<Scratch<{ MC * KC }>>::uninit();
        let mut panel = MaybeUninit::<Scratch<{ KC * NR_MAX }>>::uninit();
        let mut stage = MaybeUninit::<Scratch<{ MR_MAX * NR_MAX }>>::uninit();
        let (strips, panel) = (strips.as_mut_ptr().cast::<f32>(), panel.as_mut_ptr().cast::<f32>());
        let stage = stage.as_mut_ptr().cast::<f32>();
        let Target { c, ldc, finish } = self.target;
        let m = self.rows.len();
        let strips_in_all = m.div_ceil(A::MR);
        let tiles = strips_in_all * self.cols.len().div_ceil(A::NR);
        let step = k_block(self.k.len());
        let mut k = self.k.start;
        loop {
            let len = step.min(self.k.end - k);
            // SAFETY: m <= MC and len <= KC, so strips and panels fit their scratch; the rest stays inside
            // the operands and C by the caller's shapes.
            unsafe {
                self.a.fill::<A>(self.rows.start, m, k, len, strips);
                let next_rows = match k + len {
                    next if next < self.k.end => self.a.ahead(self.rows.start, m, next),
                    _ => self.a.ahead(self.rows.end, m, self.k.start),
                };
                for (index, col) in self.cols.clone().step_by(A::NR).enumerate() {
                    let b = self.b.panel::<A>(col / A::NR, k, len, panel);
                    let next_panel = match col + A::NR {
                        col if col < self.cols.end => self.b.ahead::<A>(col / A::NR, k),
                        _ => self.b.ahead::<A>(self.cols.start / A::NR, k + len),
                    };
                    for strip in 0..strips_in_all {
                        let row = self.rows.start + strip * A::MR;
                        let rows = A::MR.min(self.rows.end - row);
                        let (place, together) = self.places.locate(row, rows, ldc);
                        let mut tile = Tile {
                            rows,
                            cols: A::NR.min(self.cols.end - col),
                            k: len,
                            a: strips.add(strip * strip_len(len, A::MR)),
                            b,
                            c: c.add(place + col),
                            ldc,
                            accumulate: k > self.k.start,
                            finish: (k + len == self.k.end).then(|| finish.at(row, col, ldc)),
                            next: [
                                next_panel.share(strip, strips_in_all),
                                next_rows.share(index * strips_in_all + strip, tiles),
                            ],
                        };
                        if together == rows {
                            A::tile(&tile);
                            continue;
                        }
                        // The tile's rows lie apart: it is computed on the stack and its rows are copied.
                        (tile.c, tile.ldc) = (stage, A::NR);
                        if tile.accumulate {
                            for r in 0..rows {
                                let from = c.add(self.places.locate(row + r, 1, ldc).0 + col);
                                copy_nonoverlapping(from, stage.add(r * A::NR), tile.cols);
                            }
                        }
                        A::tile(&tile);
                        for r in 0..rows {
                            let to = c.add(self.places.locate(row + r, 1, ldc).0 + col);
                            copy_nonoverlapping(stage.add(r * A::NR), to, tile.cols);
                        }
                    }
                }
            }
            k += len;
            if k == self.k.end {
                break;
            }
        }
    }
}

/// The fixed decomposition of an `m x n` C into tasks: a function of the shape alone.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    m: usize,
    n: usize,
    row_step: usize,
    col_step: usize,
}

impl Grid {
    /// Full-width blocks of [`MC`] rows, cut further while there are few of them and each is worth a task.
    pub fn new(m: usize, n: usize, k: usize, isa: Isa) -> Grid {
        const WANTED: usize = 24;
        const WORTH: usize = 1 << 17;
        let (mr, nr) = tile_shape(isa);
        let even =
            |n: usize, parts: usize, unit: usize| n.div_ceil(parts.max(1)).next_multiple_of(unit).max(unit);
        let mut row_step = even(m, m.div_ceil(MC), mr);
        let mut col_step = n.next_multiple_of(nr).max(nr);
        let tasks = |rows: usize, cols: usize| m.div_ceil(rows) * n.div_ceil(cols);
        let worth = |rows: usize, cols: usize| rows * cols * k >= 2 * WORTH;
        while tasks(row_step, col_step) < WANTED && col_step > 2 * nr && worth(row_step, col_step) {
            col_step = even(col_step, 2, nr);
        }
        while tasks(row_step, col_step) < WANTED && row_step > 2 * mr && worth(row_step, col_step) {
            row_step = even(row_step, 2, mr);
        }
        while tasks(row_step, col_step) < WANTED && col_step > nr && worth(row_step, col_step) {
            col_step = even(col_step, 2, nr);
        }
        Grid { m, n, row_step, col_step }
    }

    pub fn tasks(&self) -> usize {
        self.m.div_ceil(self.row_step) * self.n.div_ceil(self.col_step)
    }

    /// Rows and columns of task `i`. Neighbouring tasks share rows of A.
    pub fn task(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let across = self.n.div_ceil(self.col_step);
        let (row, col) = (i / across * self.row_step, i % across * self.col_step);
        (row..(row + self.row_step).min(self.m), col..(col + self.col_step).min(self.n))
    }
}

/// Runs `count` independent tasks, in parallel when there are several.
pub(crate) fn for_each_task(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// `C[m, n] = epilogue(A B)` over `k`, tasks in parallel.
pub(crate) fn run<R: Rows, P: Panels>(isa: Isa, shape: [usize; 3], a: &R, b: &P, target: Target) {
    run_at(isa, shape, a, b, target, &Dense);
}

/// [`run`] with rows of C that lie anywhere.
pub(crate) fn run_at<R: Rows, P: Panels, L: Places>(
    isa: Isa,
    shape: [usize; 3],
    a: &R,
    b: &P,
    target: Target,
    places: &L,
) {
    let [m, n, k] = shape;
    let grid = Grid::new(m, n, k, isa);
    for_each_task(grid.tasks(), |i| {
        let (rows, cols) = grid.task(i);
        on(isa, Block { a, b, target, places, rows, cols, k: 0..k });
    });
}
