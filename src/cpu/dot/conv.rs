//! Convolution of NHWC maps by tiles of 32 neighbouring outputs and 32 filters.
//!
//! A row of a tile is the receptive field of an output. With 1x1 filters fields lie in the map, side by side,
//! and are multiplied there. Else a task copies the rows of the map that its outputs read into a *band*, with
//! the padding around them: neighbouring outputs read neighbouring fields of it, whatever the filter's size,
//! stride and dilation. A band is small beside the products, and stays in L2 while panel after panel of
//! filters meets it.

use super::layout::{Grid, Run, Taps, Walk};
use super::pack::{self, panel_len};
use super::{BLOCK_STEPS, COLS, Engine, Finish, Job, PANEL_STEP, ROWS, Tile, on};
use crate::cpu::conv::ConvShape;
use crate::cpu::element::Element;
use crate::cpu::gemm::for_each_task;
use crate::isa::Dot;
use half::bf16;
use std::ops::Range;

/// A convolution without groups, in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DotConv {
    /// What is computed.
    pub shape: ConvShape,
    /// By which instructions.
    pub dot: Dot,
}

/// Tiles whose sums wait while a block of steps goes over all of them.
const WAITING: usize = 48;

impl DotConv {
    fn taps(&self) -> Taps {
        Taps::new(&self.shape)
    }

    /// Whether fields are pixels of the map.
    fn is_pointwise(&self) -> bool {
        let s = &self.shape;
        s.kernel == [1, 1] && s.padding == [0, 0] && s.padding_end == [0, 0]
    }

    fn panels(&self) -> usize {
        self.shape.c_out.div_ceil(COLS)
    }

    /// Floats of the packed filters.
    pub fn packed_len(&self) -> usize {
        self.panels() * panel_len(self.taps().steps()) / 2
    }

    /// Packs KRSC filters into `packed[..packed_len()]`.
    pub fn pack(&self, filter: &[f32], packed: &mut [f32]) {
        pack::filters(filter, self.shape.c_out, &self.taps(), bytemuck::cast_slice_mut(packed));
    }

    /// Pixels of a band's row.
    fn band_width(&self) -> usize {
        let s = &self.shape;
        s.out_width().saturating_sub(1) * s.stride[1] + s.dilation[1] * (s.kernel[1] - 1) + 1
    }

    /// Rows of the band of so many rows of outputs.
    fn band_rows(&self, lines: usize) -> usize {
        let s = &self.shape;
        (lines - 1) * s.stride[0] + s.dilation[0] * (s.kernel[0] - 1) + 1
    }

    fn grid(&self) -> Grid {
        let s = &self.shape;
        let (taps, panels) = (self.taps(), self.panels());
        if self.is_pointwise() {
            let units = s.out_pixels().div_ceil(ROWS);
            return Grid::new(1, units, panels, 2 * ROWS * taps.pixel, ROWS * s.depth() * s.c_out);
        }
        let bytes = 2 * s.stride[0] * self.band_width() * taps.pixel;
        Grid::new(s.batch, s.out_height(), panels, bytes, s.out_width() * s.depth() * s.c_out)
    }

    /// Values of bf16 of a task's band.
    fn band_len(&self) -> usize {
        let (taps, grid) = (self.taps(), self.grid());
        // A tile reads the fields of rows that no longer count, and a step the values behind a run.
        let beyond = ROWS * self.shape.stride[1] * taps.pixel + panel_len(1);
        let rows = match self.is_pointwise() {
            true => grid.band * ROWS * taps.pixel,
            false => self.band_rows(grid.band) * self.band_width() * taps.pixel,
        };
        (rows + beyond).next_multiple_of(32)
    }

    /// Floats of workspace of each thread.
    fn thread_len(&self) -> usize {
        self.band_len() / 2 + WAITING * ROWS * COLS + self.taps().steps().next_multiple_of(16)
    }

    /// Floats of workspace that [`DotConv::run`] needs in a pool of so many threads.
    pub fn workspace_len(&self, threads: usize) -> usize {
        if self.shape.out_pixels() == 0 { 0 } else { threads * self.thread_len() }
    }

