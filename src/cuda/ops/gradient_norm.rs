use super::CudaOp;
use super::items::Items;
use super::launches::{elements, expect_f32, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{ClipScale, SumSquares};
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/gradient_norm.cu`.
const THREADS: u32 = 256;

/// Elements of a block: `SHARE` of `kernels/gradient_norm.cu`.
const SHARE: usize = 16_384;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SquareParams {
    items: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct JoinParams {
    parts: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ClipParams {
    clip_norm: f64,
}

fn launch(entry: &'static str, dtype: DType, grid: [u32; 3], threads: u32, args: Vec<Arg>) -> Launch {
    let block = [threads, 1, 1];
    Launch { source: "gradient_norm.cu", entry, defines: vec![storage(dtype)], grid, block, shared: 0, args }
}

impl CudaOp for SumSquares {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, [0])?;
        let operands = site.inputs.len() - 1;
        let stored: Vec<DType> =
            (1..=operands).filter(|&i| !site.constant[i]).map(|i| site.inputs[i].dtype).collect();
        let dtype = stored.first().copied().unwrap_or(DType::F32);
        if stored.iter().any(|&other| other != dtype) {
            return Err("operands of several element types; the kernel takes one".into());
        }
        let item = |i: usize| Ok((vec![Arg::Input(i)], elements(site.inputs[i])?));
        let each = (1..=operands).map(item).collect::<Result<Vec<_>, String>>()?;
        let items = Items::new(SHARE as u32, each)?;
        let (count, blocks) = (items.count, items.blocks);
        let squares = vec![items.table(), Arg::Workspace(0), Arg::of(&SquareParams { items: count })];
        let joined =
            vec![Arg::Input(0), Arg::Workspace(0), Arg::Output(0), Arg::of(&JoinParams { parts: blocks })];
        let mut packing = vec![Packing::plain(dtype); operands + 1];
        packing[0] = Packing::plain(DType::F32);
        Ok(Program {
            kernel: format!("f64 in {blocks} parts"),
            launches: vec![
                launch("sum_squares", dtype, [blocks, 1, 1], THREADS, squares),
                launch("join_squares", dtype, [1; 3], THREADS, joined),
            ],
            workspace: 8 * blocks as usize,
            packing,
        })
    }
}

impl CudaOp for ClipScale {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 0..3)?;
        let params = ClipParams { clip_norm: self.clip_norm };
        let args = vec![Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::of(&params)];
        let launches = vec![launch("clip_scale", DType::F32, [1; 3], 1, args)];
        Ok(Program { kernel: "one thread".into(), launches, ..Program::default() })
    }
}
