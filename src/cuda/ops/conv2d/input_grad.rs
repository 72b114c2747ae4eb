//! The gradient of a convolution's map.
//!
//! With stride 1 it is the convolution of `dy` with the filter turned by half a turn, whose channels and
//! filters have changed places. With stride 2 the pixels of one parity of row and column take every other tap
//! alone: four convolutions with stride 1, each of which writes every other row and column. No zeros are put
//! between the pixels of `dy`. Filters are laid out by `kernels/pack.cu`, tap by tap as each of them reads.

use super::gemm::Scatter;
use super::{Besides, Conv};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::ops::CudaOp;
use crate::cuda::ops::divisor::divisor;
use crate::cuda::ops::launches::{dtype_number, elements, lanes, per_element, storage, vector};
use crate::cuda::ops::pack::{self, Matrix};
use crate::cuda::tiles::conv::{self, ConvChoice, ConvGemm};
use crate::ops::Conv2dInputGrad;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::tensor::DType;

/// Largest stride that goes by parities, and most taps of a side of an implicit GEMM.
const MAX_STRIDE: usize = 2;
const MAX_TAPS: usize = 16;

/// The places along an axis that have one remainder by the stride, and the taps that reach them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    first: usize,
    count: usize,
    taps: usize,
    /// The filter's tap that reaches farthest back, and from one to the next before it.
    last_tap: usize,
    tap_step: usize,
    padding: isize,
    dilation: usize,
}

/// The classes of an axis of `size` places under `taps` taps.
fn classes(op: &Conv2dInputGrad, axis: usize, size: usize, taps: usize) -> Vec<Class> {
    let [stride, dilation, padding] = [op.stride, op.dilation, op.padding].map(|pair| pair[axis]);
    let common = (1..=stride).filter(|d| stride.is_multiple_of(*d) && dilation.is_multiple_of(*d)).max();
    let common = common.unwrap_or(1);
    let (tap_step, step) = (stride / common, dilation / common);
    // Where tap `tap` of dy's place 0 lies behind place `first`, in strides, if they are whole.
    let behind = |first: usize, tap: usize| {
        let distance = (first + padding) as isize - (tap * dilation) as isize;
        (distance.rem_euclid(stride as isize) == 0).then_some(distance.div_euclid(stride as isize))
    };
    let class = |first: usize| {
        let count = (size - first).div_ceil(stride);
        let found = (0..tap_step.min(taps)).find_map(|tap| behind(first, tap).map(|at| (tap, at)));
        match found {
            None => Class { first, count, taps: 0, last_tap: 0, tap_step, padding: 0, dilation: 1 },
            Some((tap, at)) => {
                let taps = (taps - tap).div_ceil(tap_step);
                let reach = (taps - 1) * step;
                let (last_tap, padding) = (tap + (taps - 1) * tap_step, reach as isize - at);
                Class { first, count, taps, last_tap, tap_step, padding, dilation: step }
            }
        }
    };
    (0..stride.min(size)).map(class).collect()
}

/// A site, with what its kernels read and write.
struct Grad<'a> {
    op: &'a Conv2dInputGrad,
    site: &'a Site<'a>,
    target: &'a Target,
    /// How `dy` and the filter are read.
    dtype: DType,
}