    /// `y = finish(conv(x))`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says, or the workspace has no room for a thread of this pool.
    pub fn run<X: Element, Y: Element>(
        &self,
        x: &[X],
        packed: &[f32],
        finish: &Finish<'_, Y>,
        y: &mut [Y],
        workspace: &mut [f32],
    ) {
        let s = &self.shape;
        if s.out_pixels() == 0 {
            return;
        }
        let packed: &[bf16] = bytemuck::cast_slice(packed);
        assert!(x.len() >= s.input_len(), "input of {} values for {s:?}", x.len());
        assert!(packed.len() >= 2 * self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(y.len() >= s.output_len(), "output of {} values for {s:?}", y.len());
        let threads = workspace.len() / self.thread_len();
        let shared = Shared { y: y.as_mut_ptr(), workspace: workspace.as_mut_ptr() };
        let grid = self.grid();
        for_each_task(grid.tasks(), |task| {
            let shared = &shared;
            let thread = rayon::current_thread_index().unwrap_or(0);
            assert!(thread < threads, "workspace of {threads} threads in a larger pool");
            let (image, units, panels) = grid.task(task);
            // SAFETY: each thread has a part of its own, in which one task runs at a time.
            let workspace = unsafe {
                let len = self.thread_len();
                std::slice::from_raw_parts_mut(shared.workspace.add(thread * len), len)
            };
            on(
                self.dot,
                Part { conv: self, x, packed, finish, y: shared.y, image, units, panels, workspace },
            );
        });
    }
}

/// What tasks write to, each in places of its own.
struct Shared<Y> {
    y: *mut Y,
    workspace: *mut f32,
}

// SAFETY: tasks write disjoint parts.
unsafe impl<Y> Sync for Shared<Y> {}

/// One task: units of outputs of an image by a group of panels.
struct Part<'a, X, Y> {
    conv: &'a DotConv,
    x: &'a [X],
    packed: &'a [bf16],
    finish: &'a Finish<'a, Y>,
    y: *mut Y,
    image: usize,
    units: Range<usize>,
    panels: Range<usize>,
    workspace: &'a mut [f32],
}

/// Where the tiles of a task find their fields.
struct Source<'a> {
    walk: Walk,
    /// First output of the task.
    output: usize,
    /// The map itself, for pointwise tiles all of whose rows count.
    map: Option<&'a [bf16]>,
    band: &'a [bf16],
    /// Values from a line to the next, and from a field to the next.
    line: usize,
    field: usize,
}

impl Source<'_> {
    /// The fields of a tile.
    fn at(&self, tile: usize) -> *const u8 {
        let (line, field, rows) = self.walk.tile(tile);
        match self.map {
            Some(map) if rows == ROWS => map[(self.output + field) * self.field..].as_ptr().cast(),
            // The one tile that does not count whole lies alone in the band.
            Some(_) => self.band.as_ptr().cast(),
            None => self.band[line * self.line + field * self.field..].as_ptr().cast(),
        }
    }
}

impl<X: Element, Y: Element> Job for Part<'_, X, Y> {
    fn run<E: Engine>(self) {
        let Part { conv, x, packed, finish, y, image, units, panels, workspace } = self;
        let (s, taps) = (&conv.shape, conv.taps());
        let steps = taps.steps();
        let (band, rest) = workspace.split_at_mut(conv.band_len() / 2);
        let (sums, offsets) = rest.split_at_mut(WAITING * ROWS * COLS);
        let band: &mut [bf16] = bytemuck::cast_slice_mut(band);
        let offsets: &mut [u32] = &mut bytemuck::cast_slice_mut(offsets)[..steps];
        let source = match conv.is_pointwise() {
            true => points(s, &taps, x, units.start * ROWS..(units.end * ROWS).min(s.out_pixels()), band),
            false => lines(conv, &taps, x, image, units, band),
        };
        for (step, offset) in offsets.iter_mut().enumerate() {
            *offset = 2 * taps.offset(step, s.dilation, conv.band_width() * taps.pixel) as u32;
        }
        let tiles = source.walk.tiles();
        for first in (0..tiles).step_by(WAITING) {
            for panel in panels.clone() {
                let b = packed[panel * panel_len(steps)..].as_ptr().cast::<u8>();
                let (col, cols) = (panel * COLS, COLS.min(s.c_out - panel * COLS));
                for block in (0..steps).step_by(BLOCK_STEPS) {
                    let end = (block + BLOCK_STEPS).min(steps);
                    for tile in first..(first + WAITING).min(tiles) {
                        // With one block the same sums serve every tile, and stay in L1.
                        let slot = if steps <= BLOCK_STEPS { 0 } else { tile - first };
                        let sums = &mut sums[slot * ROWS * COLS..][..ROWS * COLS];
                        // SAFETY: the band has room for what the last tile reads beyond its rows; a map's tile
                        // lies in it; the panel has `steps` steps.
                        unsafe {
                            E::tile(&Tile {
                                a: source.at(tile),
                                stride: 2 * source.field,
                                offsets: &offsets[block..end],
                                rows: source.walk.tile(tile).2,
                                b: b.add(block * PANEL_STEP),
                                sums: sums.as_mut_ptr(),
                                accumulate: block > 0,
                            });
                        }
                        if end == steps {
                            source.walk.runs(tile, |Run { row, output, count }| {
                                let sums = &mut sums[row * COLS..(row + count) * COLS];
                                // SAFETY: outputs and columns of this task are written by it alone.
                                unsafe { finish.store::<E>(sums, source.output + output, col, cols, y) };
                            });
                        }
                    }
                }
            }
        }
    }
}

