use super::CudaOp;
use super::launches::{dtype_number, storage};
use super::sum_parts::sum_parts;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::{Extents, POOL_F32, POOL_F32_THREADS, pool_f32_candidates};
use crate::ops::SoftMaskPool;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;

/// Pixels of a block that makes norms: `WARP` of `kernels/common/reduce.cuh`.
const NORM_PIXELS: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    classes: u32,
    channels: u32,
    pixels: u32,
    split: u32,
    class_tiles: u32,
}

impl CudaOp for SoftMaskPool {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        Ok(self.candidates(site, target)?.remove(0))
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let [masks, x] = [site.inputs[0].shape, site.inputs[1].shape];
        let extents = Extents { batch: x[0], objects: masks[1], channels: x[3], pixels: x[1] * x[2] };
        let packing = vec![Packing::plain(target.precision.storage()); 2];
        let [masks, x] = [0, 1].map(|input| site.dtype(input, packing[input]));
        let defines = vec![storage(x), ("MASK_STORAGE", dtype_number(masks))];
        let shares = pool_f32_candidates(&extents, &target.caps).into_iter();
        Ok(shares.map(|share| program(&extents, share, &defines, &packing)).collect())
    }
}

/// Norms of the pixels, the product, `splits` blocks to an image's pixels with `split` each, and the sum of
/// their results.
fn program(
    extents: &Extents,
    (split, splits): (usize, usize),
    defines: &[(&'static str, i64)],
    packing: &[Packing],
) -> Program {
    let &Extents { batch, objects, channels, pixels } = extents;
    let [class_tiles, channel_tiles] = [objects, channels].map(|count| count.div_ceil(POOL_F32) as u32);
    let params = Arg::of(&Params {
        classes: objects as u32,
        channels: channels as u32,
        pixels: pixels as u32,
        split: split as u32,
        class_tiles,
    });
    // Partial sums, then the norms.
    let count = batch * objects * channels;
    let parts = if splits > 1 { (splits * count * 4).next_multiple_of(256) } else { 0 };
    let to = if splits > 1 { Arg::Workspace(0) } else { Arg::Output(0) };
    let norms = if pixels > 0 { Arg::Workspace(parts) } else { Arg::Null };
    let launch = |entry, grid, args| Launch {
        source: "mask/soft_pool.cu",
        entry,
        defines: defines.to_vec(),
        grid,
        block: [POOL_F32_THREADS, 1, 1],
        shared: 0,
        args,
    };
    let mut launches = Vec::new();
    if pixels > 0 {
        let grid = [pixels.div_ceil(NORM_PIXELS) as u32, batch as u32, 1];
        launches.push(launch("soft_mask_norms", grid, vec![Arg::Input(0), norms.clone(), params.clone()]));
    }
    let grid = [splits as u32, class_tiles * channel_tiles, batch as u32];
    launches.push(launch("soft_mask_pool", grid, vec![Arg::Input(0), Arg::Input(1), norms, to, params]));
    if splits > 1 {
        launches.push(sum_parts(splits, count, channels, Epilogue::default()));
    }
    Program {
        kernel: format!("f32 split {splits}"),
        launches,
        workspace: parts + batch * pixels * 8,
        packing: packing.to_vec(),
    }
}
