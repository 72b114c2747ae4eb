//! The gradients of a deformable convolution's map and offsets: those of all samples, a product of `dy` and
//! the filter, then what they are to pixels and offsets.

use super::{Besides, Conv};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::ops::divisor::divisor;
use crate::cuda::ops::launches::{elements, lanes, storage, vector};
use crate::cuda::ops::pack::{self, Matrix};
use crate::cuda::ops::{CudaOp, Rounding};
use crate::cuda::tiles::conv::{self, ConvChoice, ConvGemm};
use crate::ops::DeformConv2dInputGrad;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/conv/deformed_grad.cu`.
const THREADS: usize = 256;
/// Lanes that gather a pixel: `LANES` of `kernels/conv/deformed_grad.cu`.
const LANES: usize = 16;
/// Parts of a pixel's list.
const PARTS: usize = 4;
/// Lanes that sort a part: `SORTERS` of `kernels/conv/deformed_grad.cu`.
const SORTERS: usize = 2;
/// Places that lists are whole blocks of: `BLOCK` of `kernels/conv/deformed_grad.cu`.
const BLOCK: usize = 8;
/// Samples that a thread finds: `OF_THREAD` of `kernels/conv/deformed_grad.cu`.
const OF_THREAD: usize = 2;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    samples: u32,
    map_pixels: u32,
    height: u32,
    width: u32,
    channels: u32,
    out: [u32; 2],
    taps: u32,
    filter_w: u32,
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
    by_taps: [u32; 2],
    by_filter_w: [u32; 2],
    by_out: [[u32; 2]; 2],
}

/// The gradients of all samples `[B, P, Q, R * S * C]`, rounded as maps are, at the start of the workspace.
fn of_samples(site: &Site<'_>, target: &Target) -> Result<Program, String> {
    let (dy, w) = (site.inputs[0].shape, site.inputs[1].shape);
    let dtype = target.precision.storage();
    let n = w[1] * w[2] * w[3];
    let shape = ConvGemm {
        batch: dy[0],
        map: [dy[1], dy[2]],
        channels: dy[3],
        out: [dy[1], dy[2]],
        n,
        taps: [1; 2],
        stride: [1; 2],
        padding: [0; 2],
        dilation: [1; 2],
        groups: 1,
        residual: 0,
        wide: dtype != DType::F32,
        deformed: false,
    };
    let epilogue = Epilogue::default();
    let besides = Besides::default();
    let conv = Conv { shape, epilogue: &epilogue, dtype, result: dtype, lanes: lanes(dtype), besides };
    let choices = conv::candidates(&shape, target.precision, &target.caps)?;
    // Of a whole reduction: partial sums would be as large as the sums.
    let gemm = choices.into_iter().find_map(|choice| match choice {
        ConvChoice::Gemm { addressing, tile, splits: 1, .. } => {
            Some((choice, conv.gemm(addressing, tile, 1).0))
        }
        _ => None,
    });
    let (choice, mut launches) = gemm.ok_or_else(|| format!("no product of {dy} and {w}"))?;
    for arg in launches.iter_mut().flat_map(|launch| &mut launch.args) {
        if *arg == Arg::Output(0) {
            *arg = Arg::Workspace(0);
        }
    }
    if target.precision.is_half() && n.is_multiple_of(lanes(dtype)) && shape.k() > 0 {
        launches.iter_mut().for_each(|launch| launch.defines.push(("ROUNDED", 1)));
    }
    let workspace = shape.m() * n * dtype.size();
    let mut program = Program { kernel: choice.to_string(), launches, workspace, ..Program::default() };
    let turned = Matrix {
        rows: n,
        extents: [1, 1, w[0]],
        first: 0,
        row_step: 1,
        steps: [0, 0, n as isize],
        row_multiple: lanes(dtype),
    };
    let stored = site.dtype(1, Packing::plain(dtype));
    pack::lay_out(&mut program, 1, turned, [stored, dtype]);
    Ok(program)
}

impl CudaOp for DeformConv2dInputGrad {
    const ROUNDING: Rounding = Rounding::Samples;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let (x, w, dy) = (site.inputs[2], site.inputs[1].shape, site.inputs[0]);
        let dtype = target.precision.storage();
        for ty in [x, dy, site.outputs[1]] {
            elements(ty)?;
        }
        let map = Packing::plain(dtype);
        if site.dtype(2, map) != dtype || site.outputs[0].dtype != dtype {
            return Err(format!("map {x} of a deformable convolution is not stored as {}", dtype.name()));
        }
        let (pixels, taps) = (dy.shape[0] * dy.shape[1] * dy.shape[2], w[1] * w[2]);
        if pixels * taps * w[3] > i32::MAX as usize {
            return Err(format!(
                "{pixels} pixels of {taps} samples of {} channels; offsets have 31 bits",
                w[3]
            ));
        }
        let (samples, map_pixels) = (pixels * taps, x.shape[0] * x.shape[1] * x.shape[2]);
        let mut program = of_samples(site, target)?;
        let mut reserve = |bytes: usize| {
            let at = program.workspace.next_multiple_of(256);
            program.workspace = at + bytes;
            Arg::Workspace(at)
        };
        // An entry of a list has eight bytes, a sample is in four lists at most, of whole blocks each.
        let lists = samples * 32 + map_pixels * (BLOCK - 1) * 8;
        let [entries, sorted, found, counts, ends, taken] =
            [lists, lists, samples * 16, map_pixels * 16, map_pixels * 16, 4].map(&mut reserve);
        let grads = Arg::Workspace(0);
        let params = Params {
            samples: samples as u32,
            map_pixels: map_pixels as u32,
            height: x.shape[1] as u32,
            width: x.shape[2] as u32,
            channels: x.shape[3] as u32,
            out: [dy.shape[1] as u32, dy.shape[2] as u32],
            taps: taps as u32,
            filter_w: w[2] as u32,
            stride: self.stride.map(|v| v as i32),
            padding: self.padding.map(|v| v as i32),
            dilation: self.dilation.map(|v| v as i32),
            by_taps: divisor(taps),
            by_filter_w: divisor(w[2]),
            by_out: [divisor(dy.shape[1]), divisor(dy.shape[2])],
        };
        let channels = x.shape[3];
        let launch = |entry: &'static str, blocks: usize, args: Vec<Arg>| Launch {
            source: "conv/deformed_grad.cu",
            entry,
            defines: vec![storage(dtype), ("VECTOR", vector(dtype, channels) as i64)],
            grid: [blocks as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            args: args.into_iter().chain([Arg::of(&params)]).collect(),
        };
        let [x, offsets] = [2, 3].map(Arg::Input);
        let [dx, doffsets] = [0, 1].map(Arg::Output);
        let blocks = |threads: usize| threads.div_ceil(THREADS);
        let of_samples = vec![grads.clone(), x, offsets, counts.clone(), found.clone(), doffsets];
        let sorting = vec![counts.clone(), ends.clone(), entries.clone(), sorted.clone()];
        program.launches.extend([
            launch("clear", blocks(map_pixels * PARTS), vec![counts.clone(), taken.clone()]),
            launch("samples", blocks(samples.div_ceil(OF_THREAD)), of_samples),
            launch("reserve", blocks(map_pixels), vec![counts.clone(), taken, ends.clone()]),
            launch("place", blocks(samples), vec![found, ends.clone(), entries]),
            launch("sort", blocks(map_pixels * PARTS * SORTERS), sorting),
            launch("gather", blocks(map_pixels * LANES), vec![grads, counts, ends, sorted, dx]),
        ]);
        program.kernel += ", gathered";
        program.packing = vec![map, map, map, Packing::plain(DType::F32)];
        if !site.constant[0] {
            pack::on_device(&mut program, 0, dy);
        }
        Ok(program)
    }
}
