//! Convolution of NHWC maps by tiles of 32 neighbouring outputs and 32 filters.
//!
//! A row of a tile is the receptive field of an output. A task copies the rows of the map that its outputs
//! read into a *band*, with the padding around them: neighbouring outputs read neighbouring fields of it,
//! whatever the filter's size, stride and dilation. A band is small beside the products, and stays in L2
//! while panel after panel of filters meets it. Filters of one tap go [another way](super::points).

use super::factor::Map;
use super::finish::{Spot, Target};
use super::layout::{Band, Cost, Grid, Run, Taps, Walk};
use super::pack::panel_len;
use super::points::Points;
use super::{
    BLOCK_STEPS, COLS, Engine, Factor, Finish, Job, PANEL_STEP, PerThread, ROWS, Read, Store, Sums, Tile,
};
use crate::cpu::conv::ConvShape;
use crate::cpu::gemm::{SharedMut, for_each_task};
use crate::isa::simd;
use std::ops::Range;

/// A convolution without groups, by products of `F`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotConv<F: Factor> {
    /// What is computed.
    pub shape: ConvShape,
    /// By which instructions.
    pub dot: F::Dot,
    /// How values of the map become factors.
    pub rule: F::Rule,
}

/// Tiles whose sums wait while a block of steps goes over all of them.
const WAITING: usize = 48;

impl<F: Factor> DotConv<F> {
    pub(super) fn taps(&self) -> Taps {
        Taps::new::<F>(&self.shape)
    }

    pub(super) fn panels(&self) -> usize {
        self.shape.c_out.div_ceil(COLS)
    }

    /// Floats of the panels.
    pub(super) fn panels_len(&self) -> usize {
        self.panels() * self.taps().steps() * PANEL_STEP / size_of::<f32>()
    }

    /// Floats of the packed filters.
    pub fn packed_len(&self) -> usize {
        self.panels_len() + self.panels() * COLS * F::BESIDE
    }

    /// Packs KRSC filters into `packed[..packed_len()]`.
    pub fn pack(&self, filter: &[f32], packed: &mut [f32]) {
        F::pack(self, filter, &mut packed[..self.packed_len()]);
    }

    /// What the sums of products with these packed filters are.
    pub fn sums<'a>(&self, packed: &'a [f32]) -> Sums<'a> {
        F::sums(self, &packed[..self.packed_len()])
    }

    /// Pixels of a band's row.
    fn band_width(&self) -> usize {
        let s = &self.shape;
        s.out_width().saturating_sub(1) * s.stride[1] + s.dilation[1] * (s.kernel[1] - 1) + 1
    }

    /// The band of so many rows of outputs.
    fn band(&self, taps: &Taps, lines: usize) -> Band {
        let s = &self.shape;
        let rows = (lines - 1) * s.stride[0] + s.dilation[0] * (s.kernel[0] - 1) + 1;
        // Runs over several pixels need these side by side.
        let phases = if taps.reads_on() { [1, 1] } else { s.stride };
        Band { rows, width: self.band_width(), phases, pixel: taps.pixel }
    }

    fn grid(&self) -> Grid {
        let s = &self.shape;
        let (taps, panels) = (self.taps(), self.panels());
        let cost = Cost {
            unit_bytes: size_of::<F>() * s.stride[0] * self.band_width() * taps.pixel,
            unit_fields: s.out_width(),
            panel_bytes: taps.steps() * PANEL_STEP,
            macs: s.out_width() * s.depth() * COLS,
            least: 1,
        };
        Grid::new(s.batch, s.out_height(), panels, &cost)
    }

    /// Values of a task's band.
    fn band_len(&self) -> usize {
        let (taps, grid) = (self.taps(), self.grid());
        // A tile reads the fields of rows that no longer count, and a step the values behind a run.
        let beyond = ROWS * self.shape.stride[1] * taps.pixel + panel_len::<F>(1);
        (self.band(&taps, grid.band).len() + beyond).next_multiple_of(F::PER_STEP)
    }

    fn band_floats(&self) -> usize {
        self.band_len() * size_of::<F>() / size_of::<f32>()
    }

    /// Floats of workspace of each thread.
    fn thread_len(&self) -> usize {
        self.band_floats() + WAITING * ROWS * COLS + self.taps().steps().next_multiple_of(16)
    }

    /// Floats of workspace that [`DotConv::run`] needs in a pool of so many threads.
    pub fn workspace_len(&self, threads: usize) -> usize {
        match Points::of(self) {
            _ if self.shape.out_pixels() == 0 => 0,
            Some(points) => threads * points.thread_len(),
            None => threads * self.thread_len(),
        }
    }

    /// `y = finish(conv(x))`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says, or the workspace has no room for a thread of this pool.
    pub fn run<X: Read<F>, Y: Store>(
        &self,
        x: &[X],
        packed: &[f32],
        finish: &Finish<'_>,
        y: &mut [Y],
        workspace: &mut [f32],
    ) {
        let s = &self.shape;
        if s.out_pixels() == 0 {
            return;
        }
        assert!(x.len() >= s.input_len(), "input of {} values for {s:?}", x.len());
        assert!(packed.len() >= self.packed_len(), "packed filter of {} floats for {s:?}", packed.len());
        let packed: &[F::Right] = bytemuck::cast_slice(&packed[..self.panels_len()]);
        assert!(y.len() >= s.output_len(), "output of {} values for {s:?}", y.len());
        let y = &SharedMut::new(y);
        if let Some(points) = Points::of(self) {
            return points.run(&x, packed, finish, y, workspace);
        }
        let parts = PerThread::new(workspace, self.thread_len());
        let grid = self.grid();
        for_each_task(grid.tasks(), |task| {
            let (image, units, panels) = grid.task(task);
            // SAFETY: one task runs on a thread at a time.
            let workspace = unsafe { parts.own() };
            let part = Part { conv: self, x: &x, packed, finish, y, image, units, panels, workspace };
            F::on(self.dot, part);
        });
    }
}

