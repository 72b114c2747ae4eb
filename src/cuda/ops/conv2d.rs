//! Convolution: the choice of `cuda/tiles/conv.rs` as launches of `kernels/conv/`.

use super::CudaOp;
use super::activation::number;
use super::divisor::divisor;
use super::launches::{dtype_number, elements, lanes, per_element, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::conv::{self, Addressing, ConvChoice, ConvGemm, GemmTile, Math};
use crate::ops::Conv2d;
use crate::ops::ValueType;
use crate::ops::epilogue::Epilogue;
use crate::ops::fused_conv2d::PART_PIXELS;
use crate::plan::Site;
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

impl CudaOp for Conv2d {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let choice = conv::conv(&shape(self, site), target.precision, &target.caps)?;
        program(self, site, &choice)
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let choices = conv::candidates(&shape(self, site), target.precision, &target.caps)?;
        choices.iter().map(|choice| program(self, site, choice)).collect()
    }
}

/// What a convolution's kernels do besides: the tails of `kernels/conv/tail.cuh`, the taps of
/// `kernels/conv/deformed.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Besides {
    /// The residual is half as large as the result.
    pub upsampled: bool,
    /// The moments of this many groups of channels are the second result.
    pub groups: Option<usize>,
    /// Which operand moves the taps.
    pub offsets: Option<usize>,
}

/// The convolution of a site, as kernels see it.
pub fn shape(op: &Conv2d, site: &Site<'_>) -> ConvGemm {
    let (x, w, y) = (site.inputs[0].shape, site.inputs[1].shape, site.outputs[0].shape);
    ConvGemm {
        batch: x[0],
        map: [x[1], x[2]],
        channels: x[3],
        out: [y[1], y[2]],
        n: w[0],
        taps: [w[1], w[2]],
        stride: op.stride,
        padding: op.padding,
        dilation: op.dilation,
        groups: op.groups,
        residual: op.epilogue.residual_input().map_or(0, |input| site.inputs[input].shape.len()),
        wide: map_type(site) != site.outputs[0].dtype,
        deformed: false,
    }
}

/// How the map of a site is stored: a constant is packed as the result is.
fn map_type(site: &Site<'_>) -> DType {
    if site.constant[0] { site.outputs[0].dtype } else { site.inputs[0].dtype }
}

/// What runs at a site for a choice, which need not be [`conv::conv`]'s: measuring and testing take others.
///
/// # Errors
/// A sentence if the filter is no constant: it is packed once.
pub fn program(op: &Conv2d, site: &Site<'_>, choice: &ConvChoice) -> Result<Program, String> {
    with_besides(op, site, choice, Besides::default())
}

/// As [`program`], of a convolution that does more.
///
/// # Errors
/// As [`program`], and if the kernel does not.
pub(super) fn with_besides(
    op: &Conv2d,
    site: &Site<'_>,
    choice: &ConvChoice,
    besides: Besides,
) -> Result<Program, String> {
    if !site.constant[1] {
        return Err("the filter of a convolution must be a constant".into());
    }
    let [dtype, result] = [map_type(site), site.outputs[0].dtype];
    let lanes = 16 / dtype.size();
    let conv = Conv { shape: shape(op, site), epilogue: &op.epilogue, dtype, result, lanes, besides };
    let mut packing = vec![Packing::plain(dtype); 2];
    packing.extend(op.epilogue.bias.then_some(Packing::plain(DType::F32)));
    packing.extend(op.epilogue.residual.then_some(Packing::plain(result)));
    packing.extend(besides.offsets.map(|_| Packing::plain(DType::F32)));
    for (i, wanted) in [(op.epilogue.residual_input(), result), (besides.offsets, DType::F32)] {
        let Some(i) = i.filter(|&i| !site.constant[i] && site.inputs[i].dtype != wanted) else { continue };
        let (what, result) = (site.inputs[i], site.outputs[0]);
        return Err(format!("operand {i} of a convolution to {result} is {what}, not {}", wanted.name()));
    }
    if besides.upsampled && !matches!(choice, ConvChoice::Gemm { .. }) {
        return Err(format!("`{choice}` has no residual of half the size"));
    }
    let (mut launches, workspace) = match *choice {
        ConvChoice::Gemm { addressing, tile, splits, .. } => {
            packing[1] = Packing { row_dims: 3, row_multiple: lanes, ..packing[1] };
            conv.gemm(addressing, tile, splits)
        }
        ConvChoice::FewChannels { filters } => {
            packing[1] = Packing { row_dims: 2, row_multiple: lanes, ..packing[1] };
            (vec![conv.few_channels(filters)], 0)
        }
        ConvChoice::Depthwise { pixels } => {
            packing[1] = Packing { row_dims: 3, transposed: true, row_multiple: lanes, ..packing[1] };
            (vec![conv.depthwise(pixels)], 0)
        }
        ConvChoice::Direct => (vec![conv.direct()], 0),
    };
    let mut kernel = choice.to_string();
    if let Some(groups) = besides.groups {
        let with_result =
            matches!(*choice, ConvChoice::Gemm { tile, splits, .. } if conv.gives_moments(tile, splits));
        kernel += if with_result { " + moments" } else { ", moments" };
        if !with_result {
            launches.push(moments(site.outputs[0], groups)?);
        }
    }
    Ok(Program { kernel, launches, workspace, packing })
}

