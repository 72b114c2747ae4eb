use super::CudaOp;
use super::launches::{dtype_number, elements, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{Softmax, SoftmaxGrad};
use crate::plan::Site;

/// Elements of a row a thread takes before a row gets more warps.
const ROW_ELEMENTS: usize = 8;

/// Warps of a block that takes a column a thread.
const COLUMN_WARPS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    lines: u32,
    length: u32,
    inner: u32,
}

/// Warps of a block of gradients: `SLICES` of `kernels/softmax_grad.cu`.
const SLICES: usize = 8;

impl CudaOp for Softmax {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        let length = y.shape[self.axis];
        let inner: usize = y.shape.dims()[self.axis + 1..].iter().product();
        let lines = y.shape.len() / length;
        let (entry, warps, blocks) = if inner == 1 {
            let warps = length.div_ceil(32 * ROW_ELEMENTS).next_power_of_two().min(8);
            ("softmax_rows", warps, lines)
        } else {
            ("softmax_columns", COLUMN_WARPS, lines.div_ceil(32 * COLUMN_WARPS))
        };
        let launch = Launch {
            source: "softmax.cu",
            entry,
            defines: vec![storage(y.dtype), ("WARPS", warps as i64)],
            grid: [blocks as u32, 1, 1],
            block: [warps as u32 * 32, 1, 1],
            shared: 0,
            args: vec![
                Arg::Input(0),
                Arg::Output(0),
                Arg::of(&Params { lines: lines as u32, length: length as u32, inner: inner as u32 }),
            ],
        };
        Ok(Program {
            kernel: if inner == 1 { "rows" } else { "columns" }.into(),
            launches: vec![launch],
            packing: vec![Packing::plain(y.dtype)],
            ..Program::default()
        })
    }
}

impl CudaOp for SoftmaxGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let dx = site.outputs[0];
        elements(dx)?;
        let packing = Packing::plain(dx.dtype);
        let length = dx.shape[self.axis];
        let inner: usize = dx.shape.dims()[self.axis + 1..].iter().product();
        let lines = dx.shape.len() / length;
        let (entry, kernel, blocks) = match inner {
            1 => ("softmax_grad_rows", "rows", lines.div_ceil(SLICES)),
            _ => ("softmax_grad_columns", "columns", lines.div_ceil(32)),
        };
        let params = Params { lines: lines as u32, length: length as u32, inner: inner as u32 };
        let launch = Launch {
            source: "softmax_grad.cu",
            entry,
            defines: vec![storage(site.dtype(0, packing)), ("DY_TYPE", dtype_number(site.dtype(1, packing)))],
            grid: [blocks as u32, 1, 1],
            block: [32, SLICES as u32, 1],
            shared: 0,
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
        };
        Ok(Program {
            kernel: kernel.into(),
            launches: vec![launch],
            packing: vec![packing; 2],
            ..Program::default()
        })
    }
}
