use super::CudaOp;
use super::launches::{elements, expect_f32, storage};
use super::sum_parts::sum_parts;
use crate::cuda::gpu::{Caps, Precision, Target};
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::{
    Extents, POOL_F32, POOL_F32_THREADS, PoolTile, pool_candidates, pool_f32_candidates,
};
use crate::ops::epilogue::Epilogue;
use crate::ops::{MaskPool, MaskPoolGrad};
use crate::plan::Site;
use crate::tensor::DType;

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

/// On tensor cores; without `above_zero` masks are factors as they are.
fn on_tensor_cores(extents: &Extents, precision: Precision, tile: PoolTile, above_zero: bool) -> Variant {
    Variant {
        source: "mask/pool.cu",
        entry: "mask_pool",
        threads: THREADS,
        defines: vec![
            storage(precision.storage()),
            ("ABOVE_ZERO", i64::from(above_zero)),
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
    }
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
    let of = |tile| on_tensor_cores(extents, target.precision, tile, true);
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

/// The product of masks and features, both maps of a 16-bit precision, for gradients: blocks share pixels
/// in a way that depends on the shape alone.
pub(super) fn mask_product(extents: &Extents, target: &Target) -> Program {
    let any = Caps { multiprocessors: Caps::H100.multiprocessors, ..target.caps };
    let tile = pool_candidates(extents, &any).remove(0);
    let mut program =
        on_tensor_cores(extents, target.precision, tile, false).program(extents, target.precision);
    program.packing.clear();
    program
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
    dy_stride: u32,
}

/// Pixels and channels of a block, and its threads, on tensor cores: `BM`, `BN` and `THREADS` of
/// `kernels/mask/pool_grad.cu`.
const GRAD_BLOCK: (usize, usize, u32) = (128, 64, 256);

/// The launch that makes a map of this type of masks and of rows of objects, of which there is a set an image
/// or one for all; on tensor cores, without `above_zero`, masks are factors as they are.
fn spread(extents: &Extents, dtype: DType, above_zero: bool, rows_of_each: bool) -> Launch {
    let Extents { batch, objects, channels, pixels } = *extents;
    let params = GradParams {
        objects: objects as u32,
        channels: channels as u32,
        pixels: pixels as u32,
        dy_stride: if rows_of_each { (objects * channels) as u32 } else { 0 },
    };
    let wide = |name, count: usize| (name, i64::from(count.is_multiple_of(8)));
    let (source, entry, (rows, columns, threads), defines) = if dtype == DType::F32 {
        let block = (POOL_F32, POOL_F32, POOL_F32_THREADS);
        ("mask/pool_grad_f32.cu", "mask_pool_grad_f32", block, Vec::new())
    } else {
        let numbers = [storage(dtype), ("ABOVE_ZERO", i64::from(above_zero))];
        let defines = numbers.into_iter().chain([wide("MASK_WIDE", pixels), wide("X_WIDE", channels)]);
        ("mask/pool_grad.cu", "mask_pool_grad", GRAD_BLOCK, defines.collect())
    };
    Launch {
        source,
        entry,
        defines,
        grid: [pixels.div_ceil(rows) as u32, channels.div_ceil(columns) as u32, batch as u32],
        block: [threads, 1, 1],
        shared: 0,
        args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
    }
}

/// The product of turned masks and rows of objects, a map of a 16-bit precision.
pub(super) fn turned_mask_product(extents: &Extents, dtype: DType, rows_of_each: bool) -> Program {
    let launches = vec![spread(extents, dtype, false, rows_of_each)];
    Program { kernel: "mma x2".to_string(), launches, ..Program::default() }
}

impl CudaOp for MaskPoolGrad {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let dx = site.outputs[0];
        elements(dx)?;
        elements(site.inputs[0])?;
        expect_f32(site, [1])?;
        let [batch, channels] = [dx.shape[0], dx.shape[3]];
        let objects = site.inputs[0].shape[1];
        let extents = Extents { batch, objects, channels, pixels: dx.shape[1] * dx.shape[2] };
        let half = target.precision.is_half();
        let kernel = if half { "mma, bf16 x2" } else { "f32" }.to_string();
        let launches = vec![spread(&extents, dx.dtype, true, true)];
        Ok(Program { kernel, launches, packing: vec![Packing::plain(dx.dtype)], workspace: 0 })
    }
}
