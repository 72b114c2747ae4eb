//! Convolution by filters of one tap: a product of pixels, tile by tile.
//!
//! A block of steps of a tile's pixels is copied into L1, where rows begin at cache lines whatever the map's
//! stride, and all panels of a task meet it there one after another. Tiles of few steps that are factors
//! already are read where they lie. Panels come from L2; where all of them are more than that, a panel meets
//! several tiles before the next one comes.

use super::conv::DotConv;
use super::factor::Map;
use super::finish::{Spot, Target};
use super::layout::{Cost, Grid};
use super::pack::panel_len;
use super::{COLS, Engine, Factor, Finish, Job, PANEL_STEP, PerThread, ROWS, Read, STEP, Tile};
use crate::cpu::gemm::for_each_task;
use crate::isa::simd;
use std::ops::Range;

/// A tile's block of that many steps is two thirds of L1.
const BLOCK: usize = 16;

/// A convolution whose fields are pixels.
#[derive(Clone, Copy)]
pub(super) struct Points<'a, F: Factor> {
    conv: &'a DotConv<F>,
    /// Steps of a block.
    block: usize,
    /// Tiles that a panel meets together.
    together: usize,
}

impl<'a, F: Factor> Points<'a, F> {
    /// How `conv` goes, if its fields are pixels.
    pub fn of(conv: &'a DotConv<F>) -> Option<Points<'a, F>> {
        /// What of L2 panels may take.
        const PANELS: usize = 1 << 20;
        let s = &conv.shape;
        if s.kernel != [1, 1] || s.padding != [0, 0] || s.padding_end != [0, 0] {
            return None;
        }
        let steps = conv.taps().steps();
        let many = conv.panels() * steps * PANEL_STEP > PANELS;
        // Half of few tiles, so that there is work for a second thread.
        let few = s.out_pixels().div_ceil(ROWS).div_ceil(2);
        let (block, together) = if many { (steps, few.clamp(1, 4)) } else { (BLOCK.min(steps), 1) };
        Some(Points { conv, block, together })
    }

    fn steps(&self) -> usize {
        self.conv.taps().steps()
    }

    /// The map, if whole tiles are read where they lie: of pixels of whole steps, no more than a block.
    fn in_place<'x>(&self, x: &'x dyn Map<F>) -> Option<&'x [F]> {
        let s = &self.conv.shape;
        let whole = s.stride == [1, 1] && s.c_in == self.steps() * F::PER_STEP && self.steps() <= BLOCK;
        x.factors().filter(|_| whole)
    }

    fn grid(&self) -> Grid {
        let s = &self.conv.shape;
        let unit_fields = ROWS * self.together;
        let cost = Cost {
            unit_bytes: STEP * unit_fields * self.steps(),
            unit_fields,
            panel_bytes: self.steps() * PANEL_STEP,
            macs: unit_fields * s.c_in * COLS,
            least: 4,
        };
        Grid::new(1, s.out_pixels().div_ceil(unit_fields), self.conv.panels(), &cost)
    }

    /// Tiles whose sums wait, for the next block or for their neighbour's.
    fn waiting(&self) -> usize {
        if self.block == self.steps() { F::ABREAST } else { self.grid().across }
    }

    /// Bytes of a row of fields: an odd number of cache lines, so that rows do not fall on the same few sets
    /// of L1.
    fn pitch(&self) -> usize {
        (self.block | 1) * STEP
    }

    /// Floats of workspace of each thread.
    pub fn thread_len(&self) -> usize {
        let fields = self.together * ROWS * self.pitch();
        fields / size_of::<f32>() + self.waiting() * ROWS * COLS + self.block.next_multiple_of(16)
    }

    /// As [`DotConv::run`], which checked the slices.
    pub fn run(
        &self,
        x: &dyn Map<F>,
        packed: &[F::Right],
        finish: &Finish<'_>,
        y: &dyn Target,
        workspace: &mut [f32],
    ) {
        let parts = PerThread::new(workspace, self.thread_len());
        let grid = self.grid();
        for_each_task(grid.tasks(), |task| {
            let (_, units, panels) = grid.task(task);
            let unit = ROWS * self.together;
            let outputs = units.start * unit..(units.end * unit).min(self.conv.shape.out_pixels());
            // SAFETY: one task runs on a thread at a time.
            let workspace = unsafe { parts.own() };
            let part = Part { points: self, x, packed, finish, y, outputs, panels, workspace };
            F::on(self.conv.dot, part);
        });
    }
}

/// One task: a range of outputs by a group of panels.
struct Part<'a, F: Factor> {
    points: &'a Points<'a, F>,
    x: &'a dyn Map<F>,
    packed: &'a [F::Right],
    finish: &'a Finish<'a>,
    y: &'a dyn Target,
    outputs: Range<usize>,
    panels: Range<usize>,
    workspace: &'a mut [f32],
}

