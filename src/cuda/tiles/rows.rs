//! Tiles of `kernels/rows/*.cu`: products of few rows.
//!
//! Every tile is weighed by a rough count of clock cycles. The constants are H100-like; only their ratios
//! matter, and they are far apart: a launch and the first bytes cost some 2,500 cycles, a block's operands
//! come from L2 at about 32 bytes a cycle and multiprocessor, and the multiplications rarely count.

use crate::cuda::gpu::Caps;
use std::fmt;

/// A product `[M, K] x [N, K]^T` for each of `batch` matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Matrices.
    pub batch: usize,
    /// TF32 tensor cores; else f32 arithmetic.
    pub tensor_cores: bool,
    /// Whether blocks may share a sum; the parts are added by a second launch.
    pub may_split: bool,
}

/// How a block is laid out: the macros of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTile {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Slabs of 32 terms in a stage.
    pub slabs: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// Warps along rows, columns and terms.
    pub warps: [usize; 3],
}

impl RowTile {
    /// Terms of a stage.
    pub fn stage_terms(&self) -> usize {
        32 * self.slabs
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        32 * self.warps.iter().product::<usize>()
    }

    /// Shared memory of a block of `linear.cu`, in bytes.
    pub fn shared(&self) -> usize {
        self.stages * self.slabs * self.slab()
    }

    /// Shared memory of a block of `fused.cu`, in bytes: all `terms`, and later the warps' sums.
    pub fn resident(&self, terms: usize) -> usize {
        (terms.div_ceil(32) * self.slab()).max(self.sums())
    }

    fn slab(&self) -> usize {
        (self.m + self.n) * 128
    }

    /// Bytes of the sums of all warps.
    fn sums(&self) -> usize {
        self.warps[2] * self.m * (self.n + 8) * 4
    }
}

/// All tiles, the first the smallest. None needs more shared memory than any device of compute capability 8.0
/// or later has.
pub const TILES: [RowTile; 4] = [
    RowTile { m: 16, n: 16, slabs: 4, stages: 3, warps: [1, 1, 4] },
    RowTile { m: 32, n: 32, slabs: 4, stages: 3, warps: [1, 2, 4] },
    RowTile { m: 32, n: 64, slabs: 2, stages: 4, warps: [2, 2, 2] },
    RowTile { m: 64, n: 64, slabs: 2, stages: 3, warps: [2, 2, 2] },
];

/// A tile and the number of blocks that share each sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitTile {
    /// The tile.
    pub tile: RowTile,
    /// Blocks that share a sum.
    pub splits: usize,
}

impl SplitTile {
    /// Terms of each split: a multiple of a stage's, so that every split has some.
    pub fn split_terms(&self, terms: usize) -> usize {
        terms.max(1).div_ceil(self.splits).next_multiple_of(self.tile.stage_terms())
    }
}

impl fmt::Display for SplitTile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.tile.m, self.tile.n)?;
        if self.splits > 1 { write!(f, " split {}", self.splits) } else { Ok(()) }
    }
}

/// Cycles before the first multiplication of a launch.
const START: usize = 2500;

/// Cycles until a read of L2 arrives; the parts of a split sum are read four at a time.
const READ: usize = 600;

/// Bytes of L2 a cycle and multiprocessor, when all of them read.
const L2_BYTES: usize = 32;

/// Multiply-adds a cycle and multiprocessor.
fn rate(tensor_cores: bool) -> usize {
    if tensor_cores { 512 } else { 64 }
}

/// Estimated cycles.
fn cycles(product: &Product, choice: &SplitTile, caps: &Caps) -> usize {
    let RowTile { m: rows, n: columns, .. } = choice.tile;
    let tiles = product.m.div_ceil(rows) * product.n.div_ceil(columns) * product.batch;
    let multiprocessors = caps.multiprocessors.max(1) as usize;
    let each = (tiles * choice.splits).div_ceil(multiprocessors);
    let terms = choice.split_terms(product.k);
    let copy = (rows + columns) * terms * 4 / L2_BYTES;
    let multiply = rows * columns * terms / rate(product.tensor_cores);
    let sums = match choice.splits {
        1 => 0,
        splits => {
            let bytes = 2 * product.m * product.n * splits * 4;
            START + bytes / (L2_BYTES * multiprocessors) + splits.div_ceil(4) * READ
        }
    };
    START + each * copy.max(multiply) + sums
}

/// The cheapest tile: the first of [`candidates`].
pub fn choose(product: &Product, caps: &Caps) -> SplitTile {
    candidates(product, caps)[0]
}