/// The pixels of pointwise outputs: where they lie, or gathered into the band.
fn points<'a, X: Element>(
    s: &ConvShape,
    taps: &Taps,
    x: &'a [X],
    outputs: Range<usize>,
    band: &'a mut [bf16],
) -> Source<'a> {
    let (width, height) = (s.out_width(), s.out_height());
    let pixel = |output: usize| {
        let (column, row, image) = (output % width, output / width % height, output / (width * height));
        let at = (image * s.height + row * s.stride[0]) * s.width + column * s.stride[1];
        &x[at * s.c_in..][..s.c_in]
    };
    let dense = s.stride == [1, 1] && taps.pixel == s.c_in;
    let map = bytemuck::try_cast_slice::<X, bf16>(x).ok().filter(|map| dense && map.len() == x.len());
    let gathered =
        if map.is_some() { outputs.end - outputs.len() % ROWS..outputs.end } else { outputs.clone() };
    for (output, field) in gathered.zip(band.chunks_exact_mut(taps.pixel)) {
        copy(pixel(output), field);
    }
    let walk = Walk { lines: 1, width: outputs.len(), pitch: None };
    Source { walk, output: outputs.start, map, band, line: 0, field: taps.pixel }
}

/// The rows of the map that rows `units` of an image's outputs read, with the padding around them.
fn lines<'a, X: Element>(
    conv: &DotConv,
    taps: &Taps,
    x: &[X],
    image: usize,
    units: Range<usize>,
    band: &'a mut [bf16],
) -> Source<'a> {
    let s = &conv.shape;
    let width = conv.band_width();
    let (line, rows) = (width * taps.pixel, conv.band_rows(units.len()));
    let left = s.padding[1].min(width);
    let inside = s.width.min(width - left);
    for (row, band) in band.chunks_exact_mut(line).take(rows).enumerate() {
        let at = (units.start * s.stride[0] + row).checked_sub(s.padding[0]).filter(|&at| at < s.height);
        let Some(at) = at else {
            band.fill(bf16::ZERO);
            continue;
        };
        let (before, rest) = band.split_at_mut(left * taps.pixel);
        let (band, behind) = rest.split_at_mut(inside * taps.pixel);
        before.fill(bf16::ZERO);
        behind.fill(bf16::ZERO);
        let x = &x[(image * s.height + at) * s.width * s.c_in..][..inside * s.c_in];
        if taps.pixel == s.c_in {
            copy(x, band);
        } else {
            for (x, field) in x.chunks_exact(s.c_in).zip(band.chunks_exact_mut(taps.pixel)) {
                copy(x, field);
            }
        }
    }
    if taps.reads_on() {
        band[rows * line..][..pack::FACTORS].fill(bf16::ZERO);
    }
    let pitch = (s.stride == [1, 1]).then_some(width);
    let walk = Walk { lines: units.len(), width: s.out_width(), pitch };
    let output = (image * s.out_height() + units.start) * s.out_width();
    Source { walk, output, map: None, band, line: s.stride[0] * line, field: s.stride[1] * taps.pixel }
}

/// Values as bf16, with zeros behind them.
#[inline(always)]
fn copy<X: Element>(x: &[X], y: &mut [bf16]) {
    let (y, rest) = y.split_at_mut(x.len());
    match bytemuck::try_cast_slice::<X, bf16>(x) {
        Ok(x) if x.len() == y.len() => y.copy_from_slice(x),
        _ => y.iter_mut().zip(x).for_each(|(y, x)| *y = bf16::narrow(x.widen())),
    }
    rest.fill(bf16::ZERO);
}