/// One task: units of outputs of an image by a group of panels.
struct Part<'a, F: Factor> {
    conv: &'a DotConv<F>,
    x: &'a dyn Map<F>,
    packed: &'a [F::Right],
    finish: &'a Finish<'a>,
    y: &'a dyn Target,
    image: usize,
    units: Range<usize>,
    panels: Range<usize>,
    workspace: &'a mut [f32],
}

/// Where the tiles of a task find their fields.
struct Source<'a, F> {
    walk: Walk,
    /// First output of the task.
    output: usize,
    stride: [usize; 2],
    band: Band,
    fields: &'a [F],
}

impl<'a, F: Factor> Source<'a, F> {
    /// Of a band's `fields`, which [`lines`] wrote.
    fn new(conv: &DotConv<F>, band: Band, image: usize, units: Range<usize>, fields: &'a [F]) -> Self {
        let s = &conv.shape;
        let pitch = (s.stride == band.phases).then(|| band.pitch());
        let walk = Walk { lines: units.len(), width: s.out_width(), pitch };
        let output = (image * s.out_height() + units.start) * s.out_width();
        Source { walk, output, stride: s.stride, band, fields }
    }

    /// The fields of a tile.
    fn at(&self, tile: usize) -> *const u8 {
        let (line, field, _) = self.walk.tile(tile);
        self.fields[self.band.at(line * self.stride[0], field * self.stride[1])..].as_ptr().cast()
    }

    /// Bytes from a field to the next.
    fn pitch(&self) -> usize {
        size_of::<F>() * self.band.at(0, self.stride[1])
    }
}

