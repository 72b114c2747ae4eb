use super::CudaOp;
use super::launches::{elements, expect_f32, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::AdamW;
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/optimizer.cu`.
const THREADS: usize = 256;

/// Vectors that a thread updates, one after the other.
const VECTORS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AdamWParams {
    vectors: u32,
    share: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct FaultParams {
    blocks: u32,
}

impl CudaOp for AdamW {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 0..6)?;
        let count = elements(site.outputs[0])? as usize;
        let vector = vector(DType::F32, count);
        let (vectors, share) = (count / vector, THREADS * VECTORS);
        // One block at least, as somebody has to say that there is no fault.
        let blocks = vectors.div_ceil(share).max(1);
        let (fault, faults) = (Arg::Output(3), Arg::Workspace(0));
        let params = AdamWParams {
            vectors: vectors as u32,
            share: share as u32,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
        };
        let launch = |entry, blocks: usize, args| Launch {
            source: "optimizer.cu",
            entry,
            defines: vec![("VECTOR", vector as i64)],
            grid: [blocks as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            args,
        };
        let inputs = (0..6).map(Arg::Input);
        let outputs = (0..3).map(Arg::Output);
        let to = if blocks > 1 { faults.clone() } else { fault.clone() };
        let args = inputs.chain(outputs).chain([to, Arg::of(&params)]).collect();
        let mut launches = vec![launch("adamw", blocks, args)];
        let mut workspace = 0;
        if blocks > 1 {
            let args = vec![faults, fault, Arg::of(&FaultParams { blocks: blocks as u32 })];
            launches.push(launch("adamw_fault", 1, args));
            workspace = 4 * blocks;
        }
        Ok(Program { kernel: format!("elements x{vector}"), launches, workspace, ..Program::default() })
    }
}
