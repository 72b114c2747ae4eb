//! One vector register of `f32` per instruction set, and the one place where a generic job is compiled
//! with that set's features enabled.
//!
//! Everything here is `#[inline(always)]`: an intrinsic becomes one instruction only once it has been
//! inlined into a function that has the feature, which [`on`] and the microkernels provide. For the same
//! reason code on vectors keeps to plain loops: a closure is a function of its own, without the feature.

use crate::isa::Isa;

use super::kernel::Tile;
use super::narrow::Narrow;

/// A register of `LANES` f32 values.
///
/// # Safety
/// Every method requires that the processor has the features of the implementing type, and that pointers
/// are valid for the lanes read or written (no alignment is required).
pub(crate) trait Vector: Copy {
    /// Number of f32 values; a divisor of [`super::CHUNK`].
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Reads lanes `0..n` (`n <= LANES`), the others are zero and their memory is not touched.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// Writes lanes `0..n` (`n <= LANES`) only.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    /// [`Vector::load`] for a whole vector, else [`Vector::load_first`].
    #[inline(always)]
    unsafe fn load_up_to(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller's contract.
        unsafe { if n >= Self::LANES { Self::load(p) } else { Self::load_first(p, n) } }
    }
    /// [`Vector::store`] for a whole vector, else [`Vector::store_first`].
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut f32, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { if n >= Self::LANES { self.store(p) } else { self.store_first(p, n) } }
    }
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, fused where the instruction set can.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `min(max(self, lo), hi)`; a NaN in `self` stays NaN.
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self;
    /// `(a0 b0 a1 b1 ..., the rest of that sequence)`.
    unsafe fn interleave(self, b: Self) -> (Self, Self);
}

/// A register and the tile shape that suits the instruction set's register file.
pub(crate) trait Arch {
    type V: Narrow;
    /// Rows of a microkernel tile.
    const MR: usize;
    /// Columns of a microkernel tile.
    const NR: usize;
    /// Computes one tile, see [`super::kernel::kernel`].
    ///
    /// # Safety
    /// The processor has the features; the pointers in `tile` are valid for what its fields describe.
    unsafe fn tile(tile: &Tile);
}

/// Work that is generic over the instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Job {
    fn run<A: Arch>(self);
}

/// Runs `job` compiled for `isa`.
pub(crate) fn on<J: Job>(isa: Isa, job: J) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
        fn avx512<J: Job>(job: J) {
            job.run::<Avx512>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<J: Job>(job: J) {
            job.run::<Avx2>();
        }
        match isa {
            // SAFETY: an `Isa` above `Portable` is only made where the processor has its features.
            Isa::Avx512 => return unsafe { avx512(job) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { avx2(job) },
            Isa::Portable | Isa::Neon => {}
        }
    }
    #[cfg(target_arch = "aarch64")]
    if isa == Isa::Neon {
        return job.run::<Neon>();
    }
    let _ = isa;
    job.run::<Portable>();
}

/// Tile shape `(MR, NR)` of an instruction set.
pub(crate) const fn tile_shape(isa: Isa) -> (usize, usize) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (Avx512::MR, Avx512::NR),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (Avx2::MR, Avx2::NR),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => (Neon::MR, Neon::NR),
        _ => (Portable::MR, Portable::NR),
    }
}