impl<F: Factor> Job<F> for Part<'_, F> {
    fn run<E: Engine<F>>(self) {
        let Part { points, x, packed, finish, y, outputs, panels, workspace } = self;
        let (s, steps) = (&points.conv.shape, points.steps());
        let pitch = points.pitch();
        let (fields, rest) = workspace.split_at_mut(points.together * ROWS * pitch / size_of::<f32>());
        let (sums, offsets) = rest.split_at_mut(points.waiting() * ROWS * COLS);
        let fields: &mut [F] = bytemuck::cast_slice_mut(fields);
        let tile_fields = ROWS * pitch / size_of::<F>();
        let offsets: &mut [u32] = bytemuck::cast_slice_mut(offsets);
        for (step, offset) in offsets[..points.block].iter_mut().enumerate() {
            *offset = (step * STEP) as u32;
        }
        let map = points.in_place(x);
        // The fields of a whole tile that are read where they lie.
        let lying = |rows: usize, output: usize, block: usize| {
            map.filter(|_| rows == ROWS).map(|map| &map[output * s.c_in + block * F::PER_STEP..])
        };
        for first in outputs.clone().step_by(points.together * ROWS) {
            let group = first..(first + points.together * ROWS).min(outputs.end);
            for block in (0..steps).step_by(points.block) {
                let end = (block + points.block).min(steps);
                for (tile, fields) in fields.chunks_exact_mut(tile_fields).enumerate() {
                    let from = group.start + tile * ROWS;
                    let outputs = from.min(group.end)..(from + ROWS).min(group.end);
                    if lying(outputs.len(), from, block).is_some() {
                        continue;
                    }
                    x.gather(finish.isa, points.conv, outputs, block..end, fields, pitch / size_of::<F>());
                }
                for panel in panels.clone().step_by(F::ABREAST) {
                    let abreast = panel..(panel + F::ABREAST).min(panels.end);
                    let cols = panel * COLS..(abreast.end * COLS).min(s.c_out);
                    let slot = if points.block == steps { 0 } else { panel - panels.start };
                    let sums = &mut sums[slot * ROWS * COLS..][..abreast.len() * ROWS * COLS];
                    // The next tile's, or the next panels'.
                    let ahead = match points.together {
                        1 if abreast.end < panels.end => F::ABREAST * COLS,
                        1 => ROWS * s.c_out - (panel - panels.start) * COLS,
                        _ => ROWS * s.c_out,
                    };
                    for (tile, output) in group.clone().step_by(ROWS).enumerate() {
                        let rows = ROWS.min(group.end - output);
                        let (a, stride) = match lying(rows, output, block) {
                            Some(fields) => (fields.as_ptr(), s.c_in * size_of::<F>()),
                            None => (fields[tile * tile_fields..].as_ptr(), pitch),
                        };
                        for (panel, sums) in abreast.clone().zip(sums.chunks_exact_mut(ROWS * COLS)) {
                            let b = &packed[panel * panel_len::<F>(steps) + block * panel_len::<F>(1)..];
                            // SAFETY: a tile's fields are whole, as all pixels of the map are, and the panel
                            // has the block's steps.
                            unsafe {
                                E::tile(&Tile {
                                    a: a.cast(),
                                    stride,
                                    offsets: &offsets[..end - block],
                                    rows,
                                    b: b.as_ptr().cast(),
                                    sums: sums.as_mut_ptr(),
                                    accumulate: block > 0,
                                });
                            }
                        }
                        if end == steps {
                            let spot = Spot { rows: 0..rows, row: output, cols: cols.clone(), ahead };
                            // SAFETY: outputs and columns of this task are written by it alone.
                            unsafe { y.store(finish, E::VECTORS, sums, &spot) };
                        }
                    }
                }
            }
        }
    }
}

simd! {
    /// Copies steps of the pixels of at most [`ROWS`] outputs, as `[ROWS][pitch]`, and zeros behind them up
    /// to whole steps.
    pub(super) fn gather<F: Factor, X: Read<F>>(
        isa, conv: &DotConv<F>, x: &[X], outputs: Range<usize>, steps: Range<usize>, fields: &mut [F], pitch: usize,
    ) {
        let s = &conv.shape;
        let (width, height) = (s.out_width(), s.out_height());
        let (from, end) = (steps.start * F::PER_STEP, s.c_in.min(steps.end * F::PER_STEP));
        for (output, fields) in outputs.zip(fields.chunks_exact_mut(pitch)) {
            let at = if s.stride == [1, 1] {
                output
            } else {
                let (column, line) = (output % width, output / width % height);
                let image = output / (width * height);
                (image * s.height + line * s.stride[0]) * s.width + column * s.stride[1]
            };
            let pixel = &x[at * s.c_in + from..at * s.c_in + end];
            // Lengths that the compiler knows make it a few vectors.
            if pixel.len() == F::PER_STEP {
                X::read(&pixel[..F::PER_STEP], &mut fields[..F::PER_STEP], conv.rule);
                continue;
            }
            let whole = pixel.len() / F::PER_STEP * F::PER_STEP;
            X::read(&pixel[..whole], &mut fields[..whole], conv.rule);
            if whole < pixel.len() {
                X::read(&pixel[whole..], &mut fields[whole..whole + F::PER_STEP], conv.rule);
            }
        }
    }
}
