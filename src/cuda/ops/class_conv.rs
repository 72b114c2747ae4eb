use super::CudaOp;
use super::launches::{elements, expect_f32, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::ClassConv;
use crate::plan::Site;

/// Warps of a block, each of 32 pixels: `WARPS` of `kernels/class_conv.cu`.
const WARPS: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    vectors: u32,
    classes: u32,
}

impl CudaOp for ClassConv {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let x = site.inputs[0];
        elements(x)?;
        expect_f32(site, [1, 2])?;
        let vector = vector(x.dtype, x.shape[3]);
        let params = Params {
            pixels: (x.shape[1] * x.shape[2]) as u32,
            vectors: (x.shape[3] / vector) as u32,
            classes: site.inputs[2].shape.len() as u32,
        };
        let launch = Launch {
            source: "class_conv.cu",
            entry: "class_conv",
            defines: vec![storage(x.dtype), ("VECTOR", vector as i64)],
            grid: [x.shape[0] as u32, params.pixels.div_ceil(32 * WARPS), 1],
            block: [32, WARPS, 1],
            shared: 0,
            args: vec![
                Arg::Input(0),
                Arg::Input(1),
                Arg::Input(2),
                Arg::Input(3),
                Arg::Output(0),
                Arg::of(&params),
            ],
        };
        Ok(Program { kernel: format!("dots x{vector}"), launches: vec![launch], ..Program::default() })
    }
}
