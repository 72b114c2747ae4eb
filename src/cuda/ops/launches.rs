//! What programs of many operators share.

use crate::plan::launch::Launch;
use crate::tensor::DType;

/// Threads of a block of kernels with one thread an element.
const THREADS: usize = 256;

/// The define that chooses the element type of feature maps: numbers of `kernels/common/storage.cuh`.
pub(crate) fn storage(dtype: DType) -> (&'static str, i64) {
    ("STORAGE", dtype_number(dtype))
}

/// Number of an element type in `kernels/common/storage.cuh`.
pub(crate) fn dtype_number(dtype: DType) -> i64 {
    match dtype {
        DType::F32 | DType::I32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}

/// Geometry of a kernel with one thread for each of `count` elements; source, entry and arguments are left empty.
pub(crate) fn per_element(count: usize) -> Launch {
    Launch {
        source: "",
        entry: "",
        defines: Vec::new(),
        grid: [count.div_ceil(THREADS) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        args: Vec::new(),
    }
}