/// Every tile, with every number of splits that leaves none without terms, by rising estimate; the smaller,
/// unsplit one of equals first.
pub fn candidates(product: &Product, caps: &Caps) -> Vec<SplitTile> {
    let choices =
        TILES.into_iter().flat_map(|tile| [1, 2, 4, 8, 16].map(|splits| SplitTile { tile, splits }));
    let allowed = |choice: &SplitTile| {
        let sound = product.k.div_ceil(choice.split_terms(product.k)) == choice.splits;
        choice.splits == 1 || (product.may_split && product.batch == 1 && sound)
    };
    let mut choices: Vec<SplitTile> = choices.filter(allowed).collect();
    choices.sort_by_key(|choice| cycles(product, choice, caps));
    choices
}

/// Layers over the same rows, which a prologue makes: `kernels/rows/fused.cu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Rows.
    pub rows: usize,
    /// Columns of each layer's result.
    pub columns: Vec<usize>,
    /// Terms of each sum.
    pub terms: usize,
    /// Operands of the size of the rows that a prologue reads.
    pub operands: usize,
    /// TF32 tensor cores; else f32 arithmetic.
    pub tensor_cores: bool,
}

impl Layers {
    /// Column tiles of all layers.
    pub fn column_tiles(&self, tile: &RowTile) -> usize {
        self.columns.iter().map(|columns| columns.div_ceil(tile.n)).sum()
    }

    fn cycles(&self, tile: &RowTile, caps: &Caps) -> usize {
        let RowTile { m: rows, n: columns, .. } = *tile;
        let tiles = self.rows.div_ceil(rows) * self.column_tiles(tile);
        let each = tiles.div_ceil(caps.multiprocessors.max(1) as usize);
        let copy = (rows * self.operands + columns) * self.terms * 4 / L2_BYTES;
        // Rows are made by the warps of a block in turn, some 30 cycles a row and operand.
        let make = rows * self.operands * 30 / (tile.threads() / 32);
        let multiply = rows * columns * self.terms / rate(self.tensor_cores);
        START + each * (copy.max(multiply) + make)
    }

    /// The cheapest tile that fits the device: the first of [`Layers::candidates`].
    pub fn choose(&self, caps: &Caps) -> RowTile {
        // The smallest takes 64 KiB at most: less than any device of compute capability 8.0 or later has.
        self.candidates(caps).first().copied().unwrap_or(TILES[0])
    }

    /// The tiles that fit the device, by rising estimate, the smallest of equals first.
    pub fn candidates(&self, caps: &Caps) -> Vec<RowTile> {
        let fits = |tile: &RowTile| tile.resident(self.terms) <= caps.shared_per_block as usize;
        let mut tiles: Vec<RowTile> = TILES.into_iter().filter(fits).collect();
        tiles.sort_by_key(|tile| self.cycles(tile, caps));
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(rows: usize, columns: usize, terms: usize) -> String {
        let product =
            Product { m: rows, n: columns, k: terms, batch: 1, tensor_cores: true, may_split: true };
        choose(&product, &Caps::H100).to_string()
    }

    #[test]
    fn the_layers_of_the_kernel_update_fill_an_h100() {
        assert_eq!(chosen(100, 256, 256), "16x16");
        assert_eq!(chosen(100, 768, 256), "32x32");
        assert_eq!(chosen(100, 2048, 256), "32x64");
        assert_eq!(chosen(153, 2048, 256), "64x64");
        assert_eq!(chosen(100, 256, 2048), "32x64 split 8");
    }

    #[test]
    fn every_tile_fits_the_smallest_device_and_its_sums_fit_its_stages() {
        for tile in TILES {
            assert!(tile.shared() <= 99 << 10);
            assert!(tile.threads() <= 256);
            let [m, n, k] = tile.warps;
            assert!(tile.m.is_multiple_of(16 * m) && tile.n.is_multiple_of(16 * n));
            assert!(tile.slabs.is_multiple_of(k));
            assert!(tile.sums() <= tile.shared());
        }
    }

    #[test]
    fn no_split_is_empty() {
        for terms in 1..700 {
            for columns in [16, 80, 256] {
                let product =
                    Product { m: 12, n: columns, k: terms, batch: 1, tensor_cores: true, may_split: true };
                let choice = choose(&product, &Caps::H100);
                let each = choice.split_terms(terms);
                assert!(each * (choice.splits - 1) < terms && each * choice.splits >= terms, "{terms}");
            }
        }
    }
}
