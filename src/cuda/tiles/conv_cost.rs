//! What an implicit GEMM of a convolution costs, by a model that measures nothing.
//!
//! The model counts clocks of the busiest multiprocessor. A block takes one step of its reduction in the
//! longest of
//!
//! - `multiply`: multiply-adds of the step over the multiprocessor's rate;
//! - `shared`: bytes that copies write and warps read, over 128 bytes a clock;
//! - `l2`: bytes that come from L2, over the multiprocessor's part of L2's bandwidth;
//! - `memory`: its part of the map, the filter and the offsets of deformed taps, each read once, over the
//!   multiprocessor's part of device memory's bandwidth;
//!
//! and in [`STEP_LATENCY`] more (barrier, first fragments, addresses) unless other resident blocks fill that
//! time. Blocks of a multiprocessor run in groups of as many as fit; each group also pays for filling the
//! pipeline, for reading its part of the residual and for writing its tiles. A split reduction adds the
//! traffic of its partial sums and a second launch. Tiles that overhang the matrix cost what they cost, so
//! that wasted work needs no term of its own.
//!
//! Maps come from device memory and go there, even where L2 might have kept them from the layer before: what
//! the roofline (`gpu/roofline.rs`) says is then a lower bound of each estimate. Partial sums, which are read
//! at once, go no further than L2 if half of it holds them.
//!
//! Rates are those of `gpu/rates.rs`, of tensor cores by `mma.sync`.

use super::conv::{Addressing, ConvGemm, GemmTile, Math};
use crate::cuda::gpu::{Caps, Precision, rates};

/// Clocks of a step that only other blocks can fill. This and the next two are fitted to measurements on an
/// H200 (`benches/results/2026-11-27-h200`): estimates of 1118 candidates are within 10 %
/// (rms of the logarithm), and the first choices take 2 % longer than the best.
const STEP_LATENCY: f64 = 200.0;
/// Clocks from the launch until the first step has come, and from the last to the last store.
const BLOCK_LATENCY: f64 = 4000.0;
/// Clocks of a second kernel in a graph.
const LAUNCH_LATENCY: f64 = 4000.0;
/// Bytes of shared memory of a multiprocessor a clock.
const SHARED_BYTES: f64 = 128.0;

/// The cost model of an implicit GEMM.
pub(super) struct Model<'a> {
    pub shape: &'a ConvGemm,
    pub precision: Precision,
    pub caps: &'a Caps,
    pub tile: GemmTile,
    pub addressing: Addressing,
}

