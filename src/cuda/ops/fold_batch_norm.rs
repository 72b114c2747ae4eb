use super::CudaOp;
use super::launches::{elements, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{FoldBatchNorm, FoldBatchNormGrad};
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/batch_norm/fold.cu`.
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    terms: u32,
    eps: f32,
}

/// One block a filter: operands, then results. The filter and those of its size, `like_it`, have one type.
fn program(site: &Site<'_>, entry: &'static str, eps: f32, like_it: &[usize]) -> Result<Program, String> {
    let (filter, filters) = (site.outputs[0], site.outputs[1].shape.len());
    elements(filter)?;
    let mut packing = vec![Packing::plain(DType::F32); site.inputs.len()];
    for &input in like_it {
        packing[input] = Packing::plain(filter.dtype);
        if site.dtype(input, packing[input]) != filter.dtype {
            return Err(format!("operand {input} is {}, its result {filter}", site.inputs[input]));
        }
    }
    let params = Params { terms: (filter.shape.len() / filters) as u32, eps };
    let operands = (0..site.inputs.len()).map(Arg::Input).chain((0..site.outputs.len()).map(Arg::Output));
    let launch = Launch {
        source: "batch_norm/fold.cu",
        entry,
        defines: vec![storage(filter.dtype)],
        grid: [filters as u32, 1, 1],
        block: [THREADS, 1, 1],
        shared: 0,
        args: operands.chain([Arg::of(&params)]).collect(),
    };
    Ok(Program { kernel: "a block a filter".into(), launches: vec![launch], packing, ..Program::default() })
}

impl CudaOp for FoldBatchNorm {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        program(site, "fold", self.eps, &[0])
    }
}

impl CudaOp for FoldBatchNormGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        program(site, "fold_grad", self.eps, &[0, 4])
    }
}
