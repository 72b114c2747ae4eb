//! Tiles of `kernels/mask/*.cu`: products of objects and pixels.

use crate::cuda::gpu::Caps;

/// Columns of a slab of 16-bit elements in shared memory: `SLAB` of `kernels/mask/tile.cuh`.
const SLAB: usize = 64;

/// Objects, features and pixels of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Images.
    pub batch: usize,
    /// Objects of an image.
    pub objects: usize,
    /// Channels of a feature.
    pub channels: usize,
    /// Pixels of an image.
    pub pixels: usize,
}

/// How objects are cut into tiles of `32 * bands`: one up to 160, so that features are read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectTiles {
    /// Tiles.
    pub count: usize,
    /// Bands of 16 objects of each of two warps.
    pub bands: usize,
}

impl ObjectTiles {
    fn of(objects: usize) -> Self {
        let count = objects.div_ceil(160);
        ObjectTiles { count, bands: objects.div_ceil(count).div_ceil(32) }
    }

    fn rows(&self) -> usize {
        32 * self.bands
    }
}

/// A mask convolution's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTile {
    /// Tiles of objects.
    pub objects: ObjectTiles,
    /// Slabs of the kernels that stay in shared memory.
    pub kept: usize,
    /// Stages that the features' slabs pass through.
    pub stages: usize,
}

impl ConvTile {
    /// Pixels of a tile: `BN` of `kernels/mask/conv.cu`.
    pub const PIXELS: usize = 128;

    /// Shared memory of a block, in bytes.
    pub fn shared(&self) -> usize {
        128 * (self.kept * self.objects.rows() + self.stages * Self::PIXELS)
    }
}

/// The layout of a mask convolution: the first of [`conv_candidates`].
pub fn conv(extents: &Extents, caps: &Caps) -> ConvTile {
    conv_candidates(extents, caps)[0]
}

/// Layouts of a mask convolution, one at least: first those that keep kernels whole, then those with more
/// stages.
pub fn conv_candidates(extents: &Extents, caps: &Caps) -> Vec<ConvTile> {
    let slabs = extents.channels.div_ceil(SLAB);
    let objects = ObjectTiles::of(extents.objects);
    let candidates = [4, 2, 1].into_iter().flat_map(|kept| [4, 3, 2].map(|stages| (kept, stages)));
    let tiles = candidates.map(|(kept, stages)| ConvTile {
        objects,
        kept: kept.min(slabs),
        stages: stages.min(slabs.max(2)),
    });
    let mut fitting: Vec<ConvTile> = Vec::new();
    for tile in tiles.filter(|tile| tile.shared() <= caps.shared_per_block as usize) {
        if !fitting.contains(&tile) {
            fitting.push(tile);
        }
    }
    if fitting.is_empty() {
        // It needs 52 KiB: less than any device of compute capability 8.0 or later has.
        fitting.push(ConvTile { objects, kept: 1, stages: 2 });
    }
    fitting
}

/// A mask pooling's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTile {
    /// Tiles of objects.
    pub objects: ObjectTiles,
    /// Tiles of channels.
    pub channels: usize,
    /// Stages of 64 pixels in shared memory.
    pub stages: usize,
    /// Pixels of a block.
    pub split: usize,
    /// Blocks that share an image's pixels.
    pub splits: usize,
}

impl PoolTile {
    /// Channels of a tile: `BN` of `kernels/mask/pool.cu`.
    pub const CHANNELS: usize = 128;

    /// Shared memory of a block, in bytes.
    pub fn shared(&self) -> usize {
        128 * self.stages * (self.objects.rows() + Self::CHANNELS)
    }
}

/// Pixels of a block and blocks that share an image's, if `tiles` blocks of `step` pixels a step shall fill
/// the device once; then twice, half and three times.
fn shares(pixels: usize, step: usize, tiles: usize, caps: &Caps) -> Vec<(usize, usize)> {
    // Sums over no pixels are zeros, which a block has to write.
    let steps = pixels.div_ceil(step).max(1);
    let mut found = Vec::new();
    for halves in [2, 4, 1, 6] {
        let wanted = (halves * caps.multiprocessors as usize / (2 * tiles)).clamp(1, steps);
        let each = steps.div_ceil(wanted);
        let share = (each * step, steps.div_ceil(each));
        if !found.contains(&share) {
            found.push(share);
        }
    }
    found
}

