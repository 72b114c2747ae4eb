use super::CudaOp;
use super::activation::number;
use super::global_avg_pool::BLOCK;
use super::launches::{common_vector, dtype_number, elements, expect_f32, storage};
use super::reduce_sum::shares;
use super::sum_parts::add_parts;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{LayerNorm, LayerNormGrad};
use crate::plan::Site;
use crate::tensor::DType;

/// Rows of a block, one warp each.
const WARPS: usize = 4;

/// Elements a lane keeps at most.
const MAX_HELD: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    channels: u32,
    eps: f32,
}

impl CudaOp for LayerNorm {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        let channels = y.shape.last();
        let rows = y.shape.len() / channels;
        let chunk = 16 / y.dtype.size();
        let piece = if channels.is_multiple_of(chunk) { chunk } else { 1 };
        let held = channels.div_ceil(32 * piece);
        let held = if held * piece <= MAX_HELD { held } else { 0 };
        let launch = Launch {
            source: "layer_norm.cu",
            entry: "layer_norm",
            defines: vec![
                storage(y.dtype),
                ("ACTIVATION", number(self.activation)),
                ("PIECE", piece as i64),
                ("HELD", held as i64),
                ("WARPS", WARPS as i64),
            ],
            grid: [rows.div_ceil(WARPS) as u32, 1, 1],
            block: [WARPS as u32 * 32, 1, 1],
            shared: 0,
            args: vec![
                Arg::Input(0),
                Arg::Input(1),
                Arg::Input(2),
                Arg::Output(0),
                Arg::of(&Params { rows: rows as u32, channels: channels as u32, eps: self.eps }),
            ],
        };
        Ok(Program {
            kernel: format!("warp a row, {}", if held > 0 { "held" } else { "read again" }),
            launches: vec![launch],
            packing: vec![Packing::plain(y.dtype)],
            ..Program::default()
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PartParams {
    rows: u32,
    vectors: u32,
    share: u32,
}

/// Bytes of a row's statistics, a `Standard` as `kernels/rows/standardise.cuh` has it.
const STANDARD: usize = 12;

impl CudaOp for LayerNormGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let dx = site.outputs[0];
        elements(dx)?;
        expect_f32(site, [1])?;
        let map = Packing::plain(dx.dtype);
        let [x, dy] = [0, 2].map(|input| site.dtype(input, map));
        let channels = dx.shape.last();
        let rows = dx.shape.len() / channels;
        let vector = common_vector(&[x, dy], channels);
        let vectors = channels / vector;
        let column_blocks = vectors.div_ceil(BLOCK[0] as usize);
        let (share, parts) = shares(rows, column_blocks);
        let launch = |entry, grid, block, args| Launch {
            source: "layer_norm_grad.cu",
            entry,
            defines: vec![
                storage(x),
                ("DY_TYPE", dtype_number(dy)),
                ("VECTOR", vector as i64),
                ("WARPS", WARPS as i64),
            ],
            grid,
            block,
            shared: 0,
            args,
        };

        // Statistics of the rows, then parts of both sums.
        let at = |bytes: usize| bytes.next_multiple_of(256);
        let (standards, dgamma) = (Arg::Workspace(0), at(STANDARD * rows));
        // Those of the second sum follow on those of the first.
        let dbeta = dgamma + parts * channels * 4;
        let mut launches = Vec::new();
        if rows > 0 {
            let params = Params { rows: rows as u32, channels: channels as u32, eps: self.eps };
            let args = vec![
                Arg::Input(0),
                Arg::Input(1),
                Arg::Input(2),
                Arg::Output(0),
                standards.clone(),
                Arg::of(&params),
            ];
            let grid = [rows.div_ceil(WARPS) as u32, 1, 1];
            launches.push(launch("layer_norm_dx", grid, [WARPS as u32 * 32, 1, 1], args));
        }
        let params = PartParams { rows: rows as u32, vectors: vectors as u32, share: share as u32 };
        let args = vec![Arg::Input(0), Arg::Input(2), standards, Arg::Workspace(dgamma), Arg::of(&params)];
        launches.push(launch("layer_norm_parts", [column_blocks as u32, parts as u32, 1], BLOCK, args));
        for (output, from) in [(1, dgamma), (2, dbeta)] {
            launches.push(add_parts(parts, channels, Arg::Workspace(from), Arg::Output(output)));
        }
        Ok(Program {
            kernel: format!("warp a row, {parts} parts"),
            launches,
            workspace: dbeta + parts * channels * 4,
            packing: vec![map, Packing::plain(DType::F32), map],
        })
    }
}
