//! The gradient of a convolution's filter: a product whose terms are pixels, shared among blocks in a way
//! that depends on the shape alone.

use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::ops::divisor::divisor;
use crate::cuda::ops::global_avg_pool::BLOCK as COLUMN_SUMS;
use crate::cuda::ops::launches::{elements, storage, vector};
use crate::cuda::ops::pack;
use crate::cuda::ops::sum_parts::add_splits;
use crate::cuda::ops::{CudaOp, Rounding};
use crate::ops::{Conv2dFilterGrad, DeformConv2dFilterGrad};
use crate::plan::Site;
use crate::tensor::{DType, Shape};

/// Blocks that a filter's pixels are shared among, if there are enough: any device is full of them.
const BLOCKS: usize = 528;
/// Blocks of samples that an H100 holds at once, by their registers.
const AT_ONCE: usize = 264;
/// Fewest steps of a block, so that its sums are few beside what it reads.
const MIN_STEPS: usize = 8;
/// Most pixels of a block: tensor cores cut a running sum at every step, by up to 2^-24 of it.
const MAX_PIXELS: usize = 8192;
/// Columns of a block: `BN` of `kernels/conv/filter_grad.cu`.
const COLUMNS: usize = 128;
/// Threads of a block: `THREADS` of `kernels/conv/filter_grad.cu`.
const THREADS: u32 = 256;
/// Pixels of a step: `SLAB` of `kernels/mask/tile.cuh`.
const STEP: usize = 64;
/// Steps in shared memory at once: two blocks of a multiprocessor have room.
const STAGES: usize = 3;
/// Shared memory that every device gives a block, in bytes.
const MAX_SHARED: usize = 99 * 1024;
/// Bytes that say where a tap falls, `Sample` and `Blend` in `kernels/conv/deformed.cuh`.
const SAMPLE: [usize; 2] = [16, 20];
/// Filters and columns of a block without tensor cores: `TILE` of `kernels/mask/tile_f32.cuh`.
const TILE_F32: usize = 64;
/// Pixels of its steps: `STEP` of `kernels/mask/tile_f32.cuh`.
const STEP_F32: usize = 32;
/// Warps of a block, one a result: `WARPS` of `kernels/conv/filter_grad_any.cu`.
const WARPS: usize = 8;
/// Taps of a row that a thread has registers for, and pixels of a block, of depthwise convolutions.
const MAX_DEPTHWISE_TAPS: usize = 8;
const DEPTHWISE_PIXELS: usize = 1024;

/// `Params` of `kernels/conv/gather.cuh`, for `filter_grad.cu` and its siblings.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    filters: u32,
    columns: u32,
    height: u32,
    width: u32,
    channels: u32,
    out: [u32; 2],
    filter: [u32; 2],
    group_channels: u32,
    group_filters: u32,
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
    split: u32,
    tiles: u32,
    by_out: [[u32; 2]; 2],
    by_group_channels: [u32; 2],
    by_filter_w: [u32; 2],
}

/// A gradient to launch.
struct Grad {
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    /// Taps are moved by a third operand.
    deformed: bool,
    x: Shape,
    dy: Shape,
    /// The result, `[K, R, S, C / groups]`.
    dw: Shape,
    dtype: DType,
}

/// How pixels are shared: steps of `step` among blocks, of which `tiles` are needed for each share.
fn shares(pixels: usize, step: usize, tiles: usize) -> (usize, usize) {
    let steps = pixels.div_ceil(step);
    let wanted = (BLOCKS / tiles).clamp(1, steps.div_ceil(MIN_STEPS)).max(pixels.div_ceil(MAX_PIXELS));
    let each = steps.div_ceil(wanted);
    (each * step, steps.div_ceil(each))
}

/// As [`shares`], where a step takes long: such that [`AT_ONCE`] blocks and then the others are done soonest.
fn shares_at_once(pixels: usize, step: usize, tiles: usize) -> (usize, usize) {
    let steps = pixels.div_ceil(step);
    let share = |wanted: usize| (steps.div_ceil(wanted), steps.div_ceil(steps.div_ceil(wanted)));
    let time = |&(each, splits): &(usize, usize)| ((splits * tiles).div_ceil(AT_ONCE) * each, splits);
    let short = |&(each, _): &(usize, usize)| each * step <= MAX_PIXELS;
    let (each, splits) = (1..=steps.div_ceil(MIN_STEPS))
        .map(share)
        .filter(short)
        .min_by_key(time)
        .expect("the most shares, of eight steps each");
    (each * step, splits)
}

impl Grad {
    fn pixels(&self) -> usize {
        self.dy[0] * self.dy[1] * self.dy[2]
    }