impl<F: Factor> Job<F> for Part<'_, F> {
    fn run<E: Engine<F>>(self) {
        let Part { conv, x, packed, finish, y, image, units, panels, workspace } = self;
        let (s, taps) = (&conv.shape, conv.taps());
        let steps = taps.steps();
        let (fields, rest) = workspace.split_at_mut(conv.band_floats());
        let (sums, offsets) = rest.split_at_mut(WAITING * ROWS * COLS);
        let fields: &mut [F] = bytemuck::cast_slice_mut(fields);
        let offsets: &mut [u32] = &mut bytemuck::cast_slice_mut(offsets)[..steps];
        x.lines(finish.isa, conv, &taps, image, units.clone(), fields);
        let band = conv.band(&taps, units.len());
        for (step, offset) in offsets.iter_mut().enumerate() {
            *offset = (size_of::<F>() * taps.offset(step, s.dilation, &band)) as u32;
        }
        let source = Source::new(conv, band, image, units, fields);
        let (tiles, waiting) = (source.walk.tiles(), WAITING / F::ABREAST);
        for first in (0..tiles).step_by(waiting) {
            for panel in panels.clone().step_by(F::ABREAST) {
                let abreast = panel..(panel + F::ABREAST).min(panels.end);
                let cols = panel * COLS..(abreast.end * COLS).min(s.c_out);
                for block in (0..steps).step_by(BLOCK_STEPS) {
                    let end = (block + BLOCK_STEPS).min(steps);
                    for tile in first..(first + waiting).min(tiles) {
                        // With one block the same sums serve every tile, and stay in L1.
                        let slot = if steps <= BLOCK_STEPS { 0 } else { (tile - first) * F::ABREAST };
                        let sums = &mut sums[slot * ROWS * COLS..][..abreast.len() * ROWS * COLS];
                        for (panel, sums) in abreast.clone().zip(sums.chunks_exact_mut(ROWS * COLS)) {
                            let b = &packed[panel * panel_len::<F>(steps) + block * panel_len::<F>(1)..];
                            // SAFETY: the band has room for what the last tile reads beyond its rows, and
                            // the panel has `steps` steps.
                            unsafe {
                                E::tile(&Tile {
                                    a: source.at(tile),
                                    stride: source.pitch(),
                                    offsets: &offsets[block..end],
                                    rows: source.walk.tile(tile).2,
                                    b: b.as_ptr().cast(),
                                    sums: sums.as_mut_ptr(),
                                    accumulate: block > 0,
                                });
                            }
                        }
                        if end == steps {
                            source.walk.runs(tile, |Run { row, output, count }| {
                                let (rows, row) = (row..row + count, source.output + output);
                                let spot = Spot { rows, row, cols: cols.clone(), ahead: ROWS * s.c_out };
                                // SAFETY: outputs and columns of this task are written by it alone.
                                unsafe { y.store(finish, E::VECTORS, sums, &spot) };
                            });
                        }
                    }
                }
            }
        }
    }
}

simd! {
    /// Writes the rows of the map that rows `units` of an image's outputs read, with the padding around them.
    pub(super) fn lines<F: Factor, X: Read<F>>(
        isa, conv: &DotConv<F>, taps: &Taps, x: &[X], image: usize, units: Range<usize>, fields: &mut [F],
    ) {
        let (s, rule, zero) = (&conv.shape, conv.rule, F::zero(conv.rule));
        let band = conv.band(taps, units.len());
        let left = s.padding[1].min(band.width);
        let inside = s.width.min(band.width - left);
        for row in 0..band.rows {
            let at = (units.start * s.stride[0] + row).checked_sub(s.padding[0]).filter(|&at| at < s.height);
            let x = at.map(|at| &x[(image * s.height + at) * s.width * s.c_in..][..inside * s.c_in]);
            if band.phases[1] > 1 {
                for column in 0..band.width {
                    let field = &mut fields[band.at(row, column)..][..taps.read()];
                    let at = column.checked_sub(left).filter(|&at| at < inside);
                    match x.zip(at) {
                        Some((x, at)) => X::read(&x[at * s.c_in..][..s.c_in], field, rule),
                        None => field.fill(zero),
                    }
                }
                continue;
            }
            let line = &mut fields[band.at(row, 0)..][..band.width * taps.pixel];
            let Some(x) = x else {
                line.fill(zero);
                continue;
            };
            let (before, rest) = line.split_at_mut(left * taps.pixel);
            let (line, behind) = rest.split_at_mut(inside * taps.pixel);
            before.fill(zero);
            behind.fill(zero);
            if taps.pixel == s.c_in {
                X::read(x, line, rule);
            } else {
                for (x, field) in x.chunks_exact(s.c_in).zip(line.chunks_exact_mut(taps.pixel)) {
                    X::read(x, &mut field[..taps.read()], rule);
                }
            }
        }
        if taps.reads_on() {
            fields[band.len()..][..F::PER_STEP].fill(zero);
        }
    }
}
