//! What a map's values are stored as: f32, or bf16 with half the memory and its traffic.
//!
//! Kernels that are bound by memory are written once for both. They compute in f32: a value is widened as it
//! is loaded, which is exact, and rounded to the nearest as it is stored.

use bytemuck::Pod;
use half::bf16;

/// A stored float.
pub(crate) trait Element: Pod + Send + Sync {
    /// The value.
    fn widen(self) -> f32;
    /// The nearest that can be stored, ties to even. NaN stays NaN.
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> f32 {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without a branch, so that loops over it become vectors.
    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        // Rounding could carry a NaN's digits into its sign.
        bf16::from_bits((if value.is_nan() { bits | 0x40_0000 } else { rounded } >> 16) as u16)
    }
}

/// A slice of floats' memory as the first `len` of what is stored there. Slots begin on cache lines and are
/// whole floats long, so that shorter values may leave a part of a float over.
pub(crate) fn stored<E: Pod>(memory: &[f32], len: usize) -> &[E] {
    &bytemuck::cast_slice(memory)[..len]
}

/// As [`stored`], for writing.
pub(crate) fn stored_mut<E: Pod>(memory: &mut [f32], len: usize) -> &mut [E] {
    &mut bytemuck::cast_slice_mut(memory)[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_type_itself_does() {
        let patterns = (0..1u32 << 16)
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        for bits in patterns {
            let (value, expected) = (f32::from_bits(bits), bf16::from_f32(f32::from_bits(bits)));
            let narrow = bf16::narrow(value);
            assert_eq!(narrow.to_bits(), expected.to_bits(), "{value:e} ({bits:#x})");
            assert!(narrow.widen().to_bits() == expected.to_f32().to_bits());
        }
    }
}
