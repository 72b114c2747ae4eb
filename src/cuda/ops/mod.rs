//! One file an operator: what it launches on a GPU. Pure functions of shapes, types and the device's capabilities.

pub(crate) mod activation;
mod attention;
mod binary;
pub(crate) mod cast;
mod concat;
pub mod conv2d;
mod divisor;
pub mod fused_conv2d;
mod fused_linear;
mod global_avg_pool;
mod group_norm;
pub(crate) mod launches;
mod layer_norm;
mod linear;
mod mask_conv;
mod mask_pool;
mod max_pool2d;
mod norm_sum;
mod resize;
mod slice;
mod softmax;
mod sum_parts;
mod top_k;

use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::ops::{Op, Operator};
use crate::plan::Site;

/// An operator a GPU can run.
pub trait CudaOp: Operator {
    /// What runs at this site.
    ///
    /// # Errors
    /// A sentence on what the kernels cannot take.
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String>;

    /// All that could run at this site, what [`CudaOp::program`] gives first; each is called otherwise
    /// ([`Program::kernel`]).
    ///
    /// # Errors
    /// As [`CudaOp::program`].
    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        Ok(vec![self.program(site, target)?])
    }
}

/// All that could run at a site: what [`program`] gives, then the others that the device can run.
///
/// # Errors
/// As [`program`], and if the device cannot run the first.
pub fn candidates(site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
    if site.outputs.iter().all(|output| output.shape.is_empty()) {
        return Ok(vec![program(site, target)?]);
    }
    let mut all = match site.op {
        Op::Conv2d(op) => op.candidates(site, target)?,
        Op::FusedConv2d(op) => op.candidates(site, target)?,
        Op::FusedLinear(op) => op.candidates(site, target)?,
        Op::Linear(op) => op.candidates(site, target)?,
        Op::MaskConv(op) => op.candidates(site, target)?,
        Op::MaskPool(op) => op.candidates(site, target)?,
        _ => vec![program(site, target)?],
    };
    all[0].check(&target.caps)?;
    all.retain(|program| program.check(&target.caps).is_ok());
    Ok(all)
}

/// The program of any operator.
///
/// # Errors
/// As [`CudaOp::program`]; operators of training have no CUDA kernels.
pub fn program(site: &Site<'_>, target: &Target) -> Result<Program, String> {
    if site.outputs.iter().all(|output| output.shape.is_empty()) {
        return Ok(Program { kernel: "nothing".into(), ..Program::default() });
    }
    match site.op {
        Op::Activate(op) => op.program(site, target),
        Op::Attention(op) => op.program(site, target),
        Op::Binary(op) => op.program(site, target),
        Op::Concat(op) => op.program(site, target),
        Op::Conv2d(op) => op.program(site, target),
        Op::FusedConv2d(op) => op.program(site, target),
        Op::FusedLinear(op) => op.program(site, target),
        Op::GlobalAvgPool(op) => op.program(site, target),
        Op::GroupNorm(op) => op.program(site, target),
        Op::LayerNorm(op) => op.program(site, target),
        Op::Linear(op) => op.program(site, target),
        Op::MaskConv(op) => op.program(site, target),
        Op::MaskPool(op) => op.program(site, target),
        Op::MaxPool2d(op) => op.program(site, target),
        Op::NormSum(op) => op.program(site, target),
        Op::Resize(op) => op.program(site, target),
        Op::Slice(op) => op.program(site, target),
        Op::Softmax(op) => op.program(site, target),
        Op::TopK(op) => op.program(site, target),
        other => Err(format!("operator {} has no CUDA kernel", other.name())),
    }
}
