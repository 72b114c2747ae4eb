use super::CudaOp;
use super::launches::{common_vector, dtype_number, elements, per_element, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::activation::Activation;
use crate::ops::{Activate, ActivateGrad};
use crate::plan::Site;

/// Number of an activation in `kernels/common/activation.cuh`.
pub(crate) fn number(activation: Option<Activation>) -> i64 {
    match activation {
        None => 0,
        Some(Activation::Relu) => 1,
        Some(Activation::Relu6) => 2,
        Some(Activation::Sigmoid) => 3,
        Some(Activation::Gelu) => 4,
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
}

impl CudaOp for Activate {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let count = site.outputs[0].shape.len() as u32;
        let launch = Launch {
            source: "activation.cu",
            entry: "activation",
            defines: vec![storage(site.outputs[0].dtype), ("ACTIVATION", number(Some(self.activation)))],
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&Params { count })],
            ..per_element(count as usize)
        };
        Ok(Program { kernel: "elements".into(), launches: vec![launch], ..Program::default() })
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradParams {
    vectors: u32,
}

impl CudaOp for ActivateGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let dx = site.outputs[0];
        let count = elements(dx)? as usize;
        let packing = Packing::plain(dx.dtype);
        let [read, dy] = [0, 1].map(|input| site.dtype(input, packing));
        let vector = common_vector(&[read, dy, dx.dtype], count);
        let vectors = count / vector;
        let launch = Launch {
            source: "activation_grad.cu",
            entry: "activation_grad",
            defines: vec![
                storage(dx.dtype),
                ("READ_TYPE", dtype_number(read)),
                ("DY_TYPE", dtype_number(dy)),
                ("ACTIVATION", number(Some(self.activation))),
                ("VECTOR", vector as i64),
            ],
            args: vec![
                Arg::Input(0),
                Arg::Input(1),
                Arg::Output(0),
                Arg::of(&GradParams { vectors: vectors as u32 }),
            ],
            ..per_element(vectors)
        };
        Ok(Program {
            kernel: format!("elements x{vector}"),
            launches: vec![launch],
            packing: vec![packing; 2],
            ..Program::default()
        })
    }
}
