use super::CudaOp;
use super::global_avg_pool::BLOCK;
use super::launches::{elements, storage};
use super::sum_parts::add_parts;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::ReduceSum;
use crate::plan::Site;
use crate::tensor::DType;

/// Elements of a row that lets a warp load whole lines.
const WIDTH: usize = 64;

/// Rows that a thread adds at least before rows are shared among blocks.
const OWN_ROWS: usize = 4;

/// Blocks that sums are shared among: enough for any device, so that none has a say in their order.
const BLOCKS: usize = 512;

/// Elements of 16 bytes of every type, so that the choice is one for all.
const CHUNK: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    vectors: u32,
    share: u32,
}

/// How many rows of `columns` elements are taken as one: enough for whole chunks and lines, if there are so
/// many.
fn folded(rows: usize, columns: usize) -> usize {
    let whole = |fold: &usize| (fold * columns).is_multiple_of(CHUNK) && fold * columns >= WIDTH;
    let fold = (0..7).map(|log| 1 << log).find(whole).unwrap_or(1);
    if fold <= rows { fold } else { 1 }
}

/// How many rows a block takes, and how many blocks share a column's: one of each at least.
pub(super) fn shares(rows: usize, column_blocks: usize) -> (usize, usize) {
    let most = (BLOCKS / column_blocks).max(1);
    let parts = rows.div_ceil(OWN_ROWS * BLOCK[1] as usize).clamp(1, most);
    let share = rows.div_ceil(parts).max(1);
    (share, rows.div_ceil(share).max(1))
}

impl CudaOp for ReduceSum {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let packing = Packing::plain(DType::F32);
        let dtype = site.dtype(0, packing);
        let (count, columns) = (elements(site.inputs[0])? as usize, self.shape.len());
        let fold = folded(count / columns, columns);
        let width = fold * columns;
        let vector = if width.is_multiple_of(CHUNK) && count.is_multiple_of(CHUNK) { CHUNK } else { 1 };
        let vectors = width / vector;
        let column_blocks = vectors.div_ceil(BLOCK[0] as usize);
        let (share, parts) = shares(count / width, column_blocks);
        let params = Params { count: count as u32, vectors: vectors as u32, share: share as u32 };

        // Parts of all blocks, then the sums of the columns of rows that were taken as one.
        let sums = (parts * width * 4).next_multiple_of(256);
        let (all, folds, result) = (Arg::Workspace(0), Arg::Workspace(sums), Arg::Output(0));
        let summed = if fold > 1 { folds.clone() } else { result.clone() };
        let mut launches = vec![Launch {
            source: "reduce_sum.cu",
            entry: "reduce_sum",
            defines: vec![storage(dtype), ("VECTOR", vector as i64)],
            grid: [column_blocks as u32, parts as u32, 1],
            block: BLOCK,
            shared: 0,
            args: vec![Arg::Input(0), if parts > 1 { all.clone() } else { summed.clone() }, Arg::of(&params)],
        }];
        if parts > 1 {
            launches.push(add_parts(parts, width, all, summed));
        }
        if fold > 1 {
            launches.push(add_parts(fold, columns, folds, result));
        }
        Ok(Program {
            kernel: format!("columns x{vector}, {parts} parts of {fold}"),
            launches,
            workspace: sums + width * 4,
            packing: vec![packing],
        })
    }
}
