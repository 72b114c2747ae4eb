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

/// Neighbours along `I` that a thread takes of a class where rows are made of so many: 16 bytes of labels.
const VECTOR: usize = 4;
/// Most classes of a strip: they share a load of labels.
const CLASSES: usize = 8;
/// Most blocks, of which each gives a part of the sum: enough for any device, so that none has a say in the
/// order of the sum.
const BLOCKS: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    strips: u32,
    inner: u32,
    classes: u32,
    groups: u32,
    each: u32,
    weight_rows: u32,
    by_inner: [u32; 2],
    by_groups: [u32; 2],
    alpha: f32,
}

/// What loss and gradient have in common.
struct Logits {
    params: Params,
    defines: Vec<(&'static str, i64)>,
    weights: Arg,
    packing: Vec<Packing>,
}

impl Logits {
    /// Of the operands of either; of weights if `weighted`.
    fn new(site: &Site<'_>, alpha: f32, weighted: bool) -> Result<Self, String> {
        let x = site.inputs[0];
        let packing = vec![Packing::plain(DType::F32)];
        expect_f32(site, 2..site.inputs.len())?;
        elements(x)?;
        let [objects, classes, positions] = [x.shape[0], x.shape[1], x.shape[2]];
        let vector = if positions.is_multiple_of(VECTOR) { VECTOR } else { 1 };
        let inner = positions / vector;
        // Threads of a warp lie along the classes where rows are shorter than it.
        let most = if inner < 32 { 1 } else { CLASSES };
        let groups = classes.div_ceil(most);
        let each = classes.div_ceil(groups.max(1));
        let params = Params {
            strips: (objects * groups * inner) as u32,
            inner: inner as u32,
            classes: classes as u32,
            groups: groups as u32,
            each: each as u32,
            weight_rows: if weighted { site.inputs[2].shape[0] as u32 } else { 1 },
            by_inner: divisor(inner.max(1)),
            by_groups: divisor(groups.max(1)),
            alpha,
        };
        let weights = if weighted { Arg::Input(2) } else { Arg::Null };
        let defines = vec![storage(site.dtype(0, packing[0])), ("VECTOR", vector as i64)];
        Ok(Logits { params, defines, weights, packing })
    }

    fn launch(&self, entry: &'static str, blocks: usize, rest: Vec<Arg>) -> Launch {
        let operands = [Arg::Input(0), Arg::Input(1), self.weights.clone()];
        Launch {
            source: "focal_loss.cu",
            entry,
            defines: self.defines.clone(),
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
        let blocks = (logits.params.strips as usize).div_ceil(THREADS).clamp(1, BLOCKS);
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
        let blocks = (logits.params.strips as usize).div_ceil(THREADS);
        let rest = vec![Arg::Input(2 + usize::from(self.weighted)), Arg::Output(0)];
        let launches = vec![logits.launch("focal_loss_grad", blocks, rest)];
        Ok(Program { kernel: "strips".into(), launches, packing: logits.packing, ..Program::default() })
    }
}
