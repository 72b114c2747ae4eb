//! Between the f32 of the host and the storage type: no operator of graphs, but what moves values in and out
//! of plans.

use super::launches::{dtype_number, per_element};
use crate::cuda::launch::{Arg, Launch};
use crate::tensor::DType;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
}

/// Converts `count` elements; operand and result are the first two parameters.
pub(crate) fn launch(count: usize, from: DType, to: DType) -> Launch {
    Launch {
        source: "cast.cu",
        entry: "cast",
        defines: vec![("SOURCE", dtype_number(from)), ("TARGET", dtype_number(to))],
        args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&Params { count: count as u32 })],
        ..per_element(count)
    }
}
