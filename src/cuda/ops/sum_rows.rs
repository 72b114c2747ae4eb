use crate::cuda::launch::{Arg, Launch};

/// Threads of a block: `THREADS` of `kernels/sum_rows.cu`.
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    length: u32,
}

/// The launch that adds up each of `rows` rows of `length` elements, f32.
pub(super) fn sum_rows(rows: usize, length: usize, from: Arg, to: Arg) -> Launch {
    Launch {
        source: "sum_rows.cu",
        entry: "sum_rows",
        defines: Vec::new(),
        grid: [rows as u32, 1, 1],
        block: [THREADS, 1, 1],
        shared: 0,
        args: vec![from, to, Arg::of(&Params { length: length as u32 })],
    }
}
