use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, expect_f32, storage};
use super::sum_rows::sum_rows;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{FocalLoss, FocalLossGrad};
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/focal_loss.cu`.
const THREADS: usize = 256;

/// Logits that a thread adds up before there are more blocks, and the most blocks: enough for any device, so
/// that none has a say in the order of the sum.
const OWN: usize = 4;
const BLOCKS: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    inner: u32,
    classes: u32,
    by_inner: [u32; 2],
    by_classes: [u32; 2],
    weight_rows: u32,
    alpha: f32,
}

/// What loss and gradient have in common.
struct Logits {
    params: Params,
    dtype: DType,
    weights: Arg,
    packing: Vec<Packing>,
}

impl Logits {
    /// Of the operands of either; of weights if `weighted`.
    fn new(site: &Site<'_>, alpha: f32, weighted: bool) -> Result<Self, String> {
        let x = site.inputs[0];
        let packing = vec![Packing::plain(DType::F32)];
        expect_f32(site, 2..site.inputs.len())?;
        let [classes, inner] = [x.shape[1], x.shape[2]];
        let params = Params {
            count: elements(x)?,
            inner: inner as u32,
            classes: classes as u32,
            by_inner: divisor(inner.max(1)),
            by_classes: divisor(classes.max(1)),
            weight_rows: if weighted { site.inputs[2].shape[0] as u32 } else { 1 },
            alpha,
        };
        let weights = if weighted { Arg::Input(2) } else { Arg::Null };
        Ok(Logits { params, dtype: site.dtype(0, packing[0]), weights, packing })
    }

    fn launch(&self, entry: &'static str, blocks: usize, rest: Vec<Arg>) -> Launch {
        let operands = [Arg::Input(0), Arg::Input(1), self.weights.clone()];
        Launch {
            source: "focal_loss.cu",
            entry,
            defines: vec![storage(self.dtype)],
            grid: [blocks as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            args: operands.into_iter().chain(rest).chain([Arg::of(&self.params)]).collect(),
        }
    }
}

impl CudaOp for FocalLoss {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let logits = Logits::new(site, self.alpha, self.weighted)?;
        let blocks = (logits.params.count as usize).div_ceil(THREADS * OWN).clamp(1, BLOCKS);
        let to = if blocks > 1 { Arg::Workspace(0) } else { Arg::Output(0) };
        let mut launches = vec![logits.launch("focal_loss", blocks, vec![to])];
        if blocks > 1 {
            launches.push(sum_rows(1, blocks, Arg::Workspace(0), Arg::Output(0)));
        }
        let (kernel, workspace) = (format!("{blocks} parts"), 4 * blocks);
        Ok(Program { kernel, launches, workspace, packing: logits.packing })
    }
}

impl CudaOp for FocalLossGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let logits = Logits::new(site, self.alpha, self.weighted)?;
        let blocks = (logits.params.count as usize).div_ceil(THREADS);
        let rest = vec![Arg::Input(2 + usize::from(self.weighted)), Arg::Output(0)];
        let launches = vec![logits.launch("focal_loss_grad", blocks, rest)];
        Ok(Program { kernel: "elements".into(), launches, packing: logits.packing, ..Program::default() })
    }
}