/// Most groups of moments: threads of a block that takes a part.
pub(in crate::cuda) const MAX_GROUPS: usize = 256;

/// Moments of a map that has been written: `kernels/group_moments.cu` over the first result, into the second.
fn moments(map: ValueType, groups: usize) -> Result<Launch, String> {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::NoUninit)]
    struct Params {
        pixels: u32,
        groups: u32,
    }
    elements(map)?;
    let pixels = map.shape[1] * map.shape[2];
    if groups > MAX_GROUPS {
        return Err(format!("moments of {groups} groups; the kernel takes up to {MAX_GROUPS}"));
    }
    let rows = (MAX_GROUPS / groups).clamp(1, PART_PIXELS);
    let width = map.shape[3] / groups;
    Ok(Launch {
        source: "group_moments.cu",
        entry: "group_moments",
        defines: vec![
            storage(map.dtype),
            ("WIDTH", width as i64),
            ("VECTOR", vector(map.dtype, width) as i64),
            ("ROWS", rows as i64),
        ],
        grid: [pixels.div_ceil(PART_PIXELS) as u32, map.shape[0] as u32, 1],
        block: [groups as u32, rows as u32, 1],
        shared: (rows * groups * 12) as u32,
        args: vec![
            Arg::Output(0),
            Arg::Output(1),
            Arg::of(&Params { pixels: pixels as u32, groups: groups as u32 }),
        ],
    })
}

/// A convolution to launch.
struct Conv<'a> {
    shape: ConvGemm,
    epilogue: &'a Epilogue,
    /// How the map is stored, and the result.
    dtype: DType,
    result: DType,
    /// Elements of a chunk of 16 bytes of the map.
    lanes: usize,
    besides: Besides,
}

