use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, per_pixel, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{PixelShuffle, PixelUnshuffle, ValueType};
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    out_channels: u32,
    vectors: u32,
    by_vectors: [u32; 2],
}

/// Moves between a map and the same in blocks of `factor` pixels a side; `to` is the one that is written.
fn program(
    entry: &'static str,
    factor: usize,
    [map, blocks]: [ValueType; 2],
    to: ValueType,
) -> Result<Program, String> {
    elements(map)?;
    elements(blocks)?;
    let vector = vector(to.dtype, to.shape[3]);
    let params = Params {
        height: map.shape[1] as u32,
        width: map.shape[2] as u32,
        channels: map.shape[3] as u32,
        out_height: blocks.shape[1] as u32,
        out_width: blocks.shape[2] as u32,
        out_channels: blocks.shape[3] as u32,
        vectors: (to.shape[3] / vector) as u32,
        by_vectors: divisor(to.shape[3] / vector),
    };
    let launch = Launch {
        source: "pixel_unshuffle.cu",
        entry,
        defines: vec![("UNIT", to.dtype.size() as i64), ("VECTOR", vector as i64), ("FACTOR", factor as i64)],
        args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
        ..per_pixel(to, vector)
    };
    Ok(Program {
        kernel: format!("blocks x{vector}"),
        launches: vec![launch],
        packing: vec![Packing::plain(to.dtype)],
        ..Program::default()
    })
}

impl CudaOp for PixelUnshuffle {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (x, y) = (site.inputs[0], site.outputs[0]);
        program("pixel_unshuffle", self.factor, [x, y], y)
    }
}

impl CudaOp for PixelShuffle {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (blocks, map) = (site.inputs[0], site.outputs[0]);
        program("pixel_shuffle", self.factor, [map, blocks], map)
    }
}
