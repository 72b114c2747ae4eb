//! Convolutions as implicit matrix products.

use super::Conv;
use crate::cuda::launch::{Arg, Launch};
use crate::cuda::ops::activation::number;
use crate::cuda::ops::divisor::divisor;
use crate::cuda::ops::launches::{dtype_number, lanes, per_element, storage};
use crate::cuda::tiles::conv::{Addressing, GemmTile, Math};
use crate::tensor::DType;

/// `Params` of `kernels/conv/window.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GemmParams {
    pixels: u32,
    filters: u32,
    depth: u32,
    pitch: u32,
    height: u32,
    width: u32,
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

/// Where the pixels of a result lie in a larger map: `Scatter` of `kernels/conv/tail.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::NoUninit)]
pub(in crate::cuda::ops) struct Scatter {
    pub height: u32,
    pub width: u32,
    pub first: [u32; 2],
    pub step: [u32; 2],
    /// 0: no tap reaches these pixels, and they are zero.
    pub taps: u32,
}

/// `Params` of `kernels/conv/split_k.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SplitParams {
    count: u32,
    filters: u32,
    splits: u32,
    out_width: u32,
    by_filters: [u32; 2],
    by_out_width: [u32; 2],
}

impl Conv<'_> {
    pub(super) fn gemm(&self, addressing: Addressing, tile: GemmTile, splits: usize) -> (Vec<Launch>, usize) {
        let shape = &self.shape;
        let step = tile.chunks * self.lanes;
        let (row, column) = (shape.map[1] * shape.channels, shape.channels);
        let (tiles_m, tiles_n) = (shape.m().div_ceil(tile.m), shape.n.div_ceil(tile.n));
        let depth = if self.besides.scatter.is_some_and(|to| to.taps == 0) { 0 } else { shape.k() };
        let column_step = shape.dilation[1] * column;
        let params = GemmParams {
            pixels: shape.m() as u32,
            filters: shape.n as u32,
            depth: depth as u32,
            pitch: depth.next_multiple_of(self.lanes) as u32,
            height: shape.map[0] as u32,
            width: shape.map[1] as u32,
            channels: shape.channels as u32,
            out: shape.out.map(|v| v as u32),
            stride: shape.stride.map(|v| v as i32),
            padding: shape.padding.map(|v| v as i32),
            dilation: shape.dilation.map(|v| v as i32),
            next_column: column_step as i32 - column as i32,
            next_row: (shape.dilation[0] * row) as i32 - (shape.taps[1] * column_step) as i32,
            tiles_n: tiles_n as u32,
            slice: depth.div_ceil(step).div_ceil(splits) as u32,
            by_out: shape.out.map(divisor),
            by_channels: divisor(shape.channels),
            by_tiles_n: divisor(tiles_n),
        };
        let (split, tensor) = (splits > 1, tile.math != Math::Fma);
        let shallow = match addressing {
            Addressing::Taps => shape.channels < step,
            // Its steps begin at multiples of theirs.
            Addressing::Deformed => !shape.channels.is_multiple_of(step),
            _ => false,
        };
        let mut defines = vec![
            storage(self.dtype),
            ("MATH", tile.math as i64),
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
            // What FMA makes is written one by one whatever the filters.
            if tensor { self.whole_chunks() } else { ("WHOLE_CHUNKS", 0) },
            // Partial sums are written as they are.
            ("UPSAMPLED", i64::from(self.besides.upsampled && !split)),
            ("MOMENTS", i64::from(self.gives_moments(tile, splits))),
            ("SPLIT", i64::from(split)),
        ];
        if self.besides.scatter.is_some() {
            defines.push(("SCATTERED", 1));
        }
        if self.result != self.dtype && !split {
            defines.push(("RESULT", dtype_number(self.result)));
        }
        let mut args = self.args(Arg::of(&params));
        if split {
            args[2..5].clone_from_slice(&[Arg::Null, Arg::Null, Arg::Workspace(0)]);
        }
        args.insert(5, if self.gives_moments(tile, splits) { Arg::Output(1) } else { Arg::Null });
        if let Some(offsets) = self.besides.offsets {
            args.insert(6, Arg::Input(offsets));
        }
        if let Some(scatter) = &self.besides.scatter {
            args.insert(args.len() - 1, Arg::of(scatter));
        }
        let mut launches = vec![Launch {
            source: "conv/implicit_gemm.cu",
            entry: "implicit_gemm",
            defines,
            grid: [(tiles_m * tiles_n) as u32, 1, splits as u32],
            block: [tile.threads() as u32, 1, 1],
            shared: tile.shared(addressing, shape.tap_count()) as u32,
            args,
        }];
        if !split {
            return (launches, 0);
        }
        launches.push(self.add_partials(splits));
        (launches, splits * shape.m() * shape.n * 4)
    }

    fn add_partials(&self, splits: usize) -> Launch {
        let (shape, [bias, residual]) = (&self.shape, self.bias_and_residual());
        let sums = Partials {
            splits,
            elements: shape.m() * shape.n,
            columns: shape.n,
            out_width: shape.out[1],
            result: self.result,
        };
        sums.launch(bias, residual, [self.activation(), self.upsampled()])
    }
}

/// Partial sums `[splits, elements]` at the start of the workspace, which `kernels/conv/split_k.cu` adds.
pub(in crate::cuda::ops) struct Partials {
    pub splits: usize,
    pub elements: usize,
    /// Elements of a row of the result.
    pub columns: usize,
    /// Pixels of a row of the map, if rows are pixels.
    pub out_width: usize,
    pub result: DType,
}

impl Partials {
    pub fn launch(
        &self,
        bias: Arg,
        residual: Arg,
        [activation, upsampled]: [(&'static str, i64); 2],
    ) -> Launch {
        let whole = self.columns.is_multiple_of(lanes(self.result));
        let count = if whole { self.elements / lanes(self.result) } else { self.elements };
        let params = SplitParams {
            count: count as u32,
            filters: self.columns as u32,
            splits: self.splits as u32,
            out_width: self.out_width as u32,
            by_filters: divisor(self.columns),
            by_out_width: divisor(self.out_width),
        };
        Launch {
            source: "conv/split_k.cu",
            entry: "add_partials",
            defines: vec![storage(self.result), activation, ("WHOLE_CHUNKS", i64::from(whole)), upsampled],
            args: vec![Arg::Workspace(0), bias, residual, Arg::Output(0), Arg::of(&params)],
            ..per_element(count)
        }
    }
}
