use super::CudaOp;
use super::launches::{dtype_number, elements, lanes, per_element, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::Binary;
use crate::ops::binary::BinaryKind;
use crate::plan::Site;
use crate::tensor::DType;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    vectors: u32,
    period: u32,
}

impl CudaOp for Binary {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        let count = elements(y)?;
        let period = site.inputs[1].shape.len() as u32;
        let whole = |n: u32| (n as usize).is_multiple_of(lanes(y.dtype));
        let vector = if whole(count) && whole(period) { lanes(y.dtype) as u32 } else { 1 };
        let (name, kind) = match self.kind {
            BinaryKind::Add => ("add", 0),
            BinaryKind::Mul => ("mul", 1),
        };
        let dtype = |input: usize| dtype_number(site.dtype(input, Packing::plain(DType::F32)));
        let params = Params { vectors: count / vector, period: period / vector };
        let launch = Launch {
            source: "binary.cu",
            entry: "binary",
            defines: vec![
                storage(y.dtype),
                ("A_TYPE", dtype(0)),
                ("B_TYPE", dtype(1)),
                ("KIND", kind),
                ("VECTOR", vector.into()),
            ],
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
            ..per_element(params.vectors as usize)
        };
        Ok(Program { kernel: format!("{name} x{vector}"), launches: vec![launch], ..Program::default() })
    }
}
