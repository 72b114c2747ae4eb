use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, per_pixel, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::PixelUnshuffle;
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    vectors: u32,
    by_vectors: [u32; 2],
}

impl CudaOp for PixelUnshuffle {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (x, y) = (site.inputs[0], site.outputs[0]);
        elements(y)?;
        let vector = vector(y.dtype, y.shape[3]);
        let params = Params {
            height: x.shape[1] as u32,
            width: x.shape[2] as u32,
            channels: x.shape[3] as u32,
            out_height: y.shape[1] as u32,
            out_width: y.shape[2] as u32,
            vectors: (y.shape[3] / vector) as u32,
            by_vectors: divisor(y.shape[3] / vector),
        };
        let launch = Launch {
            source: "pixel_unshuffle.cu",
            entry: "pixel_unshuffle",
            defines: vec![
                ("UNIT", y.dtype.size() as i64),
                ("VECTOR", vector as i64),
                ("FACTOR", self.factor as i64),
            ],
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
            ..per_pixel(y, vector)
        };
        Ok(Program {
            kernel: format!("blocks x{vector}"),
            launches: vec![launch],
            packing: vec![Packing::plain(y.dtype)],
            ..Program::default()
        })
    }
}
