//! Convolution: the choice of `plan/select/conv.rs` as launches of `kernels/conv/`.

use super::CudaOp;
use super::activation::number;
use super::divisor::divisor;
use super::launches::{per_element, storage};
use crate::ops::Conv2d;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::plan::launch::{Arg, Launch, Packing, Program, Target};
use crate::plan::select::conv::{self, Addressing, ConvChoice, ConvShape, Tile};
use crate::tensor::DType;

/// `Params` of `kernels/conv/window.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GemmParams {
    pixels: u32,
    filters: u32,
    depth: u32,
    pitch: u32,
    map: [u32; 2],
    channels: u32,
    out: [u32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
    next_column: i32,
    next_row: i32,
    tiles_n: u32,
    slice: u32,
    by_out: [[u32; 2]; 2],
    by_channels: [u32; 2],
    by_tiles_n: [u32; 2],
}

/// `Params` of `kernels/conv/split_k.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SplitParams {
    count: u32,
    filters: u32,
    splits: u32,
}

/// `Params` of `kernels/conv/depthwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DepthwiseParams {
    threads: u32,
    map: [u32; 2],
    channels: u32,
    out: [u32; 2],
    tiles_q: u32,
    chunks: u32,
    pitch: u32,
    stride_h: i32,
    padding: [i32; 2],
    dilation: [i32; 2],
    by_chunks: [u32; 2],
    by_tiles_q: [u32; 2],
    by_out_height: [u32; 2],
}

/// `Params` of `kernels/conv/direct.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DirectParams {
    count: u32,
    filters: u32,
    group_filters: u32,
    map: [u32; 2],
    channels: u32,
    group_channels: u32,
    out: [u32; 2],
    taps: [u32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
}

impl CudaOp for Conv2d {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let choice = conv::conv(&shape(self, site), target.precision, &target.caps)?;
        program(self, site, &choice)
    }
}

/// The convolution of a site, as kernels see it.
pub fn shape(op: &Conv2d, site: &Site<'_>) -> ConvShape {
    let (x, w, y) = (site.inputs[0].shape, site.inputs[1].shape, site.outputs[0].shape);
    ConvShape {
        batch: x[0],
        map: [x[1], x[2]],
        channels: x[3],
        out: [y[1], y[2]],
        filters: w[0],
        taps: [w[1], w[2]],
        stride: op.stride,
        padding: op.padding,
        dilation: op.dilation,
        groups: op.groups,
    }
}

/// What runs at a site for a choice, which need not be [`conv::conv`]'s: measuring and testing force others.
///
/// # Errors
/// A sentence if the filter is no constant: it is packed once.
pub fn program(op: &Conv2d, site: &Site<'_>, choice: &ConvChoice) -> Result<Program, String> {
    if !site.constant[1] {
        return Err("the filter of a convolution must be a constant".into());
    }
    let dtype = site.outputs[0].dtype;
    let lanes = 16 / dtype.size();
    let conv = Conv { shape: shape(op, site), epilogue: &op.epilogue, dtype, lanes };
    let mut packing = vec![Packing::plain(dtype); 2];
    packing.extend(op.epilogue.bias.then_some(Packing::plain(DType::F32)));
    packing.extend(op.epilogue.residual.then_some(Packing::plain(dtype)));
    let (launches, workspace) = match *choice {
        ConvChoice::Gemm { addressing, tile, splits, .. } => {
            packing[1] = Packing { row_dims: 3, row_multiple: lanes, ..packing[1] };
            conv.gemm(addressing, tile, splits)
        }
        ConvChoice::Depthwise { pixels } => {
            packing[1] = Packing { row_dims: 3, transposed: true, row_multiple: lanes, ..packing[1] };
            (vec![conv.depthwise(pixels)], 0)
        }
        ConvChoice::Direct => (vec![conv.direct()], 0),
    };
    Ok(Program { kernel: choice.to_string(), launches, workspace, packing })
}

/// A convolution to launch.
struct Conv<'a> {
    shape: ConvShape,
    epilogue: &'a Epilogue,
    dtype: DType,
    /// Elements of a chunk of 16 bytes.
    lanes: usize,
}

