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

/// `Divisor` of `kernels/common/divisor.cuh`: division of numbers below 2^31 by `d`.
///
/// # Panics
/// If `d` is 0 or above 2^31.
pub(crate) fn divisor(d: usize) -> [u32; 2] {
    assert!((1..=1 << 31).contains(&d), "division by {d}");
    let shift = (d as u64).next_power_of_two().trailing_zeros();
    [(1u64 << (31 + shift)).div_ceil(d as u64) as u32, shift]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_divide() {
        let divide = |n: u32, [multiplier, shift]: [u32; 2]| {
            ((u64::from(n) * u64::from(multiplier)) >> (31 + shift)) as u32
        };
        let interesting = [1, 2, 3, 5, 7, 42, 84, 336, 641, 1000, 65_535, 65_536, 65_537, i32::MAX as u32];
        for d in (1..2000).chain(interesting) {
            let divisor = divisor(d as usize);
            for multiple in interesting.map(|n| n / d * d) {
                for n in [multiple.saturating_sub(1), multiple, multiple + 1].map(|n| n.min(i32::MAX as u32)) {
                    assert_eq!(divide(n, divisor), n / d, "{n} / {d}");
                }
            }
        }
    }
}
