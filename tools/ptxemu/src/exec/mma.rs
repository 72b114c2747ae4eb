//! `mma.sync`: dense products of fragments.
//!
//! `D = A B + C` with A 16 x K, B K x 8. Products of f16, bf16 and tf32 are exact in f32 (f64 is not needed);
//! [`super::mma_sum`] adds them up. f16 accumulators are summed in f32 and rounded once, at the end. tf32
//! operands lose their low 13 bits, as on hardware.
//!
//! With `g = lane / 4`, `t = lane % 4`, a 16-bit fragment register is an 8x8 block in row-major order (see
//! [`super::matrix`]): A's registers are the blocks (rows 0-7, k 0-7), (rows 8-15, k 0-7), then the same at k
//! 8-15; B's are blocks of B transposed, (n, k). A C register pair holds columns 2t and 2t+1 of row g (first
//! pair) or g+8 (second). 32-bit (tf32) and 8-bit fragments follow the same plan with 4 and 16 values of k
//! per block row.

use std::marker::PhantomData;

use super::Machine;
use super::lanes::{Isa, isa, store};
use super::matrix::whole_warp;
use super::mma_sum;
use super::number::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::ir::{Exec, Flow, Ins};
use crate::launch::MmaSum;

/// Element type of A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
    /// 8-bit integers.
    Int,
}

/// Turns registers of 16-bit elements into 8x8 blocks of `f32`.
///
/// Columns of the result are kept in the order 0 2 4 6 1 3 5 7 ([`COLUMNS`]): then a row of C is four lanes
/// of its first register followed by four lanes of its second, and the transposition of B falls out of
/// in-lane shuffles.
trait Widen {
    /// A's block, row-major.
    unsafe fn rows(register: &[u32; 32]) -> [f32; 64];
    /// B's block: k by n, n in the order of [`COLUMNS`].
    unsafe fn turned(register: &[u32; 32]) -> [f32; 64];
    /// C (8 x 8) += A (8 x 8) times B, one fused multiply-add after the other in ascending k.
    unsafe fn multiply(a: &[f32; 64], b: &[f32; 64], c: &mut [[f32; 8]; 8]);
    /// As [`Widen::multiply`], but [truncated](MmaSum::Truncated): `together` values of k, a divisor of 8, at
    /// a time.
    unsafe fn multiply_truncated(a: &[f32; 64], b: &[f32; 64], together: usize, c: &mut [[f32; 8]; 8]);
}

/// C (8 x 8) += A (8 x 8 per block) times B, as the launch asks.
#[inline(always)]
unsafe fn accumulate<W: Widen>(
    sum: MmaSum,
    together: usize,
    a: &[[f32; 64]],
    b: &[[f32; 64]],
    c: &mut [[f32; 8]; 8],
) {
    for (a, b) in a.iter().zip(b) {
        // SAFETY: `W` fits the processor, as the caller says.
        unsafe {
            match sum {
                MmaSum::Truncated => W::multiply_truncated(a, b, together, c),
                MmaSum::Nearest => W::multiply(a, b, c),
            }
        }
    }
}

const COLUMNS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Conversion of one 16-bit element, by plain code.
trait Half {
    fn widen(half: u16) -> f32;
}

struct SoftF16;
impl Half for SoftF16 {
    #[inline(always)]
    fn widen(half: u16) -> f32 {
        f16_to_f32(half)
    }
}

struct SoftBf16;
impl Half for SoftBf16 {
    #[inline(always)]
    fn widen(half: u16) -> f32 {
        bf16_to_f32(half)
    }
}

/// [`Widen`] by plain code.
struct Plain<H>(PhantomData<H>);

impl<H: Half> Widen for Plain<H> {
    #[inline(always)]
    unsafe fn rows(register: &[u32; 32]) -> [f32; 64] {
        let mut out = [0.0; 64];
        for l in 0..32 {
            out[2 * l] = H::widen(register[l] as u16);
            out[2 * l + 1] = H::widen((register[l] >> 16) as u16);
        }
        out
    }

