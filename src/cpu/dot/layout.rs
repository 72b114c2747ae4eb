//! How the terms of a convolution's outputs become steps, and how far the tiles of a band of outputs reach.

use super::{Factor, ROWS};
use crate::cpu::conv::ConvShape;
use std::ops::Range;

/// The terms of an output: runs of values that lie side by side in the band, each cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taps {
    /// Runs, by filter row and column.
    runs: [usize; 2],
    /// Values of a run.
    len: usize,
    /// Values from a pixel of the band to the next.
    pub pixel: usize,
    /// Values of a step.
    per_step: usize,
}

impl Taps {
    /// A run is a pixel, with zeros behind it up to whole steps; or, where channels are few, all pixels of a
    /// filter row: what a step reads beyond them meets zeros in the panel.
    pub fn new<F: Factor>(s: &ConvShape) -> Taps {
        let [down, across] = s.kernel;
        let per_step = F::PER_STEP;
        let steps = |len: usize| len.div_ceil(per_step);
        if s.dilation[1] == 1 && steps(across * s.c_in) < across * steps(s.c_in) {
            return Taps { runs: [down, 1], len: across * s.c_in, pixel: s.c_in, per_step };
        }
        // An odd number of cache lines, so that neighbouring pixels do not fall on the same few sets of L1.
        let lines = steps(s.c_in) | 1;
        Taps { runs: [down, across], len: s.c_in, pixel: lines * per_step, per_step }
    }

    /// Values of a pixel that steps read.
    pub fn read(&self) -> usize {
        self.len.next_multiple_of(self.per_step).min(self.pixel)
    }

    /// Which run a step belongs to, and where in it it begins: the same part of all runs comes first, so that
    /// what neighbouring outputs share of it is still in L1.
    fn place(&self, step: usize) -> (usize, usize) {
        let runs = self.runs[0] * self.runs[1];
        (step % runs, step / runs * self.per_step)
    }

    /// Steps of a run.
    fn run_steps(&self) -> usize {
        self.len.div_ceil(self.per_step)
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.runs[0] * self.runs[1] * self.run_steps()
    }

    /// Terms of an output.
    pub fn depth(&self) -> usize {
        self.runs[0] * self.runs[1] * self.len
    }

    /// Which terms a step multiplies.
    pub fn factors(&self, step: usize) -> Range<usize> {
        let (run, within) = self.place(step);
        run * self.len + within..run * self.len + (within + self.per_step).min(self.len)
    }

    /// Whether what a step reads beyond its terms belongs to the next pixel, and so has to be a number.
    pub fn reads_on(&self) -> bool {
        self.pixel < self.len
    }

    /// Where step `step` begins in the band, in values from the first tap.
    pub fn offset(&self, step: usize, dilation: [usize; 2], band: &Band) -> usize {
        let (run, within) = self.place(step);
        let (y, x) = (run / self.runs[1], run % self.runs[1]);
        band.at(y * dilation[0], x * dilation[1]) + within
    }
}

/// Where the pixels of a band lie. With strides, those whose rows and columns are equal modulo the strides
/// are a map of their own, a *phase*: what neighbouring outputs read of one lies side by side, as without
/// strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Band {
    /// Rows.
    pub rows: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Phases down and across.
    pub phases: [usize; 2],
    /// Values from a pixel to the next.
    pub pixel: usize,
}

impl Band {
    /// Pixels of a phase's row.
    pub fn pitch(&self) -> usize {
        self.width.div_ceil(self.phases[1])
    }

    /// Values of all phases.
    pub fn len(&self) -> usize {
        let [down, across] = self.phases;
        down * across * self.rows.div_ceil(down) * self.pitch() * self.pixel
    }

    /// Where a pixel lies, in values.
    pub fn at(&self, row: usize, column: usize) -> usize {
        let [down, across] = self.phases;
        let phase = row % down * across + column % across;
        ((phase * self.rows.div_ceil(down) + row / down) * self.pitch() + column / across) * self.pixel
    }
}

/// The outputs of a band, tile by tile.
///
/// Outputs that lie side by side in the map read fields that lie side by side in the band. Where strides are
/// the band's phases that goes on from line to line: a tile may then reach over the end of a line, where the
/// fields between two lines belong to no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Lines of outputs.
    pub lines: usize,
    /// Outputs of a line.
    pub width: usize,
    /// Fields from a line to the next, if tiles go on there.
    pub pitch: Option<usize>,
}

