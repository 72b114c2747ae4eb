use super::CudaOp;
use super::launches::{per_element, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::Activate;
use crate::ops::activation::Activation;
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