    fn columns(&self) -> usize {
        self.dw[1] * self.dw[2] * self.dw[3]
    }

    /// `split`: pixels of a block; `tiles`: of filters.
    fn launch(&self, split: usize, tiles: usize) -> Launch {
        let Grad { stride, padding, dilation, x, dy, dw, .. } = *self;
        let params = Params {
            pixels: self.pixels() as u32,
            filters: dw[0] as u32,
            columns: self.columns() as u32,
            height: x[1] as u32,
            width: x[2] as u32,
            channels: x[3] as u32,
            out: [dy[1] as u32, dy[2] as u32],
            filter: [dw[1] as u32, dw[2] as u32],
            group_channels: dw[3] as u32,
            group_filters: (dw[0] / self.groups) as u32,
            stride: stride.map(|v| v as i32),
            padding: padding.map(|v| v as i32),
            dilation: dilation.map(|v| v as i32),
            split: split as u32,
            tiles: tiles as u32,
            by_out: [divisor(dy[1].max(1)), divisor(dy[2].max(1))],
            by_group_channels: divisor(dw[3]),
            by_filter_w: divisor(dw[2]),
        };
        Launch {
            source: "",
            entry: "",
            defines: Vec::new(),
            grid: [1; 3],
            block: [THREADS, 1, 1],
            shared: 0,
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
        }
    }

    /// The program of a launch that writes `splits` partial sums if it is more than one.
    fn summed(&self, kernel: String, mut launch: Launch, splits: usize) -> Program {
        let (count, columns) = (self.dw.len(), self.columns());
        if splits == 1 {
            return Program { kernel, launches: vec![launch], ..Program::default() };
        }
        for arg in launch.args.iter_mut().filter(|arg| **arg == Arg::Output(0)) {
            *arg = Arg::Workspace(0);
        }
        let launches = vec![launch, add_splits(splits, count, columns, DType::F32)];
        let kernel = format!("{kernel} split {splits}");
        Program { kernel, launches, workspace: splits * count * 4, ..Program::default() }
    }

    /// As [`launch`](Self::launch), of a kernel that has offsets.
    fn with_offsets(&self, split: usize, tiles: usize) -> Launch {
        let mut launch = self.launch(split, tiles);
        launch.args.insert(2, if self.deformed { Arg::Input(2) } else { Arg::Null });
        launch
    }

    /// Most taps that the columns of a block are of.
    fn taps_of_block(&self) -> usize {
        let (taps, channels) = (self.dw[1] * self.dw[2], self.dw[3]);
        // Blocks begin at the first channel of a tap, or anywhere.
        let most = if COLUMNS.is_multiple_of(channels) || channels.is_multiple_of(COLUMNS) {
            COLUMNS.div_ceil(channels)
        } else {
            (COLUMNS - 1).div_ceil(channels) + 1
        };
        most.min(taps)
    }

    fn tensor_cores(&self) -> Program {
        // Elements one by one leave no registers for more sums.
        let wide = self.dy[3].is_multiple_of(8) && self.x[3].is_multiple_of(8);
        let found = self.deformed && self.x[3].is_multiple_of(8);
        let blended = self.deformed && self.x[3].is_multiple_of(64);
        let shared = |bands: usize, stages: usize| {
            let samples = if found { self.taps_of_block() * STEP * SAMPLE[usize::from(blended)] } else { 0 };
            // Samples are found a step ahead.
            stages * 128 * (32 * bands + COLUMNS) + 2 * samples
        };
        let sizes = [(4, STAGES), (2, STAGES), (2, 2)];
        let fits = |&(bands, stages): &(usize, usize)| {
            (bands == 2 || (wide && self.dw[0] > 64)) && shared(bands, stages) <= MAX_SHARED
        };
        let (bands, stages) = sizes.into_iter().find(fits).unwrap_or((2, 2));
        let (rows, columns) = (self.dw[0].div_ceil(32 * bands), self.columns().div_ceil(COLUMNS));
        let shares = if self.deformed { shares_at_once } else { shares };
        let (split, splits) = shares(self.pixels(), STEP, rows * columns);
        let launch = Launch {
            source: "conv/filter_grad.cu",
            entry: "filter_grad",
            defines: vec![
                storage(self.dtype),
                ("BANDS", bands as i64),
                ("STAGES", stages as i64),
                ("DY_WIDE", i64::from(self.dy[3].is_multiple_of(8))),
                ("X_WIDE", i64::from(self.x[3].is_multiple_of(8))),
                ("DEFORMED", i64::from(self.deformed)),
                ("BLENDED", i64::from(blended)),
            ],
            grid: [splits as u32, (rows * columns) as u32, 1],
            shared: shared(bands, stages) as u32,
            ..self.with_offsets(split, rows)
        };
        self.summed(format!("mma {}x{COLUMNS}", 32 * bands), launch, splits)
    }

