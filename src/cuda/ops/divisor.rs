//! Division by numbers that are known before the launch.

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
                for n in [multiple.saturating_sub(1), multiple, multiple + 1].map(|n| n.min(i32::MAX as u32))
                {
                    assert_eq!(divide(n, divisor), n / d, "{n} / {d}");
                }
            }
        }
    }
}