/// The layout of a mask pooling on tensor cores: the first of [`pool_candidates`].
pub fn pool(extents: &Extents, caps: &Caps) -> PoolTile {
    pool_candidates(extents, caps)[0]
}

/// Layouts of a mask pooling on tensor cores, one at least; they differ in how many blocks share an image's
/// pixels.
pub fn pool_candidates(extents: &Extents, caps: &Caps) -> Vec<PoolTile> {
    let objects = ObjectTiles::of(extents.objects);
    let channels = extents.channels.div_ceil(PoolTile::CHANNELS);
    let tile = |(split, splits): (usize, usize)| {
        let mut tile =
            PoolTile { objects, channels, stages: split.div_ceil(SLAB).clamp(2, 4), split, splits };
        while tile.stages > 2 && tile.shared() > caps.shared_per_block as usize {
            tile.stages -= 1;
        }
        tile
    };
    let tiles = objects.count * channels * extents.batch;
    shares(extents.pixels, SLAB, tiles, caps).into_iter().map(tile).collect()
}

/// Objects and channels of a tile of mask pooling in f32, hard or soft. It is `TILE` of
/// `kernels/mask/tile_f32.cuh`.
pub const POOL_F32: usize = 64;

/// Pixels of a step of mask pooling in f32: `STEP` of `kernels/mask/tile_f32.cuh`.
const POOL_F32_STEP: usize = 32;

/// Threads of its block: `THREADS` of `kernels/mask/tile_f32.cuh`.
pub const POOL_F32_THREADS: u32 = 256;

/// Pixels of a block, and blocks that share an image's, of mask pooling in f32: the preferred first.
pub fn pool_f32_candidates(extents: &Extents, caps: &Caps) -> Vec<(usize, usize)> {
    let tiles = extents.objects.div_ceil(POOL_F32) * extents.channels.div_ceil(POOL_F32) * extents.batch;
    shares(extents.pixels, POOL_F32_STEP, tiles, caps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNET: Extents = Extents { batch: 1, objects: 100, channels: 256, pixels: 100 * 168 };
    /// An RTX 4090, which has little shared memory.
    const SMALL: Caps = Caps { compute: (8, 9), shared_per_block: 101_376, ..Caps::H100 };

    #[test]
    fn an_h100_is_filled_once_and_keeps_all_kernels() {
        let conv = conv(&KNET, &Caps::H100);
        assert_eq!((conv.objects.bands, conv.kept, conv.stages), (4, 4, 4));
        assert_eq!(KNET.pixels.div_ceil(ConvTile::PIXELS), 132);
        let pool = pool(&KNET, &Caps::H100);
        assert_eq!((pool.objects.count, pool.channels, pool.splits, pool.split), (1, 2, 66, 256));
    }

    #[test]
    fn every_tile_fits_the_smallest_device() {
        for objects in [1, 32, 33, 100, 153, 160, 161, 400] {
            for channels in [1, 19, 64, 96, 256, 1000] {
                let extents = Extents { objects, channels, ..KNET };
                for conv in conv_candidates(&extents, &SMALL) {
                    assert!(conv.shared() <= 101_376, "{extents:?}");
                }
                for pool in pool_candidates(&extents, &SMALL) {
                    assert!(pool.shared() <= 101_376, "{extents:?}");
                }
                let (conv, pool) = (conv(&extents, &SMALL), pool(&extents, &SMALL));
                for tiles in [conv.objects, pool.objects] {
                    assert!(tiles.bands <= 5 && tiles.count * tiles.rows() >= objects);
                    assert!((tiles.count - 1) * tiles.rows() < objects, "an empty tile: {extents:?}");
                }
            }
        }
    }

    #[test]
    fn splits_cover_all_pixels_and_none_is_empty() {
        for pixels in 1..2000 {
            let extents = Extents { pixels, ..KNET };
            let tensor =
                pool_candidates(&extents, &Caps::H100).into_iter().map(|tile| (tile.split, tile.splits));
            let all: Vec<_> = tensor.chain(pool_f32_candidates(&extents, &Caps::H100)).collect();
            for (split, splits) in all {
                assert!(split * splits >= pixels && split * (splits - 1) < pixels);
            }
        }
    }
}
