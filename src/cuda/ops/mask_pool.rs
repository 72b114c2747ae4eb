use super::CudaOp;
use super::launches::storage;
use super::sum_parts::sum_parts;
use crate::cuda::gpu::{Precision, Target};
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::{
    Extents, POOL_F32, POOL_F32_THREADS, PoolTile, pool_candidates, pool_f32_candidates,
};
use crate::ops::MaskPool;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;

/// Threads of a block: `THREADS` of `kernels/mask/pool.cu`.
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    channels: u32,
    pixels: u32,
    split: u32,
    object_tiles: u32,
}

/// What the two kernels differ in.
struct Variant {
    source: &'static str,
    entry: &'static str,
    threads: u32,
    defines: Vec<(&'static str, i64)>,
    shared: usize,
    object_tiles: usize,
    channel_tiles: usize,
    /// Pixels of a block, and blocks that share an image's.
    split: usize,
    splits: usize,
}

/// What fits, the preferred first.
fn variants(extents: &Extents, target: &Target) -> Vec<Variant> {
    if !target.precision.is_half() {
        let of = |(split, splits)| Variant {
            source: "mask/pool_f32.cu",
            entry: "mask_pool_f32",
            threads: POOL_F32_THREADS,
            defines: Vec::new(),
            shared: 0,
            object_tiles: extents.objects.div_ceil(POOL_F32),
            channel_tiles: extents.channels.div_ceil(POOL_F32),
            split,
            splits,
        };
        return pool_f32_candidates(extents, &target.caps).into_iter().map(of).collect();
    }
    let of = |tile: PoolTile| Variant {
        source: "mask/pool.cu",
        entry: "mask_pool",
        threads: THREADS,
        defines: vec![
            storage(target.precision.storage()),
            ("BANDS", tile.objects.bands as i64),
            ("STAGES", tile.stages as i64),
            ("MASK_WIDE", i64::from(extents.pixels.is_multiple_of(8))),
            ("X_WIDE", i64::from(extents.channels.is_multiple_of(8))),
        ],
        shared: tile.shared(),
        object_tiles: tile.objects.count,
        channel_tiles: tile.channels,
        split: tile.split,
        splits: tile.splits,
    };
    pool_candidates(extents, &target.caps).into_iter().map(of).collect()
}

impl CudaOp for MaskPool {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        Ok(self.candidates(site, target)?.remove(0))
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let [masks, x] = [site.inputs[0].shape, site.inputs[1].shape];
        let extents = Extents { batch: x[0], objects: masks[1], channels: x[3], pixels: x[1] * x[2] };
        let programs = variants(&extents, target).into_iter().map(|v| v.program(&extents, target.precision));
        Ok(programs.collect())
    }
}

impl Variant {
    fn program(self, extents: &Extents, precision: Precision) -> Program {
        let splits = self.splits;
        let count = extents.batch * extents.objects * extents.channels;
        let params = Params {
            objects: extents.objects as u32,
            channels: extents.channels as u32,
            pixels: extents.pixels as u32,
            split: self.split as u32,
            object_tiles: self.object_tiles as u32,
        };
        let to = if splits > 1 { Arg::Workspace(0) } else { Arg::Output(0) };
        let tiles = self.object_tiles * self.channel_tiles;
        let mut launches = vec![Launch {
            source: self.source,
            entry: self.entry,
            defines: self.defines,
            grid: [splits as u32, tiles as u32, extents.batch as u32],
            block: [self.threads, 1, 1],
            shared: self.shared as u32,
            args: vec![Arg::Input(0), Arg::Input(1), to, Arg::of(&params)],
        }];
        if splits > 1 {
            launches.push(sum_parts(splits, count, extents.channels, Epilogue::default()));
        }
        let math = if precision.is_half() { "mma" } else { "f32" };
        Program {
            kernel: format!("{math} split {splits}"),
            launches,
            workspace: if splits > 1 { splits * count * 4 } else { 0 },
            packing: vec![Packing::plain(precision.storage()); 2],
        }
    }
}
