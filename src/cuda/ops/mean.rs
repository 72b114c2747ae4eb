use super::CudaOp;
use super::launches::{elements, per_element, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::Mean;
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    vectors: u32,
    operands: u32,
}

impl CudaOp for Mean {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (y, operands) = (site.outputs[0], site.inputs.len());
        let count = elements(y)? as usize;
        let packing = Packing::plain(y.dtype);
        if let Some(other) = (0..operands).find(|&i| site.dtype(i, packing) != y.dtype) {
            return Err(format!("operand {other} is stored as {}, the result as {y}", site.inputs[other]));
        }
        let vector = vector(y.dtype, count);
        let params = Params { vectors: (count / vector) as u32, operands: operands as u32 };
        let launch = Launch {
            source: "mean.cu",
            entry: "mean",
            defines: vec![storage(y.dtype), ("VECTOR", vector as i64)],
            args: vec![Arg::Table((0..operands).map(Arg::Input).collect()), Arg::Output(0), Arg::of(&params)],
            ..per_element(count / vector)
        };
        Ok(Program {
            kernel: format!("mean x{vector}"),
            launches: vec![launch],
            packing: vec![packing; operands],
            ..Program::default()
        })
    }
}