    fn floats(&self) -> Program {
        let (rows, columns) = (self.dw[0].div_ceil(TILE_F32), self.columns().div_ceil(TILE_F32));
        let (split, splits) = shares(self.pixels(), STEP_F32, rows * columns);
        let launch = Launch {
            source: "conv/filter_grad_f32.cu",
            entry: "filter_grad_f32",
            defines: vec![storage(self.dtype), ("DEFORMED", i64::from(self.deformed))],
            grid: [splits as u32, (rows * columns) as u32, 1],
            ..self.with_offsets(split, rows)
        };
        self.summed(format!("f32 {TILE_F32}x{TILE_F32}"), launch, splits)
    }

    fn depthwise(&self) -> Program {
        let vector = vector(self.dtype, self.x[3]);
        let splits = self.pixels().div_ceil(DEPTHWISE_PIXELS);
        let tiles = (self.x[3] / vector).div_ceil(COLUMN_SUMS[0] as usize);
        let launch = Launch {
            source: "conv/depthwise_filter_grad.cu",
            entry: "depthwise_filter_grad",
            defines: vec![storage(self.dtype), ("VECTOR", vector as i64), ("FILTER_W", self.dw[2] as i64)],
            grid: [tiles as u32, self.dw[1] as u32, splits as u32],
            block: COLUMN_SUMS,
            ..self.launch(DEPTHWISE_PIXELS, 1)
        };
        self.summed(format!("depthwise x{vector}"), launch, splits)
    }

    fn any(&self) -> Program {
        let launch = Launch {
            source: "conv/filter_grad_any.cu",
            entry: "filter_grad_any",
            defines: vec![storage(self.dtype)],
            grid: [self.dw.len().div_ceil(WARPS) as u32, 1, 1],
            ..self.launch(self.pixels(), 1)
        };
        self.summed("any".into(), launch, 1)
    }
}

/// What runs at a site of either operator.
fn program(grad: &Grad, site: &Site<'_>, target: &Target) -> Result<Program, String> {
    let [x, dy] = [site.inputs[0], site.inputs[1]];
    elements(x)?;
    elements(dy)?;
    let depthwise = grad.groups > 1 && grad.dw[3] == 1 && grad.dw[0] == grad.groups;
    let mut program = match grad.pixels() {
        // Sums over no pixels are zeros, which this form writes.
        0 => grad.any(),
        _ if depthwise && grad.dw[2] <= MAX_DEPTHWISE_TAPS => grad.depthwise(),
        _ if grad.groups > 1 => grad.any(),
        _ if target.precision.is_half() => grad.tensor_cores(),
        _ => grad.floats(),
    };
    program.packing = vec![Packing::plain(grad.dtype); 2];
    for input in [0, 1].into_iter().filter(|&input| !site.constant[input]) {
        pack::on_device(&mut program, input, site.inputs[input]);
    }
    Ok(program)
}

impl CudaOp for Conv2dFilterGrad {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let Conv2dFilterGrad { stride, padding, dilation, groups, .. } = *self;
        let [x, dy, dw] = [site.inputs[0].shape, site.inputs[1].shape, site.outputs[0].shape];
        let dtype = target.precision.storage();
        let grad = Grad { stride, padding, dilation, groups, deformed: false, x, dy, dw, dtype };
        program(&grad, site, target)
    }
}

impl CudaOp for DeformConv2dFilterGrad {
    const ROUNDING: Rounding = Rounding::Samples;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let DeformConv2dFilterGrad { stride, padding, dilation, .. } = *self;
        let [x, dy, dw] = [site.inputs[0].shape, site.inputs[1].shape, site.outputs[0].shape];
        if !site.constant[2] && site.inputs[2].dtype != DType::F32 {
            return Err(format!("offsets of a deformable convolution are {}, not f32", site.inputs[2]));
        }
        let dtype = target.precision.storage();
        let grad = Grad { stride, padding, dilation, groups: 1, deformed: true, x, dy, dw, dtype };
        program(&grad, site, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_pixels_and_none_is_empty() {
        for pixels in (1..3000).chain([8192, 33_600, 67_200, 134_400]) {
            for tiles in [1, 9, 36, 144, 2000] {
                for shares in [shares, shares_at_once] {
                    let (split, splits) = shares(pixels, STEP, tiles);
                    assert!(split * splits >= pixels && split * (splits - 1) < pixels, "{pixels} {tiles}");
                    assert!(split < MAX_PIXELS + STEP);
                }
            }
        }
    }
}