impl Conv<'_> {
    /// 1 if pixels of the result are whole chunks.
    fn whole_chunks(&self) -> (&'static str, i64) {
        ("WHOLE_CHUNKS", i64::from(self.shape.filters.is_multiple_of(self.lanes)))
    }

    fn activation(&self) -> (&'static str, i64) {
        ("ACTIVATION", number(self.epilogue.activation))
    }

    fn bias_and_residual(&self) -> [Arg; 2] {
        [self.epilogue.bias_input(), self.epilogue.residual_input()]
            .map(|input| input.map_or(Arg::Null, Arg::Input))
    }

    /// Map, filter, bias, residual, result, parameters.
    fn args(&self, params: Arg) -> Vec<Arg> {
        let [bias, residual] = self.bias_and_residual();
        vec![Arg::Input(0), Arg::Input(1), bias, residual, Arg::Output(0), params]
    }

    fn gemm(&self, addressing: Addressing, tile: Tile, splits: usize) -> (Vec<Launch>, usize) {
        let shape = &self.shape;
        let step = tile.chunks * self.lanes;
        let (row, column) = (shape.map[1] * shape.channels, shape.channels);
        let (tiles_m, tiles_n) = (shape.pixels().div_ceil(tile.m), shape.filters.div_ceil(tile.n));
        let column_step = shape.dilation[1] * column;
        let params = GemmParams {
            pixels: shape.pixels() as u32,
            filters: shape.filters as u32,
            depth: shape.depth() as u32,
            pitch: shape.depth().next_multiple_of(self.lanes) as u32,
            map: shape.map.map(|v| v as u32),
            channels: shape.channels as u32,
            out: shape.out.map(|v| v as u32),
            stride: shape.stride.map(|v| v as i32),
            padding: shape.padding.map(|v| v as i32),
            dilation: shape.dilation.map(|v| v as i32),
            next_column: column_step as i32 - column as i32,
            next_row: (shape.dilation[0] * row) as i32 - (shape.taps[1] * column_step) as i32,
            tiles_n: tiles_n as u32,
            slice: shape.depth().div_ceil(step).div_ceil(splits) as u32,
            by_out: shape.out.map(divisor),
            by_channels: divisor(shape.channels),
            by_tiles_n: divisor(tiles_n),
        };
        let (split, tensor) = (splits > 1, self.dtype != DType::F32);
        let shallow = addressing == Addressing::Taps && shape.channels < step;
        let defines = vec![
            storage(self.dtype),
            if split { ("ACTIVATION", number(None)) } else { self.activation() },
            ("TILE_M", tile.m as i64),
            ("TILE_N", tile.n as i64),
            ("WARPS_M", tile.warps[0] as i64),
            ("WARPS_N", tile.warps[1] as i64),
            ("CHUNKS", tile.chunks as i64),
            ("STAGES", tile.stages as i64),
            ("BLOCKS", tile.blocks as i64),
            ("ADDRESSING", addressing as i64),
            ("SHALLOW", i64::from(shallow)),
            ("FILTER_H", shape.taps[0] as i64),
            ("FILTER_W", shape.taps[1] as i64),
            // f32 is written one by one whatever the filters.
            if tensor { self.whole_chunks() } else { ("WHOLE_CHUNKS", 0) },
            ("SPLIT", i64::from(split)),
        ];
        let mut args = self.args(Arg::of(&params));
        if split {
            args[2..5].clone_from_slice(&[Arg::Null, Arg::Null, Arg::Workspace(0)]);
        }
        let mut launches = vec![Launch {
            source: "conv/implicit_gemm.cu",
            entry: "implicit_gemm",
            defines,
            grid: [(tiles_m * tiles_n) as u32, 1, splits as u32],
            block: [tile.threads() as u32, 1, 1],
            shared: tile.shared(addressing) as u32,
            args,
        }];
        if !split {
            return (launches, 0);
        }
        launches.push(self.add_partials(splits));
        (launches, splits * shape.pixels() * shape.filters * 4)
    }

    fn add_partials(&self, splits: usize) -> Launch {
        let whole = self.whole_chunks();
        let elements = self.shape.pixels() * self.shape.filters;
        let count = if whole.1 == 1 { elements / self.lanes } else { elements };
        let params =
            SplitParams { count: count as u32, filters: self.shape.filters as u32, splits: splits as u32 };
        let [bias, residual] = self.bias_and_residual();
        Launch {
            source: "conv/split_k.cu",
            entry: "add_partials",
            defines: vec![storage(self.dtype), self.activation(), whole],
            args: vec![Arg::Workspace(0), bias, residual, Arg::Output(0), Arg::of(&params)],
            ..per_element(count)
        }
    }

    fn depthwise(&self, pixels: usize) -> Launch {
        const THREADS: usize = 128;
        let shape = &self.shape;
        let whole = self.whole_chunks();
        let chunks = if whole.1 == 1 { shape.channels / self.lanes } else { shape.channels };
        let tiles_q = shape.out[1].div_ceil(pixels);
        let threads = shape.batch * shape.out[0] * tiles_q * chunks;
        let params = DepthwiseParams {
            threads: threads as u32,
            map: shape.map.map(|v| v as u32),
            channels: shape.channels as u32,
            out: shape.out.map(|v| v as u32),
            tiles_q: tiles_q as u32,
            chunks: chunks as u32,
            pitch: shape.channels.next_multiple_of(self.lanes) as u32,
            stride_h: shape.stride[0] as i32,
            padding: shape.padding.map(|v| v as i32),
            dilation: shape.dilation.map(|v| v as i32),
            by_chunks: divisor(chunks),
            by_tiles_q: divisor(tiles_q),
            by_out_height: divisor(shape.out[0]),
        };
        Launch {
            source: "conv/depthwise.cu",
            entry: "depthwise",
            defines: vec![
                storage(self.dtype),
                self.activation(),
                ("FILTER_H", shape.taps[0] as i64),
                ("FILTER_W", shape.taps[1] as i64),
                ("STRIDE_W", shape.stride[1] as i64),
                ("TILE_Q", pixels as i64),
                whole,
            ],
            grid: [threads.div_ceil(THREADS) as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            args: self.args(Arg::of(&params)),
        }
    }

    fn direct(&self) -> Launch {
        let shape = &self.shape;
        let count = shape.pixels() * shape.filters;
        let params = DirectParams {
            count: count as u32,
            filters: shape.filters as u32,
            group_filters: (shape.filters / shape.groups) as u32,
            map: shape.map.map(|v| v as u32),
            channels: shape.channels as u32,
            group_channels: (shape.channels / shape.groups) as u32,
            out: shape.out.map(|v| v as u32),
            taps: shape.taps.map(|v| v as u32),
            stride: shape.stride.map(|v| v as i32),
            padding: shape.padding.map(|v| v as i32),
            dilation: shape.dilation.map(|v| v as i32),
        };
        Launch {
            source: "conv/direct.cu",
            entry: "direct",
            defines: vec![storage(self.dtype), self.activation()],
            args: self.args(Arg::of(&params)),
            ..per_element(count)
        }
    }
}
