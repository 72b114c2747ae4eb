use super::launches::{dtype_number, elements};
use super::mask_pool::{mask_product, turned_mask_product};
use super::sum_parts::add_splits;
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::Extents;
use crate::ops::MatMul;
use crate::plan::Site;
use crate::tensor::DType;

/// Results of a side of a block: `TILE` of `kernels/rows/matmul.cu`.
const TILE: usize = 64;
/// Terms of a step: `STEP` of `kernels/rows/matmul.cu`.
const STEP: usize = 32;
/// Threads of a block: `THREADS` of `kernels/rows/matmul.cu`.
const THREADS: u32 = 256;
/// Blocks that a small product's terms are shared among, if there are enough.
const BLOCKS: usize = 264;
/// Fewest steps of a block.
const MIN_STEPS: usize = 4;
/// Fewest terms of a product of two maps that is mask pooling's: it shares them among the blocks of a device.
const LONG: usize = 512;
/// Most steps of a block: tensor cores cut a running sum at every step, by up to 2^-24 of it.
const MAX_STEPS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Layout {
    row_step: u32,
    term_step: u32,
    matrix_step: u32,
    wide: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    terms: u32,
    split: u32,
    splits: u32,
    left: Layout,
    right: Layout,
}

impl Layout {
    /// Of `matrices` of `rows` rows (of the left, columns of the right), stored with terms as the slow index
    /// or not.
    fn new(rows: usize, terms: usize, terms_slow: bool, matrices: usize) -> Layout {
        let (row_step, term_step, line) = if terms_slow { (1, rows, rows) } else { (terms, 1, terms) };
        Layout {
            row_step: row_step as u32,
            term_step: term_step as u32,
            matrix_step: if matrices > 1 { (rows * terms) as u32 } else { 0 },
            wide: u32::from(line.is_multiple_of(4)),
        }
    }
}

/// A product with a map as its left factor that the kernels of mask pooling make: the gradient of a mask
/// convolution's kernels, or of its features.
fn of_masks(op: &MatMul, site: &Site<'_>, target: &Target) -> Option<Program> {
    let [a, b] = [site.inputs[0].shape, site.inputs[1].shape];
    let [left, right] = [0, 1].map(|input| site.dtype(input, Packing::plain(DType::F32)));
    let [batch, m, k, n] = op.extents(a.dims(), b.dims());
    let (stored, result) = (target.precision.storage(), site.outputs[0].dtype);
    if !target.precision.is_half() || left != stored || a[0] != batch || op.transpose_b {
        return None;
    }
    let rows_of_each = b[0] == batch;
    if !op.transpose_a && right == stored && result == DType::F32 && rows_of_each && k >= LONG {
        let extents = Extents { batch, objects: m, channels: n, pixels: k };
        return Some(mask_product(&extents, target));
    }
    if op.transpose_a && right == DType::F32 && result == stored {
        let extents = Extents { batch, objects: k, channels: n, pixels: m };
        return Some(turned_mask_product(&extents, stored, rows_of_each));
    }
    None
}

impl CudaOp for MatMul {
    /// In f32, to the TF32 of 16-bit precisions; 16-bit operands are TF32 already.
    const ROUNDING: Rounding = Rounding::Factors;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let [a, b] = [site.inputs[0], site.inputs[1]];
        let y = site.outputs[0];
        for ty in [a, b, y] {
            elements(ty)?;
        }
        if let Some(program) = of_masks(self, site, target) {
            return Ok(program);
        }
        let [batch, m, k, n] = self.extents(a.shape.dims(), b.shape.dims());
        let tiles = m.div_ceil(TILE) * n.div_ceil(TILE) * batch;
        let steps = k.div_ceil(STEP).max(1);
        let wanted = (BLOCKS / tiles).clamp(1, steps.div_ceil(MIN_STEPS)).max(steps.div_ceil(MAX_STEPS));
        let each = steps.div_ceil(wanted);
        let splits = steps.div_ceil(each);
        let params = Params {
            rows: m as u32,
            columns: n as u32,
            terms: k as u32,
            split: (each * STEP) as u32,
            splits: splits as u32,
            left: Layout::new(m, k, self.transpose_a, a.shape[0]),
            right: Layout::new(n, k, !self.transpose_b, b.shape[0]),
        };
        let constants = Packing::plain(DType::F32);
        let [left, right] = [0, 1].map(|input| dtype_number(site.dtype(input, constants)));
        let (to, result) =
            if splits > 1 { (Arg::Workspace(0), DType::F32) } else { (Arg::Output(0), y.dtype) };
        let tensor_cores = target.precision.is_half();
        let mut launches = vec![Launch {
            source: "rows/matmul.cu",
            entry: "matmul",
            defines: vec![
                ("MATH", i64::from(tensor_cores)),
                ("LEFT", left),
                ("RIGHT", right),
                ("RESULT", dtype_number(result)),
            ],
            grid: [n.div_ceil(TILE) as u32, m.div_ceil(TILE) as u32, (batch * splits) as u32],
            block: [THREADS, 1, 1],
            shared: 0,
            args: vec![Arg::Input(0), Arg::Input(1), to, Arg::of(&params)],
        }];
        let count = y.shape.len();
        if splits > 1 {
            launches.push(add_splits(splits, count, n, y.dtype));
        }
        let math = if tensor_cores { "tf32" } else { "f32" };
        Ok(Program {
            kernel: format!("{math} {TILE}x{TILE} split {splits}"),
            launches,
            workspace: if splits > 1 { splits * count * 4 } else { 0 },
            ..Program::default()
        })
    }
}
