use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, expect_f32, storage};
use super::sum_rows::sum_rows;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{CrossEntropyLoss, CrossEntropyLossGrad};
use crate::plan::Site;
use crate::tensor::DType;

/// Warps of a block: `SLICES` of `kernels/cross_entropy_loss.cu`.
const SLICES: u32 = 8;

/// Positions of a block: `WARP` of `kernels/common/reduce.cuh`.
const POSITIONS: usize = 32;

/// Most blocks of the loss: enough for any device, so that none has a say in the order of the sum.
const BLOCKS: usize = 2048;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    positions: u32,
    inner: u32,
    classes: u32,
    by_inner: [u32; 2],
}

/// A launch of so many blocks over the logits and labels of a site, and `rest`; how the logits lie if they
/// are constants.
fn launch(
    site: &Site<'_>,
    entry: &'static str,
    blocks: usize,
    rest: Vec<Arg>,
) -> Result<(Launch, Vec<Packing>), String> {
    let x = site.inputs[0];
    elements(x)?;
    let [objects, classes, inner] = [0, 1, 2].map(|axis| x.shape[axis]);
    let params = Params {
        positions: (objects * inner) as u32,
        inner: inner as u32,
        classes: classes as u32,
        by_inner: divisor(inner.max(1)),
    };
    let packing = Packing::plain(DType::F32);
    let operands = [Arg::Input(0), Arg::Input(1)];
    let launch = Launch {
        source: "cross_entropy_loss.cu",
        entry,
        defines: vec![storage(site.dtype(0, packing))],
        grid: [blocks as u32, 1, 1],
        block: [POSITIONS as u32, SLICES, 1],
        shared: 0,
        args: operands.into_iter().chain(rest).chain([Arg::of(&params)]).collect(),
    };
    Ok((launch, vec![packing]))
}

impl CudaOp for CrossEntropyLoss {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let blocks = site.inputs[1].shape.len().div_ceil(POSITIONS).clamp(1, BLOCKS);
        let to = if blocks > 1 { Arg::Workspace(0) } else { Arg::Output(0) };
        let (loss, packing) = launch(site, "cross_entropy_loss", blocks, vec![to])?;
        let mut launches = vec![loss];
        if blocks > 1 {
            launches.push(sum_rows(1, blocks, Arg::Workspace(0), Arg::Output(0)));
        }
        Ok(Program { kernel: format!("{blocks} parts"), launches, workspace: 4 * blocks, packing })
    }
}

impl CudaOp for CrossEntropyLossGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, [2])?;
        let blocks = site.inputs[1].shape.len().div_ceil(POSITIONS);
        let rest = vec![Arg::Input(2), Arg::Output(0)];
        let (grad, packing) = launch(site, "cross_entropy_loss_grad", blocks, rest)?;
        Ok(Program { kernel: "columns".into(), launches: vec![grad], packing, ..Program::default() })
    }
}