    #[inline(always)]
    unsafe fn turned(register: &[u32; 32]) -> [f32; 64] {
        let mut out = [0.0; 64];
        for k in 0..8 {
            for (at, n) in COLUMNS.into_iter().enumerate() {
                out[8 * k + at] = H::widen((register[4 * n + k / 2] >> (16 * (k % 2))) as u16);
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn multiply(a: &[f32; 64], b: &[f32; 64], c: &mut [[f32; 8]; 8]) {
        for (k, r) in (0..8).flat_map(|k| (0..8).map(move |r| (k, r))) {
            for n in 0..8 {
                c[r][n] = a[8 * r + k].mul_add(b[8 * k + n], c[r][n]);
            }
        }
    }

    unsafe fn multiply_truncated(a: &[f32; 64], b: &[f32; 64], together: usize, c: &mut [[f32; 8]; 8]) {
        for (r, n, first) in (0..8)
            .flat_map(|r| (0..8).flat_map(move |n| (0..8).step_by(together).map(move |first| (r, n, first))))
        {
            let factors = (first..first + together).map(|k| (a[8 * r + k], b[8 * k + n]));
            c[r][n] = mma_sum::truncated(factors, c[r][n]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    //! The same with AVX2 and F16C. Only instantiated where both were detected.
    use super::{Widen, mma_sum};
    use std::arch::x86_64::*;
    use std::marker::PhantomData;

    /// Eight 16-bit elements to `f32`.
    pub(super) trait Convert {
        unsafe fn convert(halves: __m128i) -> __m256;
    }

    pub(super) struct F16;
    impl Convert for F16 {
        #[inline(always)]
        unsafe fn convert(halves: __m128i) -> __m256 {
            // SAFETY: f16c was detected.
            unsafe { _mm256_cvtph_ps(halves) }
        }
    }

    pub(super) struct Bf16;
    impl Convert for Bf16 {
        #[inline(always)]
        unsafe fn convert(halves: __m128i) -> __m256 {
            // SAFETY: AVX2 was detected.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) }
        }
    }

    /// [`Widen`] by vector code.
    pub(super) struct Fast<C>(PhantomData<C>);

    impl<C: Convert> Widen for Fast<C> {
        #[inline(always)]
        unsafe fn rows(register: &[u32; 32]) -> [f32; 64] {
            let mut out = [0.0; 64];
            for r in 0..8 {
                // SAFETY: AVX2 was detected; both arrays hold as much from there on.
                unsafe {
                    let halves = _mm_loadu_si128(register.as_ptr().add(4 * r).cast());
                    _mm256_storeu_ps(out.as_mut_ptr().add(8 * r), C::convert(halves));
                }
            }
            out
        }

        #[inline(always)]
        unsafe fn turned(register: &[u32; 32]) -> [f32; 64] {
            let mut out = [0.0; 64];
            // SAFETY: AVX2 was detected; loads and stores stay inside the arrays.
            unsafe {
                // Each load holds the pairs (k 0-1, 2-3, 4-5, 6-7) of two n. A 4x4 transposition in each
                // 128-bit lane gathers n 0 2 4 6 in the low lane and 1 3 5 7 in the high one.
                let row = |n: usize| _mm256_loadu_si256(register.as_ptr().add(4 * n).cast());
                let (a, b, c, d) = (row(0), row(2), row(4), row(6));
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                let pairs = [
                    _mm256_unpacklo_epi64(ab, cd),
                    _mm256_unpackhi_epi64(ab, cd),
                    _mm256_unpacklo_epi64(ef, gh),
                    _mm256_unpackhi_epi64(ef, gh),
                ];
                // Low halves of each lane's four words to its first 8 bytes, high halves to its last.
                let split = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
                let split = _mm256_broadcastsi128_si256(split);
                for (t, pair) in pairs.into_iter().enumerate() {
                    let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(pair, split));
                    let even = C::convert(_mm256_castsi256_si128(halves));
                    let odd = C::convert(_mm256_extracti128_si256::<1>(halves));
                    _mm256_storeu_ps(out.as_mut_ptr().add(16 * t), even);
                    _mm256_storeu_ps(out.as_mut_ptr().add(16 * t + 8), odd);
                }
            }
            out
        }

        #[inline(always)]
        unsafe fn multiply(a: &[f32; 64], b: &[f32; 64], c: &mut [[f32; 8]; 8]) {
            // SAFETY: AVX2 and FMA were detected; loads and stores stay inside the arrays.
            unsafe {
                let mut sums: [__m256; 8] = std::array::from_fn(|r| _mm256_loadu_ps(c[r].as_ptr()));
                for k in 0..8 {
                    let row = _mm256_loadu_ps(b.as_ptr().add(8 * k));
                    for r in 0..8 {
                        sums[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[8 * r + k]), row, sums[r]);
                    }
                }
                for r in 0..8 {
                    _mm256_storeu_ps(c[r].as_mut_ptr(), sums[r]);
                }
            }
        }

        #[inline(always)]
        unsafe fn multiply_truncated(a: &[f32; 64], b: &[f32; 64], together: usize, c: &mut [[f32; 8]; 8]) {
            // SAFETY: AVX2 and FMA were detected.
            unsafe { mma_sum::vector::truncated(a, b, together, c) }
        }
    }
}

/// 16-bit operands. Lists: D registers, A, B, C; `imm` bit 0: two k-blocks (K = 16) instead of one, bit 1:
/// f16 accumulators.
#[inline(always)]
unsafe fn half_body<W: Widen>(m: &mut Machine, i: &Ins) -> Flow {
    if let Err(trouble) = whole_warp(m, "mma") {
        return m.stop(trouble);
    }
    let (blocks, narrow) = (1 + (i.imm & 1) as usize, i.imm & 2 != 0);
    let accumulators = if narrow { 2 } else { 4 };
    let list = &m.env.program.lists[i.x as usize..][..2 * accumulators + 3 * blocks];
    let (a_list, b_list) = (&list[accumulators..], &list[accumulators + 2 * blocks..]);
    let c_list = &list[accumulators + 3 * blocks..];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`), so the slots do; `W`
    // fits the processor.
    unsafe {
        let mut b = [[0.0; 64]; 2];
        for block in 0..blocks {
            b[block] = W::turned(&*m.slot::<u32>(b_list[block]));
        }
        for half in 0..2 {
            let mut a = [[0.0; 64]; 2];
            for block in 0..blocks {
                a[block] = W::rows(&*m.slot::<u32>(a_list[2 * block + half]));
            }
            let mut c = if narrow {
                let words = &*m.slot::<u32>(c_list[half]);
                let mut c = [[0.0; 8]; 8];
                for l in 0..32 {
                    c[l / 4][l % 4] = f16_to_f32(words[l] as u16);
                    c[l / 4][4 + l % 4] = f16_to_f32((words[l] >> 16) as u16);
                }
                c
            } else {
                read_pair(m, &c_list[2 * half..])
            };
            // Measured of sums in f32 alone.
            let sum = if narrow { MmaSum::Nearest } else { m.env.config.mma_sum };
            accumulate::<W>(sum, 8, &a[..blocks], &b[..blocks], &mut c);
            if narrow {
                let mut out = [0; 32];
                for l in 0..32 {
                    let (low, high) = (c[l / 4][l % 4], c[l / 4][4 + l % 4]);
                    out[l] = u32::from(f32_to_f16(low)) | u32::from(f32_to_f16(high)) << 16;
                }
                store(m, list[half], &out);
            } else {
                write_pair(m, &list[2 * half..], &c);
            }
        }
    }
    Flow::Next
}

/// Two accumulator registers to 8 rows, columns in the order of [`COLUMNS`].
#[inline(always)]
unsafe fn read_pair(m: &Machine, slots: &[u32]) -> [[f32; 8]; 8] {
    // SAFETY: the caller passes slots of the program.
    let (low, high) = unsafe { (&*m.slot::<f32>(slots[0]), &*m.slot::<f32>(slots[1])) };
    let mut c = [[0.0; 8]; 8];
    for r in 0..8 {
        c[r][..4].copy_from_slice(&low[4 * r..4 * r + 4]);
        c[r][4..].copy_from_slice(&high[4 * r..4 * r + 4]);
    }
    c
}

#[inline(always)]
unsafe fn write_pair(m: &mut Machine, slots: &[u32], c: &[[f32; 8]; 8]) {
    let (mut low, mut high) = ([0.0_f32; 32], [0.0_f32; 32]);
    for r in 0..8 {
        low[4 * r..4 * r + 4].copy_from_slice(&c[r][..4]);
        high[4 * r..4 * r + 4].copy_from_slice(&c[r][4..]);
    }
    // SAFETY: the caller passes slots of the program.
    unsafe {
        store(m, slots[0], &low);
        store(m, slots[1], &high);
    }
}

/// tf32 operands: A registers (rows g | g+8) x (k t | t+4), B (k t | t+4). `imm` bit 0: K = 8 instead of 4.
#[inline(always)]
unsafe fn tf32_body<W: Widen>(m: &mut Machine, i: &Ins) -> Flow {
    if let Err(trouble) = whole_warp(m, "mma") {
        return m.stop(trouble);
    }
    let blocks = 1 + (i.imm & 1) as usize;
    let list = &m.env.program.lists[i.x as usize..][..8 + 3 * blocks];
    let (a_list, b_list, c_list) = (&list[4..], &list[4 + 2 * blocks..], &list[4 + 3 * blocks..]);
    let cut = |x: u32| f32::from_bits(x & !0x1fff);
    // SAFETY: as in `half_body`.
    unsafe {
        // k runs over t and, with two blocks, t + 4; missing ones are zero.
        let mut b = [0.0; 64];
        for block in 0..blocks {
            let from = &*m.slot::<u32>(b_list[block]);
            for l in 0..32 {
                let column = (l / 4 % 2) * 4 + l / 8;
                b[8 * (l % 4 + 4 * block) + column] = cut(from[l]);
            }
        }
        for half in 0..2 {
            let mut a = [0.0; 64];
            for block in 0..blocks {
                let from = &*m.slot::<u32>(a_list[2 * block + half]);
                for l in 0..32 {
                    a[8 * (l / 4) + l % 4 + 4 * block] = cut(from[l]);
                }
            }
            let mut c = read_pair(m, &c_list[2 * half..]);
            accumulate::<W>(m.env.config.mma_sum, 4, &[a], &[b], &mut c);
            write_pair(m, &list[2 * half..], &c);
        }
    }
    Flow::Next
}

/// 8-bit integer operands with s32 accumulators. `imm` bit 0: K = 32 instead of 16, bits 1 and 2: A and B
/// signed, bit 3: saturate.
unsafe fn int_body(m: &mut Machine, i: &Ins) -> Flow {
    if let Err(trouble) = whole_warp(m, "mma") {
        return m.stop(trouble);
    }
    let blocks = 1 + (i.imm & 1) as usize;
    let list = &m.env.program.lists[i.x as usize..][..8 + 3 * blocks];
    let (a_list, b_list, c_list) = (&list[4..], &list[4 + 2 * blocks..], &list[4 + 3 * blocks..]);
    let byte = |word: u32, at: usize, signed: bool| {
        let byte = (word >> (8 * at)) as u8;
        if signed { i64::from(byte as i8) } else { i64::from(byte) }
    };
    // SAFETY: as in `half_body`.
    unsafe {
        let mut out = [[0_u32; 32]; 4];
        for (reg, out) in out.iter_mut().enumerate() {
            let c = &*m.slot::<u32>(c_list[reg]);
            for l in 0..32 {
                let (row, column) = (l / 4, 2 * (l % 4) + reg % 2);
                let mut sum = i64::from(c[l] as i32);
                for block in 0..blocks {
                    let a = &*m.slot::<u32>(a_list[2 * block + reg / 2]);
                    let b = &*m.slot::<u32>(b_list[block]);
                    for t in 0..4 {
                        for at in 0..4 {
                            sum += byte(a[4 * row + t], at, i.imm & 2 != 0)
                                * byte(b[4 * column + t], at, i.imm & 4 != 0);
                        }
                    }
                }
                *out.get_unchecked_mut(l) = if i.imm & 8 != 0 {
                    sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
                } else {
                    sum as u32
                };
            }
        }
        for (reg, out) in out.iter().enumerate() {
            store(m, list[reg], out);
        }
    }
    Flow::Next
}

macro_rules! versions {
    ($name:ident, $body:ident, $base:ty, $fast:ty) => {
        fn $name() -> Exec {
            unsafe fn base(m: &mut Machine, i: &Ins) -> Flow {
                // SAFETY: the caller keeps the contract of `Exec`.
                unsafe { $body::<$base>(m, i) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
            unsafe fn avx2(m: &mut Machine, i: &Ins) -> Flow {
                // SAFETY: the caller keeps the contract of `Exec`; the features include f16c.
                unsafe { $body::<$fast>(m, i) }
            }
            match isa() {
                Isa::Base => base as Exec,
                #[cfg(target_arch = "x86_64")]
                _ => avx2 as Exec,
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
versions!(f16, half_body, Plain<SoftF16>, vector::Fast<vector::F16>);
#[cfg(not(target_arch = "x86_64"))]
versions!(f16, half_body, Plain<SoftF16>, Plain<SoftF16>);
#[cfg(target_arch = "x86_64")]
versions!(bf16, half_body, Plain<SoftBf16>, vector::Fast<vector::Bf16>);
#[cfg(not(target_arch = "x86_64"))]
versions!(bf16, half_body, Plain<SoftBf16>, Plain<SoftBf16>);
#[cfg(target_arch = "x86_64")]
versions!(tf32, tf32_body, Plain<SoftF16>, vector::Fast<vector::F16>);
#[cfg(not(target_arch = "x86_64"))]
versions!(tf32, tf32_body, Plain<SoftF16>, Plain<SoftF16>);

/// The product for an element type.
pub(crate) fn product(element: Element) -> Exec {
    match element {
        Element::Int => int_body,
        Element::F16 => f16(),
        Element::Bf16 => bf16(),
        Element::Tf32 => tf32(),
    }
}
