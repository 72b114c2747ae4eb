use super::activation::number;
use super::conv2d::Partials;
use crate::cuda::launch::{Arg, Launch};
use crate::ops::epilogue::Epilogue;
use crate::tensor::DType;

/// Parts from which `sum_parts.cu`, whose warps share them, is better than `conv/split_k.cu`, which has a
/// thread a result.
const MANY: usize = 32;

/// Results of a block.
const RESULTS: usize = 32;

/// Warps of a block: `WARPS` of `kernels/sum_parts.cu`.
const WARPS: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    columns: u32,
    parts: u32,
}

/// The launch that adds `parts` partial results `[parts, count]`, f32, from the start of the workspace, with
/// the tail of the product, into the step's result, whose rows have `columns` elements.
pub(super) fn sum_parts(parts: usize, count: usize, columns: usize, epilogue: Epilogue) -> Launch {
    let operand = |index: Option<usize>| index.map_or(Arg::Null, Arg::Input);
    Launch {
        source: "sum_parts.cu",
        entry: "sum_parts",
        defines: vec![("ACTIVATION", number(epilogue.activation))],
        grid: [count.div_ceil(RESULTS) as u32, 1, 1],
        block: [32 * WARPS, 1, 1],
        shared: 0,
        args: vec![
            Arg::Workspace(0),
            operand(epilogue.bias_input()),
            operand(epilogue.residual_input()),
            Arg::Output(0),
            Arg::of(&Params { count: count as u32, columns: columns as u32, parts: parts as u32 }),
        ],
    }
}

/// The launch that adds `splits` partial results `[splits, count]`, f32, from the start of the workspace into
/// the step's result, stored as `result`, whose rows have `columns` elements.
pub(super) fn add_splits(splits: usize, count: usize, columns: usize, result: DType) -> Launch {
    if splits >= MANY && result == DType::F32 {
        return sum_parts(splits, count, columns, Epilogue::default());
    }
    let partials = Partials { splits, elements: count, columns, out_width: 1, result };
    partials.launch(Arg::Null, Arg::Null, [("ACTIVATION", number(None)), ("UPSAMPLED", 0)])
}

/// The launch that adds `parts` partial results `[parts, count]`, f32, from one place to another.
pub(super) fn add_parts(parts: usize, count: usize, from: Arg, to: Arg) -> Launch {
    let mut launch = sum_parts(parts, count, count, Epilogue::default());
    (launch.args[0], launch.args[3]) = (from, to);
    launch
}