impl Conv<'_> {
    /// 1 if pixels of the result are whole chunks.
    fn whole_chunks(&self) -> (&'static str, i64) {
        ("WHOLE_CHUNKS", i64::from(self.shape.n.is_multiple_of(lanes(self.result))))
    }

    fn upsampled(&self) -> (&'static str, i64) {
        ("UPSAMPLED", i64::from(self.besides.upsampled))
    }

    /// Whether an implicit GEMM gives the moments with its result: a group is a chunk of a 16-bit type, and
    /// the tile of a warp is a part of one image.
    fn gives_moments(&self, tile: GemmTile, splits: usize) -> bool {
        let Some(groups) = self.besides.groups else { return false };
        let image = self.shape.out[0] * self.shape.out[1];
        self.result != DType::F32
            && splits == 1
            && self.shape.n == groups * self.lanes
            && tile.m / tile.warps[0] == PART_PIXELS
            && (self.shape.batch == 1 || image.is_multiple_of(PART_PIXELS))
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

    fn gemm(&self, addressing: Addressing, tile: GemmTile, splits: usize) -> (Vec<Launch>, usize) {
        let shape = &self.shape;
        let step = tile.chunks * self.lanes;
        let (row, column) = (shape.map[1] * shape.channels, shape.channels);
        let (tiles_m, tiles_n) = (shape.m().div_ceil(tile.m), shape.n.div_ceil(tile.n));
        let column_step = shape.dilation[1] * column;
        let params = GemmParams {
            pixels: shape.m() as u32,
            filters: shape.n as u32,
            depth: shape.k() as u32,
            pitch: shape.k().next_multiple_of(self.lanes) as u32,
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
            slice: shape.k().div_ceil(step).div_ceil(splits) as u32,
            by_out: shape.out.map(divisor),
            by_channels: divisor(shape.channels),
            by_tiles_n: divisor(tiles_n),
        };
        let (split, tensor) = (splits > 1, tile.math != Math::Fma);
        let in_taps = matches!(addressing, Addressing::Taps | Addressing::Deformed);
        let shallow = in_taps && shape.channels < step;
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
        let whole = self.whole_chunks();
        let elements = self.shape.m() * self.shape.n;
        let count = if whole.1 == 1 { elements / lanes(self.result) } else { elements };
        let params = SplitParams {
            count: count as u32,
            filters: self.shape.n as u32,
            splits: splits as u32,
            out_width: self.shape.out[1] as u32,
            by_filters: divisor(self.shape.n),
            by_out_width: divisor(self.shape.out[1]),
        };
        let [bias, residual] = self.bias_and_residual();
        Launch {
            source: "conv/split_k.cu",
            entry: "add_partials",
            defines: vec![storage(self.result), self.activation(), whole, self.upsampled()],
            args: vec![Arg::Workspace(0), bias, residual, Arg::Output(0), Arg::of(&params)],
            ..per_element(count)
        }
    }

    fn few_channels(&self, filters: usize) -> Launch {
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

    fn depthwise(&self, pixels: usize) -> Launch {
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

    fn direct(&self) -> Launch {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::gpu::{Caps, Precision};
    use crate::ops::{Op, Operator, ValueType};

    /// The program of a convolution in f16 on an H100.
    fn program(op: Conv2d, inputs: &[&[usize]], constant: &[bool]) -> Result<Program, String> {
        let mut inputs: Vec<ValueType> = inputs.iter().map(|dims| ValueType::map(*dims)).collect();
        let mut outputs = op.infer(&inputs).unwrap();
        inputs[0].dtype = DType::F16;
        outputs[0].dtype = DType::F16;
        let target = Target { caps: Caps::H100, precision: Precision::F16 };
        let site = Site { op: &Op::Conv2d(op), inputs: &inputs, constant, outputs: &outputs };
        let program = op.program(&site, &target)?;
        program.check(&target.caps)?;
        Ok(program)
    }

    #[test]
    fn a_layer_of_fpn_is_one_launch() {
        let op = Conv2d { epilogue: Epilogue::BIAS, ..Conv2d::with(1, 1) };
        let dims: &[&[usize]] = &[&[1, 200, 336, 256], &[256, 3, 3, 256], &[256]];
        let program = program(op, dims, &[false, true, true]).unwrap();
        let [launch] = &program.launches[..] else { panic!("{} launches", program.launches.len()) };
        assert_eq!((launch.grid, launch.block), ([525 * 2, 1, 1], [128, 1, 1]));
        assert_eq!((launch.shared, program.workspace), (4 * (128 + 128) * 64, 0));
        assert_eq!(launch.args[2..4], [Arg::Input(2), Arg::Null]);
        let packed = Packing { row_dims: 3, row_multiple: 8, ..Packing::plain(DType::F16) };
        assert_eq!(program.packing, [Packing::plain(DType::F16), packed, Packing::plain(DType::F32)]);
    }

    #[test]
    fn a_split_reduction_writes_sums_that_a_second_launch_adds() {
        let dims: &[&[usize]] = &[&[1, 25, 42, 512], &[512, 3, 3, 512]];
        let program = program(Conv2d::with(1, 1), dims, &[false, true]).unwrap();
        let [gemm, add] = &program.launches[..] else { panic!("{} launches", program.launches.len()) };
        let splits = gemm.grid[2] as usize;
        assert!(splits > 1);
        assert_eq!(program.workspace, splits * 25 * 42 * 512 * 4);
        assert_eq!((&gemm.args[4], &add.args[0]), (&Arg::Workspace(0), &Arg::Workspace(0)));
        assert_eq!(add.grid, [(25 * 42 * 512 / 8usize).div_ceil(256) as u32, 1, 1]);
    }

    #[test]
    fn a_filter_that_is_no_constant_is_refused() {
        let dims: &[&[usize]] = &[&[1, 5, 5, 8], &[8, 3, 3, 8]];
        let fault = program(Conv2d::with(1, 1), dims, &[false, false]).unwrap_err();
        assert!(fault.contains("must be a constant"), "{fault}");
    }
}