impl Model<'_> {
    /// Clocks from launch to the last store.
    pub fn clocks(&self, splits: usize) -> f64 {
        let Model { shape, caps, tile, .. } = *self;
        let size = self.precision.storage().size();
        let result = shape.result_size(self.precision) as f64;
        let multiprocessors = caps.multiprocessors as usize;
        let blocks = shape.m().div_ceil(tile.m) * shape.n.div_ceil(tile.n) * splits;
        let steps = (shape.k() * size).div_ceil(tile.chunks * 16).div_ceil(splits);
        // The runtime keeps 1 KiB of each block's shared memory.
        let shared = tile.shared(self.addressing, shape.tap_count()) + 1024;
        let room = caps.shared_per_multiprocessor as usize / shared;
        let resident = room.min(tile.blocks).max(1);
        let busiest = blocks.div_ceil(multiprocessors);

        let results = shape.m() * shape.n;
        let memory = self.memory_bytes(blocks);
        let map = shape.batch * shape.map[0] * shape.map[1] * shape.channels;
        let offsets = if shape.deformed { shape.m() * shape.tap_count() * 8 } else { 0 };
        let operands = (map + shape.k() * shape.n) * size + offsets;
        let read = operands as f64 / (blocks * steps) as f64 / memory;
        let partials = splits * 4 * results;
        let kept = 2 * partials <= caps.l2_bytes as usize;
        let of_partials = |memory| if kept { self.l2_bytes() } else { memory };
        // Of a whole reduction, what is written of a tile and read of the residual; of a split one, the
        // second launch does that.
        let end = match splits {
            1 => ((tile.m * tile.n) as f64 + shape.residual as f64 / blocks as f64) * result / memory,
            _ => (tile.m * tile.n * 4) as f64 / of_partials(memory),
        };
        let group = |blocks: usize| {
            let blocks = blocks as f64;
            let step = |blocks: f64| self.step(blocks).max(read);
            let steps = steps as f64 * (blocks * step(blocks)).max(step(1.0) + STEP_LATENCY);
            steps + BLOCK_LATENCY + blocks * end
        };
        let mut clocks = (busiest / resident) as f64 * group(resident);
        if !busiest.is_multiple_of(resident) {
            clocks += group(busiest % resident);
        }
        if splits > 1 {
            // All multiprocessors take part, whatever the tiles.
            let memory = self.memory_bytes(multiprocessors);
            let maps = (results + shape.residual) as f64 * result / memory;
            let partials = partials as f64 / of_partials(memory);
            clocks += LAUNCH_LATENCY + (partials + maps) / multiprocessors as f64;
        }
        clocks
    }

    /// Clocks of one block's step while `blocks` of them share the multiprocessor.
    fn step(&self, blocks: f64) -> f64 {
        let GemmTile { m, n, warps, chunks, .. } = self.tile;
        let lanes = 16 / self.precision.storage().size();
        let all_warps = (warps[0] * warps[1]) as f64;
        // A multiprocessor has four schedulers with a quarter of the units each.
        let idle = (4.0 / (blocks * all_warps)).max(1.0);
        let blended = self.blends();
        // A product blends 64 elements, which is as many multiply-adds an element as 32 filters take.
        let columns = if blended { n + 32 } else { n };
        let multiply = (m * columns * chunks * lanes) as f64 / self.multiply_rate() * idle;
        let written = self.tile.stage_bytes() as f64;
        let read = all_warps * ((m / warps[0] + n / warps[1]) * chunks * 16) as f64;
        // A deformed tap's element comes of four pixels, which L1 serves in the place of shared memory.
        let (gathered, instructions) = match self.addressing {
            Addressing::Pointwise | Addressing::Taps => (0.0, 0.0),
            Addressing::Elements => (0.0, 6.0),
            Addressing::Deformed if blended => (4.0, 7.0),
            Addressing::Deformed => (4.0, 14.0),
            Addressing::DeformedElements => (4.0, 50.0),
        };
        let shared = (written + read + gathered * (m * chunks * 16) as f64) / SHARED_BYTES;
        let l2 = written / self.l2_bytes();
        // A warp issues about so many instructions for 32 elements, one a clock and scheduler.
        let issue = (m * chunks * lanes) as f64 / 32.0 * instructions / 4.0 * idle;
        multiply.max(shared).max(l2).max(issue)
    }

    /// Whether tensor cores blend the pixels of deformed taps: a step is of one tap.
    pub fn blends(&self) -> bool {
        let lanes = 16 / self.precision.storage().size();
        self.addressing == Addressing::Deformed
            && self.tile.blends()
            && self.shape.channels.is_multiple_of(self.tile.chunks * lanes)
    }

    /// Multiply-adds of a multiprocessor a clock.
    pub fn multiply_rate(&self) -> f64 {
        let compute = self.caps.compute;
        match self.tile.math {
            Math::Fma => rates::fma(compute),
            Math::Tensor => rates::mma_sync(compute),
            Math::Tf32x3 => rates::mma_sync(compute) / rates::TF32X3,
        }
    }

    /// Bytes of L2's bandwidth of a multiprocessor a clock: about what microbenchmarks have found, not what
    /// is sold.
    fn l2_bytes(&self) -> f64 {
        match self.caps.compute {
            (8, 0) => 40.0,
            (9 | 10, _) => 32.0,
            _ => 20.0,
        }
    }

    /// Bytes of device memory's bandwidth of a multiprocessor a clock, where so many blocks share it: few of
    /// them leave multiprocessors idle, and the others' part is limited by how fast they take bytes from L2.
    fn memory_bytes(&self, blocks: usize) -> f64 {
        let sharing = blocks.min(self.caps.multiprocessors as usize) as f64;
        let clocks = f64::from(self.caps.clock_mhz) * 1e6 * sharing;
        (f64::from(self.caps.bandwidth_gbs) * 1e9 / clocks).min(self.l2_bytes())
    }
}
