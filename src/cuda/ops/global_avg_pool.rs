use super::CudaOp;
use super::launches::{elements, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::GlobalAvgPool;
use crate::plan::Site;

/// Channel vectors of a block, and threads that share the pixels of each: `LANES` and `ROWS` of
/// `kernels/common/column_sums.cuh`.
pub(super) const BLOCK: [u32; 3] = [8, 32, 1];

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    vectors: u32,
}

impl CudaOp for GlobalAvgPool {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let x = site.inputs[0];
        elements(x)?;
        let vector = vector(x.dtype, x.shape[3]);
        let params =
            Params { pixels: (x.shape[1] * x.shape[2]) as u32, vectors: (x.shape[3] / vector) as u32 };
        let launch = Launch {
            source: "global_avg_pool.cu",
            entry: "global_avg_pool",
            defines: vec![storage(x.dtype), ("VECTOR", vector as i64)],
            grid: [params.vectors.div_ceil(BLOCK[0]), x.shape[0] as u32, 1],
            block: BLOCK,
            shared: 0,
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
        };
        Ok(Program { kernel: format!("columns x{vector}"), launches: vec![launch], ..Program::default() })
    }
}
