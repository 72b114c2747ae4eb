use super::CudaOp;
use super::batch_norm::PART_PIXELS;
use super::divisor::divisor;
use super::global_avg_pool::BLOCK as COLUMN_SUMS;
use super::launches::{elements, per_element, storage, vector};
use super::sum_parts::add_parts;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::GroupNormGrad;
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block that takes a group: `GROUP_THREADS` of `kernels/group_norm_grad.cu`.
const GROUP_THREADS: u32 = 256;

/// Bytes of what the kernels keep of a channel in a part, and of a group.
const BYTES: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    vectors: u32,
    groups: u32,
    width: u32,
    parts: u32,
    part_pixels: u32,
    eps: f32,
    by_vectors: [u32; 2],
    by_width: [u32; 2],
}

impl CudaOp for GroupNormGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let x = site.inputs[0];
        elements(x)?;
        let map = Packing::plain(x.dtype);
        if site.dtype(2, map) != x.dtype {
            return Err(format!("gradient {} of a map {x}", site.inputs[2]));
        }
        let [images, pixels, channels] = [x.shape[0], x.shape[1] * x.shape[2], x.shape[3]];
        let (vector, width) = (vector(x.dtype, channels), channels / self.groups);
        let vectors = channels / vector;
        let parts = pixels.div_ceil(PART_PIXELS);
        let params = Params {
            pixels: pixels as u32,
            vectors: vectors as u32,
            groups: self.groups as u32,
            width: width as u32,
            parts: parts as u32,
            part_pixels: PART_PIXELS as u32,
            eps: self.eps,
            by_vectors: divisor(vectors),
            by_width: divisor(width),
        };
        let launch = |entry: &'static str, grid: [usize; 3], block: [u32; 3], args: Vec<Arg>| Launch {
            source: "group_norm_grad.cu",
            entry,
            defines: vec![storage(x.dtype), ("VECTOR", vector as i64)],
            grid: grid.map(|blocks| blocks as u32),
            block,
            shared: 0,
            args: args.into_iter().chain([Arg::of(&params)]).collect(),
        };
        let [map_x, gamma, dy] = [0, 1, 2].map(Arg::Input);
        let at_groups = (images * parts * channels * BYTES).next_multiple_of(256);
        let at_grads = (at_groups + images * self.groups * BYTES).next_multiple_of(256);
        let (own, groups) = (Arg::Workspace(0), Arg::Workspace(at_groups));
        // An empty map has no parts: its sums are zero.
        let images = if pixels > 0 { images } else { 0 };
        let bytes = (images * channels * 4).next_multiple_of(256);
        let mut launches = Vec::new();
        if images > 0 {
            let tiles = vectors.div_ceil(COLUMN_SUMS[0] as usize);
            let [dgamma, dbeta] = [at_grads, at_grads + bytes].map(Arg::Workspace);
            let first = vec![map_x.clone(), dy.clone(), own.clone()];
            let second = vec![own, gamma.clone(), groups.clone(), dgamma, dbeta];
            let third = vec![map_x, gamma, dy, groups, Arg::Output(0)];
            let blocks = per_element(pixels * vectors).grid[0] as usize;
            launches.push(launch("parts", [tiles, parts, images], COLUMN_SUMS, first));
            launches.push(launch("groups", [self.groups, images, 1], [GROUP_THREADS, 1, 1], second));
            launches.push(launch("dx", [blocks, images, 1], [256, 1, 1], third));
        }
        for (output, at) in [(1, at_grads), (2, at_grads + bytes)] {
            launches.push(add_parts(images, channels, Arg::Workspace(at), Arg::Output(output)));
        }
        Ok(Program {
            kernel: format!("{parts} parts x{vector}"),
            launches,
            workspace: at_grads + 2 * bytes.max(256),
            packing: vec![map, Packing::plain(DType::F32), map],
        })
    }
}