impl Grad<'_> {
    fn depthwise(&self) -> bool {
        let (op, w) = (self.op, self.site.inputs[1].shape);
        op.groups > 1 && w[3] == 1 && w[0] == op.groups
    }

    /// What the filter is stored as, and what kernels read. A constant lies in the order that the graph has,
    /// and is laid out at every run.
    fn types(&self) -> [DType; 2] {
        [self.site.dtype(1, Packing::plain(self.dtype)), self.dtype]
    }

    /// The convolution of `dy` that gives the pixels of two classes.
    fn shape(&self, [rows, columns]: [Class; 2]) -> ConvGemm {
        let (dy, dx) = (self.site.inputs[0].shape, self.site.outputs[0]);
        ConvGemm {
            batch: dy[0],
            map: [dy[1], dy[2]],
            channels: dy[3],
            out: [rows.count, columns.count],
            n: dx.shape[3],
            // Of pixels that no tap reaches, one of which nothing is taken.
            taps: [rows.taps.max(1), columns.taps.max(1)],
            stride: [1; 2],
            padding: [rows.padding, columns.padding],
            dilation: [rows.dilation, columns.dilation],
            groups: self.op.groups,
            residual: 0,
            wide: dx.dtype != self.dtype,
            deformed: false,
        }
    }

    fn conv<'b>(&self, shape: ConvGemm, epilogue: &'b Epilogue, besides: Besides) -> Conv<'b> {
        let (dtype, result) = (self.dtype, self.site.outputs[0].dtype);
        Conv { shape, epilogue, dtype, result, lanes: lanes(dtype), besides }
    }

    /// The filter as the convolution of two classes reads it: `[C, taps, K]`, the taps from the last.
    fn turned(&self, [rows, columns]: [Class; 2]) -> Matrix {
        let w = self.site.inputs[1].shape;
        let (row, filter) = (w[2] * w[3], w[1] * w[2] * w[3]);
        Matrix {
            rows: w[3],
            extents: [rows.taps, columns.taps, w[0]],
            first: rows.last_tap * row + columns.last_tap * w[3],
            row_step: 1,
            steps: [
                -((rows.tap_step * row) as isize),
                -((columns.tap_step * w[3]) as isize),
                filter as isize,
            ],
            row_multiple: lanes(self.dtype),
        }
    }

    /// By an implicit GEMM for each pair of classes; `None` if one of them has no such kernel.
    fn products(&self) -> Result<Option<Program>, String> {
        let (op, w, dx) = (self.op, self.site.inputs[1].shape, self.site.outputs[0].shape);
        let by_parity = op.stride.iter().any(|&stride| stride > 1);
        let many = [w[1], w[2]].iter().any(|&taps| taps > MAX_TAPS);
        if op.groups > 1 || many || op.stride.iter().any(|&s| s > MAX_STRIDE) || w.is_empty() {
            return Ok(None);
        }
        let mut program = Program::default();
        for rows in classes(op, 0, dx[1], w[1]) {
            for columns in classes(op, 1, dx[2], w[2]) {
                let pair = [rows, columns];
                let scatter = Scatter {
                    height: dx[1] as u32,
                    width: dx[2] as u32,
                    first: [rows.first as u32, columns.first as u32],
                    step: op.stride.map(|stride| stride as u32),
                    taps: (rows.taps * columns.taps) as u32,
                };
                let besides = Besides { scatter: by_parity.then_some(scatter), ..Besides::default() };
                let shape = self.shape(pair);
                let epilogue = Epilogue::default();
                let conv = self.conv(shape, &epilogue, besides);
                let choices = conv::candidates(&shape, self.target.precision, &self.target.caps)?;
                // What is written by parity is whole sums.
                let gemm = choices.into_iter().find_map(|choice| match choice {
                    ConvChoice::Gemm { addressing, tile, splits, .. } if splits == 1 || !by_parity => {
                        Some((choice, conv.gemm(addressing, tile, splits)))
                    }
                    _ => None,
                });
                let Some((choice, (launches, workspace))) = gemm else { return Ok(None) };
                let mut class = Program { launches, workspace, ..Program::default() };
                if scatter.taps > 0 {
                    pack::lay_out(&mut class, 1, self.turned(pair), self.types());
                }
                if !program.launches.is_empty() {
                    program.kernel += "; ";
                }
                program.kernel += &choice.to_string();
                program.launches.extend(class.launches);
                program.workspace = program.workspace.max(class.workspace);
            }
        }
        Ok(Some(program))
    }

    /// Of a depthwise convolution with stride 1: another, with its taps from the last.
    fn depthwise_product(&self) -> Result<Option<Program>, String> {
        let (op, w, dx) = (self.op, self.site.inputs[1].shape, self.site.outputs[0]);
        let small = |&size: &usize| size > 0;
        if !self.depthwise()
            || op.stride != [1, 1]
            || dx.dtype != self.dtype
            || !dx.shape.dims().iter().all(small)
        {
            return Ok(None);
        }
        let pair = [classes(op, 0, dx.shape[1], w[1])[0], classes(op, 1, dx.shape[2], w[2])[0]];
        let shape = self.shape(pair);
        let choices = conv::candidates(&shape, self.target.precision, &self.target.caps)?;
        let ConvChoice::Depthwise { pixels } = choices[0] else { return Ok(None) };
        let epilogue = Epilogue::default();
        let launches = vec![self.conv(shape, &epilogue, Besides::default()).depthwise(pixels)];
        let taps = w[1] * w[2];
        let turned = Matrix { first: taps - 1, row_step: -1, ..self.by_taps() };
        let mut program = Program { kernel: choices[0].to_string(), launches, ..Program::default() };
        pack::lay_out(&mut program, 1, turned, self.types());
        Ok(Some(program))
    }

    /// A depthwise filter as `[R * S, C]`.
    fn by_taps(&self) -> Matrix {
        let w = self.site.inputs[1].shape;
        let packing = Packing {
            row_dims: 3,
            transposed: true,
            row_multiple: lanes(self.dtype),
            ..Packing::plain(self.dtype)
        };
        Matrix::packed(w, packing)
    }

    /// Whatever the geometry.
    fn gathered(&self) -> Program {
        let (op, w) = (self.op, self.site.inputs[1].shape);
        let (dy, dx) = (self.site.inputs[0].shape, self.site.outputs[0]);
        let depthwise = self.depthwise();
        let vector = if depthwise { vector(self.dtype, dx.shape[3]) } else { 1 };
        let matrix = if depthwise { self.by_taps() } else { Matrix::packed(w, Packing::plain(self.dtype)) };
        let [filter_step, tap_step] =
            if depthwise { [1, matrix.pitch()] } else { [w[1] * w[2] * w[3], w[3]] };
        let vectors = dx.shape[3] / vector;
        let count = dx.shape.len() / vector;
        let params = Params {
            count: count as u32,
            height: dx.shape[1] as u32,
            width: dx.shape[2] as u32,
            vectors: vectors as u32,
            out: [dy[1] as u32, dy[2] as u32],
            filters: dy[3] as u32,
            group_filters: (dy[3] / op.groups) as u32,
            group_channels: w[3] as u32,
            filter: [w[1] as u32, w[2] as u32],
            stride: op.stride.map(|v| v as i32),
            padding: op.padding.map(|v| v as i32),
            dilation: op.dilation.map(|v| v as i32),
            filter_step: filter_step as u32,
            tap_step: tap_step as u32,
            channel_step: 1,
            by_vectors: divisor(vectors),
            by_width: divisor(dx.shape[2]),
            by_height: divisor(dx.shape[1]),
            by_stride: op.stride.map(divisor),
        };
        let launch = Launch {
            source: "conv/gather_grad.cu",
            entry: "gather_grad",
            defines: vec![storage(self.dtype), ("RESULT", dtype_number(dx.dtype)), ("VECTOR", vector as i64)],
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
            ..per_element(count)
        };
        let kernel = format!("gather x{vector}");
        let mut program = Program { kernel, launches: vec![launch], ..Program::default() };
        if !w.is_empty() {
            pack::lay_out(&mut program, 1, matrix, self.types());
        }
        program
    }
}

/// `Params` of `kernels/conv/gather_grad.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    height: u32,
    width: u32,
    vectors: u32,
    out: [u32; 2],
    filters: u32,
    group_filters: u32,
    group_channels: u32,
    filter: [u32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
    filter_step: u32,
    tap_step: u32,
    channel_step: u32,
    by_vectors: [u32; 2],
    by_width: [u32; 2],
    by_height: [u32; 2],
    by_stride: [[u32; 2]; 2],
}

impl CudaOp for Conv2dInputGrad {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        elements(site.inputs[0])?;
        elements(site.outputs[0])?;
        let stored = Packing::plain(target.precision.storage());
        let grad = Grad { op: self, site, target, dtype: stored.dtype };
        let mut program = match grad.products()? {
            Some(program) => program,
            None => match grad.depthwise_product()? {
                Some(program) => program,
                None => grad.gathered(),
            },
        };
        program.packing = vec![stored; 2];
        if !site.constant[0] {
            pack::on_device(&mut program, 0, site.inputs[0]);
        }
        Ok(program)
    }
}
