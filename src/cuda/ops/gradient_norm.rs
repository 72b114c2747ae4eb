use super::CudaOp;
use super::launches::{elements, expect_f32, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{ClipScale, SumSquares};
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/gradient_norm.cu`.
const THREADS: u32 = 256;

/// Most operands: `MOST` of `kernels/gradient_norm.cu`.
const MOST: usize = 16;

/// Elements of a block.
const SHARE: usize = 16_384;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SquareParams {
    count: [u32; MOST],
    share: u32,
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
        const { assert!(MOST == SumSquares::MOST) };
        expect_f32(site, [0])?;
        let operands = site.inputs.len() - 1;
        let stored: Vec<DType> =
            (1..=operands).filter(|&i| !site.constant[i]).map(|i| site.inputs[i].dtype).collect();
        let dtype = stored.first().copied().unwrap_or(DType::F32);
        if stored.iter().any(|&other| other != dtype) {
            return Err("operands of several element types; the kernel takes one".into());
        }
        let mut count = [0; MOST];
        for (count, &ty) in count.iter_mut().zip(&site.inputs[1..]) {
            *count = elements(ty)?;
        }
        let blocks = (count.iter().max().map_or(0, |&most| most as usize).div_ceil(SHARE)).max(1);
        let parts = blocks * operands;
        let operand = |i: usize| if i <= operands { Arg::Input(i) } else { Arg::Null };
        let params = SquareParams { count, share: SHARE as u32 };
        let squares = (1..=MOST).map(operand).chain([Arg::Workspace(0), Arg::of(&params)]).collect();
        let joined = vec![
            Arg::Input(0),
            Arg::Workspace(0),
            Arg::Output(0),
            Arg::of(&JoinParams { parts: parts as u32 }),
        ];
        let mut packing = vec![Packing::plain(dtype); operands + 1];
        packing[0] = Packing::plain(DType::F32);
        Ok(Program {
            kernel: format!("f64 in {parts} parts"),
            launches: vec![
                launch("sum_squares", dtype, [blocks as u32, operands as u32, 1], THREADS, squares),
                launch("join_squares", dtype, [1; 3], THREADS, joined),
            ],
            workspace: 8 * parts,
            packing,
        })
    }
}

impl CudaOp for ClipScale {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 0..2)?;
        let params = ClipParams { clip_norm: self.clip_norm };
        let args = vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)];
        let launches = vec![launch("clip_scale", DType::F32, [1; 3], 1, args)];
        Ok(Program { kernel: "one thread".into(), launches, ..Program::default() })
    }
}
