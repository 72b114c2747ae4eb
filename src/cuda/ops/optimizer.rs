//! What follows the gradients: updates, sums over runs and moving averages, of many parameters in a launch.

use super::CudaOp;
use super::items::Items;
use super::launches::{elements, expect_f32};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::{Accumulate, AdamW, MovingAverage, Pairs};
use crate::plan::Site;

/// Threads of a block: `THREADS` of `kernels/optimizer.cu`.
const THREADS: usize = 256;

/// Elements of a block: `SHARE` of `kernels/optimizer.cu`.
const SHARE: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AdamWParams {
    items: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct FaultParams {
    items: u32,
    blocks: u32,
}

/// A launch of `kernels/optimizer.cu`, whose blocks take SHARE elements of an item each.
fn launch(entry: &'static str, blocks: u32, args: Vec<Arg>) -> Launch {
    let (grid, block) = ([blocks, 1, 1], [THREADS as u32, 1, 1]);
    Launch { source: "optimizer.cu", entry, defines: Vec::new(), grid, block, shared: 0, args }
}

/// Items of the kernels of `kernels/optimizer.cu`.
///
/// # Errors
/// As [`Items::new`].
fn items(each: impl IntoIterator<Item = (Vec<Arg>, u32)>) -> Result<Items, String> {
    Items::new(SHARE as u32, each)
}

impl CudaOp for AdamW {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 0..site.inputs.len())?;
        let parameters = AdamW::parameters(site.inputs.len());
        let item = |i: usize| {
            let operands = (0..4).map(|index| Arg::Input(AdamW::operand(i, index)));
            let results = (0..3).map(|index| Arg::Output(3 * i + index));
            Ok((operands.chain(results).collect(), elements(site.outputs[3 * i])?))
        };
        let items = items((0..parameters).map(item).collect::<Result<Vec<_>, String>>()?)?;
        let (count, blocks, table) = (items.count, items.blocks, items.table());
        let &AdamW { beta1, beta2, eps } = self;
        let (params, faults) = (AdamWParams { items: count, beta1, beta2, eps }, Arg::Workspace(0));
        let update = vec![table.clone(), Arg::Input(0), Arg::Input(1), faults.clone(), Arg::of(&params)];
        let params = FaultParams { items: count, blocks };
        let joined = vec![table, faults, Arg::Output(3 * parameters), Arg::of(&params)];
        Ok(Program {
            kernel: format!("{count} parameters"),
            launches: vec![launch("adamw", blocks, update), launch("adamw_faults", count, joined)],
            workspace: 4 * blocks as usize,
            ..Program::default()
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SumParams {
    items: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AverageParams {
    items: u32,
    factor: f32,
}

/// One launch of `kernels/optimizer.cu`; `params` are its numbers, given the number of pairs.
fn program(site: &Site<'_>, entry: &'static str, params: impl Fn(u32) -> Arg) -> Result<Program, String> {
    expect_f32(site, 0..site.inputs.len())?;
    let item = |pair: usize| {
        let old = Pairs::operand(pair);
        Ok((vec![Arg::Input(old), Arg::Input(old + 1), Arg::Output(pair)], elements(site.outputs[pair])?))
    };
    let pairs = (0..site.outputs.len()).map(item).collect::<Result<Vec<_>, String>>()?;
    let items = items(pairs)?;
    let (count, blocks) = (items.count, items.blocks);
    let args = vec![items.table(), Arg::Input(0), Arg::Input(1), params(count)];
    let launches = vec![launch(entry, blocks, args)];
    Ok(Program { kernel: format!("{count} pairs"), launches, ..Program::default() })
}

impl CudaOp for Accumulate {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        program(site, "accumulate", |items| Arg::of(&SumParams { items }))
    }
}

impl CudaOp for MovingAverage {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let &MovingAverage { factor } = self;
        program(site, "moving_average", |items| Arg::of(&AverageParams { items, factor }))
    }
}