/// A run of outputs within a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First row of the tile.
    pub row: usize,
    /// First output, counted through the lines without gaps.
    pub output: usize,
    /// How many.
    pub count: usize,
}

impl Walk {
    /// Tiles.
    pub fn tiles(&self) -> usize {
        match self.pitch {
            Some(pitch) => ((self.lines - 1) * pitch + self.width).div_ceil(ROWS),
            None => self.lines * self.width.div_ceil(ROWS),
        }
    }

    /// Line, field in that line, and rows of tile `tile`.
    pub fn tile(&self, tile: usize) -> (usize, usize, usize) {
        match self.pitch {
            Some(pitch) => {
                let fields = (self.lines - 1) * pitch + self.width;
                let first = tile * ROWS;
                (first / pitch, first % pitch, ROWS.min(fields - first))
            }
            None => {
                let across = self.width.div_ceil(ROWS);
                let field = tile % across * ROWS;
                (tile / across, field, ROWS.min(self.width - field))
            }
        }
    }

    /// Calls `each` for the outputs of a tile, run by run.
    pub fn runs(&self, tile: usize, mut each: impl FnMut(Run)) {
        let (mut line, mut field, rows) = self.tile(tile);
        let mut row = 0;
        while row < rows {
            let count = self.width.saturating_sub(field).min(rows - row);
            if count > 0 {
                each(Run { row, output: line * self.width + field, count });
            }
            // What is left of the tile begins in the gap behind the line, or on the next line.
            row += count;
            field += count;
            if let Some(pitch) = self.pitch
                && row < rows
            {
                let gap = (pitch - field).min(rows - row);
                (row, field, line) = (row + gap, 0, line + 1);
            }
        }
    }
}

/// How the outputs of a convolution are cut into tasks: a function of the shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Units, such as rows of outputs, of an image.
    pub units: usize,
    /// Units of a task.
    pub band: usize,
    /// Panels in all.
    pub panels: usize,
    /// Panels of a task.
    pub across: usize,
    /// Images.
    pub images: usize,
}

/// What a convolution costs, by which its tasks are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Bytes of a band that a unit adds.
    pub unit_bytes: usize,
    /// Fields of a unit.
    pub unit_fields: usize,
    /// Bytes of a panel.
    pub panel_bytes: usize,
    /// Multiplications of a unit by a panel.
    pub macs: usize,
    /// Panels whose products take as long as it takes to copy a unit, which every group of panels does again.
    pub least: usize,
}

impl Grid {
    /// Bands that fit L2 beside the panels, then halves of what costs less to be halved: each more band reads
    /// all panels once more, each more group of panels all bands. No task is less than a few tiles, or not
    /// worth handing to a thread.
    pub fn new(images: usize, units: usize, panels: usize, cost: &Cost) -> Grid {
        const MOST_BYTES: usize = 512 << 10;
        const WANTED: usize = 16;
        const WORTH: usize = 8 << 20;
        const FIELDS: usize = 4 * ROWS;
        let even = |n: usize, parts: usize| n.div_ceil(parts.max(1)).max(1);
        let parts = units.div_ceil((MOST_BYTES / cost.unit_bytes.max(1)).max(1));
        let mut grid = Grid { units, band: even(units, parts), panels, across: panels.max(1), images };
        while grid.tasks() < WANTED && grid.band * grid.across * cost.macs >= 2 * WORTH {
            let (once_more, all_bands) = (panels * cost.panel_bytes, units * cost.unit_bytes);
            let panels_too = grid.across > cost.least;
            let bands_too = grid.band > 1 && grid.band * cost.unit_fields >= FIELDS;
            if bands_too && (!panels_too || once_more <= all_bands) {
                grid.band = even(grid.band, 2);
            } else if panels_too {
                grid.across = even(grid.across, 2);
            } else {
                break;
            }
        }
        grid
    }

    fn bands(&self) -> usize {
        self.units.div_ceil(self.band)
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.images * self.bands() * self.panels.div_ceil(self.across)
    }

    /// Image, units and panels of task `task`.
    pub fn task(&self, task: usize) -> (usize, Range<usize>, Range<usize>) {
        let groups = self.panels.div_ceil(self.across);
        let (band, group) = (task / groups, task % groups);
        let (image, first) = (band / self.bands(), band % self.bands() * self.band);
        let panel = group * self.across;
        (image, first..(first + self.band).min(self.units), panel..(panel + self.across).min(self.panels))
    }
}
