//! Convolutions by other kernels than the implicit matrix product.

use super::Conv;
use crate::cuda::launch::{Arg, Launch};
use crate::cuda::ops::divisor::divisor;
use crate::cuda::ops::launches::{per_element, storage};

/// `Params` of `kernels/conv/few_channels.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct FewChannelsParams {
    height: u32,
    width: u32,
    out: [u32; 2],
    filters: u32,
    padding: [i32; 2],
    tiles: [u32; 2],
    by_tiles: [[u32; 2]; 2],
}

/// `Params` of `kernels/conv/depthwise.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DepthwiseParams {
    threads: u32,
    height: u32,
    width: u32,
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
    height: u32,
    width: u32,
    channels: u32,
    group_channels: u32,
    out: [u32; 2],
    filter: [u32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    dilation: [i32; 2],
}

impl Conv<'_> {
    pub(super) fn few_channels(&self, filters: usize) -> Launch {
        /// Output rows and columns of a block: `TILE_P` and `TILE_Q` of `kernels/conv/few_channels.cu`.
        const TILE: [usize; 2] = [8, 32];
        let shape = &self.shape;
        let tiles = [shape.out[0].div_ceil(TILE[0]), shape.out[1].div_ceil(TILE[1])];
        // As the kernel lays out its shared memory: the patch, the filters; then a band of 16 rows for each
        // warp.
        let row_blocks = (shape.taps[1] * shape.channels).div_ceil(self.lanes);
        let rows = (TILE[0] - 1) * shape.stride[0] + shape.taps[0];
        let columns = (TILE[1] - 1) * shape.stride[1] * shape.channels + row_blocks * self.lanes;
        let patch = (rows * columns * self.dtype.size()).next_multiple_of(16);
        let chunks = (shape.taps[0] * row_blocks).next_multiple_of(2) + 1;
        let bands = TILE[0] * 16 * (filters + 8) * 4;
        let params = FewChannelsParams {
            height: shape.map[0] as u32,
            width: shape.map[1] as u32,
            out: shape.out.map(|v| v as u32),
            filters: shape.n as u32,
            padding: shape.padding.map(|v| v as i32),
            tiles: tiles.map(|v| v as u32),
            by_tiles: tiles.map(divisor),
        };
        Launch {
            source: "conv/few_channels.cu",
            entry: "few_channels",
            defines: vec![
                storage(self.dtype),
                self.activation(),
                ("CHANNELS", shape.channels as i64),
                ("FILTER_H", shape.taps[0] as i64),
                ("FILTER_W", shape.taps[1] as i64),
                ("STRIDE_H", shape.stride[0] as i64),
                ("STRIDE_W", shape.stride[1] as i64),
                ("TILE_N", filters as i64),
                self.whole_chunks(),
            ],
            grid: [(shape.batch * tiles[0] * tiles[1]) as u32, shape.n.div_ceil(filters) as u32, 1],
            block: [(TILE[0] * 32) as u32, 1, 1],
            shared: (patch + filters * chunks * 16).max(bands) as u32,
            args: self.args(Arg::of(&params)),
        }
    }

    pub(super) fn depthwise(&self, pixels: usize) -> Launch {
        const THREADS: usize = 128;
        let shape = &self.shape;
        let whole = self.whole_chunks();
        let chunks = if whole.1 == 1 { shape.channels / self.lanes } else { shape.channels };
        let tiles_q = shape.out[1].div_ceil(pixels);
        let threads = shape.batch * shape.out[0] * tiles_q * chunks;
        let params = DepthwiseParams {
            threads: threads as u32,
            height: shape.map[0] as u32,
            width: shape.map[1] as u32,
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

    pub(super) fn direct(&self) -> Launch {
        let shape = &self.shape;
        let count = shape.m() * shape.n;
        let params = DirectParams {
            count: count as u32,
            filters: shape.n as u32,
            group_filters: (shape.n / shape.groups) as u32,
            height: shape.map[0] as u32,
            width: shape.map[1] as u32,
            channels: shape.channels as u32,
            group_channels: (shape.channels / shape.groups) as u32,
            out: shape.out.map(|v| v as u32),
            filter: shape.taps.map(|v| v as u32),
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
