//! Convolution: the choice of `cuda/tiles/conv.rs` as launches of `kernels/conv/`.

mod deformed_grad;
mod filter_grad;
mod gemm;
mod input_grad;
mod others;

use super::CudaOp;
use super::activation::number;
use super::launches::{elements, lanes, storage, vector};
use super::pack;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::conv::{self, ConvChoice, ConvGemm, GemmTile};
use crate::ops::Conv2d;
use crate::ops::ValueType;
use crate::ops::epilogue::Epilogue;
use crate::ops::fused_conv2d::PART_PIXELS;
use crate::plan::Site;
use crate::tensor::DType;
pub(super) use gemm::Partials;
use gemm::Scatter;

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
    /// Pixels of the result lie apart.
    pub scatter: Option<Scatter>,
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
        padding: op.padding.map(|zeros| zeros as isize),
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
/// A sentence if an operand is stored as the kernel does not take it.
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
    let mut program = Program { kernel, launches, workspace, packing };
    if !site.constant[1] {
        pack::on_device(&mut program, 1, site.inputs[1]);
    }
    Ok(program)
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
    fn a_filter_that_is_no_constant_is_packed_first() {
        let dims: &[&[usize]] = &[&[1, 25, 42, 512], &[512, 3, 3, 512]];
        let constant = program(Conv2d::with(1, 1), dims, &[false, true]).unwrap();
        let program = program(Conv2d::with(1, 1), dims, &[false, false]).unwrap();
        let [pack, gemm, add] = &program.launches[..] else { panic!("{} launches", program.launches.len()) };
        let at = constant.workspace;
        assert_eq!(program.workspace, at + 512 * 9 * 512 * 2);
        assert_eq!(pack.args[..2], [Arg::Input(1), Arg::Workspace(at)]);
        assert_eq!((&gemm.args[1], &add.args[0]), (&Arg::Workspace(at), &Arg::Workspace(0)));
    }
}
