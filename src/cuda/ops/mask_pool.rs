use super::CudaOp;
use super::launches::{elements, expect_f32, storage};
use super::sum_parts::sum_parts;
use crate::cuda::gpu::{Precision, Target};
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::{
    Extents, POOL_F32, POOL_F32_THREADS, PoolTile, pool_candidates, pool_f32_candidates,
};
use crate::ops::epilogue::Epilogue;
use crate::ops::{MaskPool, MaskPoolGrad};
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

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradParams {
    objects: u32,
    channels: u32,
    pixels: u32,
}

/// Pixels and channels of a block, and its threads, on tensor cores: `BM`, `BN` and `THREADS` of
/// `kernels/mask/pool_grad.cu`.
const GRAD_BLOCK: (usize, usize, u32) = (128, 64, 256);

impl CudaOp for MaskPoolGrad {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let dx = site.outputs[0];
        elements(dx)?;
        elements(site.inputs[0])?;
        expect_f32(site, [1])?;
        let packing = Packing::plain(dx.dtype);
        let [batch, channels] = [dx.shape[0], dx.shape[3]];
        let (objects, pixels) = (site.inputs[0].shape[1], dx.shape[1] * dx.shape[2]);
        let params = GradParams { objects: objects as u32, channels: channels as u32, pixels: pixels as u32 };
        let half = target.precision.is_half();
        let (source, entry, (rows, columns, threads)) = match half {
            true => ("mask/pool_grad.cu", "mask_pool_grad", GRAD_BLOCK),
            false => ("mask/pool_grad_f32.cu", "mask_pool_grad_f32", (POOL_F32, POOL_F32, POOL_F32_THREADS)),
        };
        let wide = |name, count: usize| (name, i64::from(count.is_multiple_of(8)));
        let defines = match half {
            true => vec![storage(dx.dtype), wide("MASK_WIDE", pixels), wide("X_WIDE", channels)],
            false => Vec::new(),
        };
        let launch = Launch {
            source,
            entry,
            defines,
            grid: [pixels.div_ceil(rows) as u32, channels.div_ceil(columns) as u32, batch as u32],
            block: [threads, 1, 1],
            shared: 0,
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
        };
        let kernel = if half { "mma, bf16 x2" } else { "f32" }.to_string();
        Ok(Program { kernel, launches: vec![launch], packing: vec![packing], workspace: 0 })
    }
}
