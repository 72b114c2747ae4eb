//! Vectors of values that are stored in fewer bits than they are computed in: bf16, and codes of levels.

use half::bf16;

use super::kernel::CHUNK;
use super::vector::Vector;
use crate::cpu::element::Element;
use crate::ops::levels::{Rule, WHOLE};
use bytemuck::{Pod, Zeroable};

/// What a [`Vector`] does besides to become such values, and from them.
///
/// # Safety
/// As of [`Vector`]'s methods.
pub(crate) trait Narrow: Vector {
    /// `self` where that is larger, else `b`: of what is not a number, too.
    unsafe fn max(self, b: Self) -> Self;
    /// `self` where that is smaller, else `b`.
    unsafe fn min(self, b: Self) -> Self;
    /// Widens [`Vector::LANES`] values, exactly.
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// The same of integers.
    unsafe fn load_u8(p: *const u8) -> Self;
    /// Stores the nearest bf16, as [`Element::narrow`] finds them.
    unsafe fn store_bf16(self, p: *mut bf16);
    /// Stores the last byte of each one's bits.
    unsafe fn store_u8(self, p: *mut u8);

    /// The levels of numbers, as [`Rule::level`] finds them.
    #[inline(always)]
    unsafe fn level(self, rule: &Rule) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            let (inverse, whole) = (Self::splat(rule.inverse), Self::splat(WHOLE));
            let inside = self.mul(inverse).max(Self::splat(rule.low)).min(Self::splat(rule.high));
            inside.add(whole).sub(whole)
        }
    }
}

/// What a map's values are stored as.
pub(crate) trait Stored: Pod + Send + Sync {
    /// Whether they are codes of levels.
    const CODE: bool = false;
    /// Whether they are f32.
    const F32: bool = false;

    /// Values `0..n` as numbers (`n <= LANES`), and zeros behind them.
    ///
    /// # Safety
    /// As of [`Vector`]'s methods.
    unsafe fn load<V: Narrow>(p: *const Self, n: usize) -> V;
    /// Stores lanes `0..n` (`n <= LANES`) only.
    ///
    /// # Safety
    /// As of [`Vector`]'s methods.
    unsafe fn store<V: Narrow>(v: V, p: *mut Self, n: usize);
}

impl Stored for f32 {
    const F32: bool = true;

    #[inline(always)]
    unsafe fn load<V: Narrow>(p: *const f32, n: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe { V::load_up_to(p, n) }
    }

    #[inline(always)]
    unsafe fn store<V: Narrow>(v: V, p: *mut f32, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { v.store_up_to(p, n) }
    }
}

macro_rules! stored {
    ($type:ty, $load:ident, $store:ident, $code:literal) => {
        impl Stored for $type {
            const CODE: bool = $code;

            #[inline(always)]
            unsafe fn load<V: Narrow>(p: *const $type, n: usize) -> V {
                // SAFETY: the caller's contract.
                unsafe {
                    if n >= V::LANES {
                        return V::$load(p);
                    }
                    let mut values = [<$type>::zeroed(); CHUNK];
                    p.copy_to_nonoverlapping(values.as_mut_ptr(), n);
                    V::$load(values.as_ptr())
                }
            }

            #[inline(always)]
            unsafe fn store<V: Narrow>(v: V, p: *mut $type, n: usize) {
                // SAFETY: the caller's contract.
                unsafe {
                    if n >= V::LANES {
                        return v.$store(p);
                    }
                    let mut values = [<$type>::zeroed(); CHUNK];
                    v.$store(values.as_mut_ptr());
                    p.copy_from_nonoverlapping(values.as_ptr(), n);
                }
            }
        }
    };
}
stored!(bf16, load_bf16, store_bf16, false);
stored!(u8, load_u8, store_u8, true);