/// Implements [`Arch`]: tile shape `mr` x (`nv` vectors), and kernels for the listed row counts (a strip
/// with fewer rows runs the next larger one and drops the rest).
macro_rules! arch {
    ($(#[$attr:meta])* $name:ident, $v:ty, $feature:meta, $mr:literal x $nv:literal, [$($rows:literal),*]) => {
        $(#[$attr])*
        pub(crate) struct $name;
        $(#[$attr])*
        impl Arch for $name {
            type V = $v;
            const MR: usize = $mr;
            const NR: usize = $nv * <$v>::LANES;
            #[inline(always)]
            unsafe fn tile(tile: &Tile) {
                #[$feature]
                unsafe fn compiled<const ROWS: usize, const NV: usize>(tile: &Tile) {
                    // SAFETY: passed on to the caller.
                    unsafe { super::kernel::kernel::<$name, ROWS, NV>(tile) }
                }
                // SAFETY: passed on to the caller.
                unsafe {
                    if tile.cols > <$v>::LANES {
                        $(if tile.rows <= $rows { return compiled::<$rows, $nv>(tile); })*
                    } else {
                        $(if tile.rows <= $rows { return compiled::<$rows, 1>(tile); })*
                    }
                }
            }
        }
    };
}

arch!(
    #[cfg(target_arch = "x86_64")]
    Avx512, x86::F32x16, target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"),
    14 x 2, [1, 2, 4, 7, 10, 14]
);
arch!(
    #[cfg(target_arch = "x86_64")]
    Avx2, x86::F32x8, target_feature(enable = "avx2,fma"), 6 x 2, [1, 2, 4, 6]
);
// Of 32 registers 24 hold sums, three a row of B and one a value of A.
arch!(
    #[cfg(target_arch = "aarch64")]
    Neon, neon::F32x4, inline(never), 8 x 3, [1, 2, 4, 6, 8]
);
arch!(Portable, F32x4, inline(never), 4 x 2, [1, 2, 4]);

/// Four lanes of plain Rust; compilers map it to SSE2, NEON or whatever the target guarantees.
#[derive(Clone, Copy)]
pub(crate) struct F32x4([f32; 4]);

impl Vector for F32x4 {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        F32x4([x; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for four readable values.
        F32x4(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for four writable values.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut v = [0.0; 4];
        for (i, lane) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller vouches for `n` readable values.
            *lane = unsafe { *p.add(i) };
        }
        F32x4(v)
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for (i, lane) in self.0.into_iter().enumerate().take(n) {
            // SAFETY: the caller vouches for `n` writable values.
            unsafe { *p.add(i) = lane };
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        F32x4(std::array::from_fn(|i| self.0[i] + b.0[i]))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        F32x4(std::array::from_fn(|i| self.0[i] - b.0[i]))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        F32x4(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // `f32::mul_add` would be a library call on targets without FMA.
        F32x4(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self {
        F32x4(std::array::from_fn(|i| {
            let x = if self.0[i] < lo.0[i] { lo.0[i] } else { self.0[i] };
            if x > hi.0[i] { hi.0[i] } else { x }
        }))
    }
    #[inline(always)]
    unsafe fn interleave(self, b: Self) -> (Self, Self) {
        let (a, b) = (self.0, b.0);
        (F32x4([a[0], b[0], a[1], b[1]]), F32x4([a[2], b[2], a[3], b[3]]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// Eight lanes, AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(pub __m256);
    /// Sixteen lanes, AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x16(pub __m512);

    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        // SAFETY: only called where AVX2 is available.
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }

    /// A [`Vector`] whose methods are single intrinsics.
    macro_rules! vector {
        ($name:ident, $lanes:literal, $set1:ident, $loadu:ident, $storeu:ident, $add:ident, $sub:ident, $mul:ident,
         $fmadd:ident, $max:ident, $min:ident, { $($rest:tt)* }) => {
            // SAFETY of every block: each is what the method's own contract allows.
            #[allow(clippy::undocumented_unsafe_blocks)]
            impl Vector for $name {
                const LANES: usize = $lanes;
                #[inline(always)]
                unsafe fn splat(x: f32) -> Self { Self(unsafe { $set1(x) }) }
                #[inline(always)]
                unsafe fn load(p: *const f32) -> Self { Self(unsafe { $loadu(p) }) }
                #[inline(always)]
                unsafe fn store(self, p: *mut f32) { unsafe { $storeu(p, self.0) } }
                #[inline(always)]
                unsafe fn add(self, b: Self) -> Self { Self(unsafe { $add(self.0, b.0) }) }
                #[inline(always)]
                unsafe fn sub(self, b: Self) -> Self { Self(unsafe { $sub(self.0, b.0) }) }
                #[inline(always)]
                unsafe fn mul(self, b: Self) -> Self { Self(unsafe { $mul(self.0, b.0) }) }
                #[inline(always)]
                unsafe fn mul_add(self, b: Self, c: Self) -> Self { Self(unsafe { $fmadd(self.0, b.0, c.0) }) }
                // maxps and minps return their second operand when either is NaN, hence this order.
                #[inline(always)]
                unsafe fn clamp(self, lo: Self, hi: Self) -> Self { Self(unsafe { $min(hi.0, $max(lo.0, self.0)) }) }
                $($rest)*
            }
        };
    }

    vector!(
        F32x8,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        {
            #[inline(always)]
            unsafe fn load_first(p: *const f32, n: usize) -> Self {
                Self(unsafe { _mm256_maskload_ps(p, mask8(n)) })
            }
            #[inline(always)]
            unsafe fn store_first(self, p: *mut f32, n: usize) {
                unsafe { _mm256_maskstore_ps(p, mask8(n), self.0) }
            }
            #[inline(always)]
            unsafe fn interleave(self, b: Self) -> (Self, Self) {
                unsafe {
                    let (lo, hi) = (_mm256_unpacklo_ps(self.0, b.0), _mm256_unpackhi_ps(self.0, b.0));
                    (Self(_mm256_permute2f128_ps(lo, hi, 0x20)), Self(_mm256_permute2f128_ps(lo, hi, 0x31)))
                }
            }
        }
    );

    vector!(
        F32x16,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        {
            #[inline(always)]
            unsafe fn load_first(p: *const f32, n: usize) -> Self {
                Self(unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p) })
            }
            #[inline(always)]
            unsafe fn store_first(self, p: *mut f32, n: usize) {
                unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, self.0) }
            }
            #[inline(always)]
            unsafe fn interleave(self, b: Self) -> (Self, Self) {
                unsafe {
                    let lo = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                    let hi = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                    (
                        Self(_mm512_permutex2var_ps(self.0, lo, b.0)),
                        Self(_mm512_permutex2var_ps(self.0, hi, b.0)),
                    )
                }
            }
        }
    );
}

#[cfg(target_arch = "aarch64")]
pub(super) mod neon {
    use super::Vector;
    use std::arch::aarch64::*;

    /// Four lanes, NEON.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x4(float32x4_t);

    // SAFETY of every block without its own: all AArch64 processors have NEON.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Vector for F32x4 {
        const LANES: usize = 4;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Self(unsafe { vdupq_n_f32(x) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller vouches for four readable values.
            Self(unsafe { vld1q_f32(p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller vouches for four writable values.
            unsafe { vst1q_f32(p, self.0) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            let zero = unsafe { vdupq_n_f32(0.0) };
            // SAFETY: the caller vouches for `n` readable values; each arm reads that many.
            Self(unsafe {
                match n {
                    0 => zero,
                    1 => vld1q_lane_f32::<0>(p, zero),
                    2 => vcombine_f32(vld1_f32(p), vget_low_f32(zero)),
                    3 => vld1q_lane_f32::<2>(p.add(2), vcombine_f32(vld1_f32(p), vget_low_f32(zero))),
                    _ => vld1q_f32(p),
                }
            })
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            // SAFETY: the caller vouches for `n` writable values; each arm writes that many.
            unsafe {
                match n {
                    0 => {}
                    1 => vst1q_lane_f32::<0>(p, self.0),
                    2 => vst1_f32(p, vget_low_f32(self.0)),
                    3 => {
                        vst1_f32(p, vget_low_f32(self.0));
                        vst1q_lane_f32::<2>(p.add(2), self.0);
                    }
                    _ => vst1q_f32(p, self.0),
                }
            }
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            Self(unsafe { vaddq_f32(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            Self(unsafe { vsubq_f32(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            Self(unsafe { vmulq_f32(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            Self(unsafe { vfmaq_f32(c.0, self.0, b.0) })
        }
        // Either operand's NaN comes through fmax and fmin.
        #[inline(always)]
        unsafe fn clamp(self, lo: Self, hi: Self) -> Self {
            Self(unsafe { vminq_f32(vmaxq_f32(self.0, lo.0), hi.0) })
        }
        #[inline(always)]
        unsafe fn interleave(self, b: Self) -> (Self, Self) {
            unsafe { (Self(vzip1q_f32(self.0, b.0)), Self(vzip2q_f32(self.0, b.0))) }
        }
    }
}