/// [`Narrow`] lane by lane, for compilers to make of it what the target has.
macro_rules! by_lane {
    ($(#[$attr:meta])* $vector:ty) => {
        $(#[$attr])*
        // SAFETY of every block: lanes are copied from and to arrays of as many; else the method's contract.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Narrow for $vector {
            #[inline(always)]
            unsafe fn max(self, b: Self) -> Self {
                let ([mut x, mut y], lanes) = ([[0.0; CHUNK]; 2], Self::LANES);
                unsafe {
                    self.store(x.as_mut_ptr());
                    b.store(y.as_mut_ptr());
                }
                for i in 0..lanes {
                    x[i] = if x[i] > y[i] { x[i] } else { y[i] };
                }
                unsafe { Self::load(x.as_ptr()) }
            }
            #[inline(always)]
            unsafe fn min(self, b: Self) -> Self {
                let ([mut x, mut y], lanes) = ([[0.0; CHUNK]; 2], Self::LANES);
                unsafe {
                    self.store(x.as_mut_ptr());
                    b.store(y.as_mut_ptr());
                }
                for i in 0..lanes {
                    x[i] = if x[i] < y[i] { x[i] } else { y[i] };
                }
                unsafe { Self::load(x.as_ptr()) }
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const bf16) -> Self {
                let mut values = [0.0; CHUNK];
                for i in 0..Self::LANES {
                    values[i] = unsafe { *p.add(i) }.widen();
                }
                unsafe { Self::load(values.as_ptr()) }
            }
            #[inline(always)]
            unsafe fn load_u8(p: *const u8) -> Self {
                let mut values = [0.0; CHUNK];
                for i in 0..Self::LANES {
                    values[i] = f32::from(unsafe { *p.add(i) });
                }
                unsafe { Self::load(values.as_ptr()) }
            }
            #[inline(always)]
            unsafe fn store_bf16(self, p: *mut bf16) {
                let mut values = [0.0; CHUNK];
                unsafe { self.store(values.as_mut_ptr()) };
                for i in 0..Self::LANES {
                    unsafe { *p.add(i) = bf16::narrow(values[i]) };
                }
            }
            #[inline(always)]
            unsafe fn store_u8(self, p: *mut u8) {
                let mut values = [0.0; CHUNK];
                unsafe { self.store(values.as_mut_ptr()) };
                for i in 0..Self::LANES {
                    unsafe { *p.add(i) = values[i].to_bits() as u8 };
                }
            }
        }
    };
}
by_lane!(super::vector::F32x4);
by_lane!(
    #[cfg(target_arch = "aarch64")]
    super::vector::neon::F32x4
);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Narrow, bf16};
    use crate::cpu::gemm::vector::x86::{F32x8, F32x16};
    use std::arch::x86_64::*;

    // SAFETY of every block: each is what the method's own contract allows.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Narrow for F32x8 {
        // maxps and minps return their second operand when either is NaN.
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            Self(unsafe { _mm256_max_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn min(self, b: Self) -> Self {
            Self(unsafe { _mm256_min_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
            }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> Self {
            unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn store_bf16(self, p: *mut bf16) {
            unsafe {
                let bits = _mm256_castps_si256(self.0);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                let (low, high) = (_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
                _mm_storeu_si128(p.cast(), _mm_packus_epi32(low, high));
            }
        }
        #[inline(always)]
        unsafe fn store_u8(self, p: *mut u8) {
            unsafe {
                let whole = _mm256_and_si256(_mm256_castps_si256(self.0), _mm256_set1_epi32(0xff));
                let (low, high) = (_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
                let words = _mm_packus_epi32(low, high);
                _mm_storel_epi64(p.cast(), _mm_packus_epi16(words, words));
            }
        }
    }

    // SAFETY of every block: each is what the method's own contract allows.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Narrow for F32x16 {
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            Self(unsafe { _mm512_max_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn min(self, b: Self) -> Self {
            Self(unsafe { _mm512_min_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> Self {
            unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn store_bf16(self, p: *mut bf16) {
            unsafe {
                let bits = _mm512_castps_si512(self.0);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
                let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
                _mm256_storeu_si256(p.cast(), narrow);
            }
        }
        #[inline(always)]
        unsafe fn store_u8(self, p: *mut u8) {
            unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(self.0))) }
        }
    }
}
