//! `mma.sync`: dense products of fragments.
//!
//! `D = A B + C` with A 16 x K, B K x 8. Products of f16, bf16 and tf32 are exact in f32 (f64 is not needed); each element is summed
//! in f32 in ascending k, one fused multiply-add at a time, starting from C. Hardware sums in an unspecified order with truncation, so
//! results agree to a few units of the accumulator's last place, not to the bit. f16 accumulators are rounded once, at the end.
//! tf32 operands lose their low 13 bits, as on hardware.
//!
//! With `g = lane / 4`, `t = lane % 4`, a 16-bit fragment register is an 8x8 block in row-major order (see [`super::matrix`]): A's
//! registers are the blocks (rows 0-7, k 0-7), (rows 8-15, k 0-7), then the same at k 8-15; B's are blocks of B transposed, (n, k).
//! A C register pair holds columns 2t and 2t+1 of row g (first pair) or g+8 (second). 32-bit (tf32) and 8-bit fragments follow the
//! same plan with 4 and 16 values of k per block row.

use super::Machine;
use super::lanes::{Isa, isa, store};
use super::matrix::whole_warp;
use super::number::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::ir::{Exec, Flow, Ins};

/// Element type of A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
    /// 8-bit integers.
    Int,
}

/// Turns a register of 16-bit elements into its 8x8 block.
trait Widen {
    unsafe fn halves(register: &[u32; 32]) -> [f32; 64];
}

struct SoftF16;
impl Widen for SoftF16 {
    #[inline(always)]
    unsafe fn halves(register: &[u32; 32]) -> [f32; 64] {
        let mut out = [0.0; 64];
        for l in 0..32 {
            out[2 * l] = f16_to_f32(register[l] as u16);
            out[2 * l + 1] = f16_to_f32((register[l] >> 16) as u16);
        }
        out
    }
}

struct WideBf16;
impl Widen for WideBf16 {
    #[inline(always)]
    unsafe fn halves(register: &[u32; 32]) -> [f32; 64] {
        let mut out = [0.0; 64];
        for l in 0..32 {
            out[2 * l] = bf16_to_f32(register[l] as u16);
            out[2 * l + 1] = f32::from_bits(register[l] & 0xffff_0000);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
struct HardF16;
#[cfg(target_arch = "x86_64")]
impl Widen for HardF16 {
    #[inline(always)]
    unsafe fn halves(register: &[u32; 32]) -> [f32; 64] {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
        let mut out = [0.0; 64];
        for b in 0..8 {
            // SAFETY: only instantiated where f16c was detected; both arrays hold eight elements from there on.
            unsafe {
                let half = _mm_loadu_si128(register.as_ptr().add(4 * b).cast());
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * b), _mm256_cvtph_ps(half));
            }
        }
        out
    }
}

/// Accumulates `rows x 8` += A (`rows x K`, given as K/8 blocks per 8 rows) times B (8 n by K, blocks of 8).
#[inline(always)]
fn multiply<const BLOCKS: usize>(a: &[[f32; 64]; BLOCKS], b: &[[f32; 64]; BLOCKS], c: &mut [[f32; 8]; 8]) {
    for block in 0..BLOCKS {
        let (a, b) = (&a[block], &b[block]);
        for k in 0..8 {
            let row: &[f32; 8] = b[8 * k..8 * k + 8].try_into().expect("eight values");
            for r in 0..8 {
                for n in 0..8 {
                    c[r][n] = a[8 * r + k].mul_add(row[n], c[r][n]);
                }
            }
        }
    }
}

/// (n, k) to (k, n).
#[inline(always)]
fn turn(b: &[f32; 64]) -> [f32; 64] {
    let mut out = [0.0; 64];
    for n in 0..8 {
        for k in 0..8 {
            out[8 * k + n] = b[8 * n + k];
        }
    }
    out
}

/// 16-bit operands. Lists: D registers, A, B, C; `imm` bit 0: two k-blocks (K = 16) instead of one, bit 1: f16 accumulators.
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
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`), so the slots do; `W` fits the processor.
    unsafe {
        let mut b = [[0.0; 64]; 2];
        for block in 0..blocks {
            b[block] = turn(&W::halves(&*m.slot::<u32>(b_list[block])));
        }
        for half in 0..2 {
            let mut a = [[0.0; 64]; 2];
            for block in 0..blocks {
                a[block] = W::halves(&*m.slot::<u32>(a_list[2 * block + half]));
            }
            let mut c = [[0.0_f32; 8]; 8];
            if narrow {
                let from = SoftF16::halves(&*m.slot::<u32>(c_list[half]));
                for r in 0..8 {
                    c[r].copy_from_slice(&from[8 * r..8 * r + 8]);
                }
            } else {
                c = read_pair(m, &c_list[2 * half..]);
            }
            if blocks == 2 {
                multiply::<2>(&a, &b, &mut c);
            } else {
                multiply::<1>(&[a[0]], &[b[0]], &mut c);
            }
            if narrow {
                let mut out = [0; 32];
                for l in 0..32 {
                    let (low, high) = (c[l / 4][2 * (l % 4)], c[l / 4][2 * (l % 4) + 1]);
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

/// Two accumulator registers to 8 rows.
#[inline(always)]
unsafe fn read_pair(m: &Machine, slots: &[u32]) -> [[f32; 8]; 8] {
    // SAFETY: the caller passes slots of the program.
    let (low, high) = unsafe { (&*m.slot::<f32>(slots[0]), &*m.slot::<f32>(slots[1])) };
    let mut c = [[0.0; 8]; 8];
    for l in 0..32 {
        c[l / 4][2 * (l % 4)] = low[l];
        c[l / 4][2 * (l % 4) + 1] = high[l];
    }
    c
}

#[inline(always)]
unsafe fn write_pair(m: &mut Machine, slots: &[u32], c: &[[f32; 8]; 8]) {
    let (mut low, mut high) = ([0.0_f32; 32], [0.0_f32; 32]);
    for l in 0..32 {
        low[l] = c[l / 4][2 * (l % 4)];
        high[l] = c[l / 4][2 * (l % 4) + 1];
    }
    // SAFETY: the caller passes slots of the program.
    unsafe {
        store(m, slots[0], &low);
        store(m, slots[1], &high);
    }
}

/// tf32 operands: A registers (rows g | g+8) x (k t | t+4), B (k t | t+4). `imm` bit 0: K = 8 instead of 4.
#[inline(always)]
unsafe fn tf32_body(m: &mut Machine, i: &Ins) -> Flow {
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
                b[8 * (l % 4 + 4 * block) + l / 4] = cut(from[l]);
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
            multiply::<1>(&[a], &[b], &mut c);
            write_pair(m, &list[2 * half..], &c);
        }
    }
    Flow::Next
}

/// 8-bit integer operands with s32 accumulators. `imm` bit 0: K = 32 instead of 16, bits 1 and 2: A and B signed, bit 3: saturate.
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
versions!(f16, half_body, SoftF16, HardF16);
#[cfg(not(target_arch = "x86_64"))]
versions!(f16, half_body, SoftF16, SoftF16);
versions!(bf16, half_body, WideBf16, WideBf16);
super::lanes::multiversion!(/// The tf32 product.
    tf32, tf32_body);

/// The product for an element type.
pub(crate) fn product(element: Element) -> Exec {
    match element {
        Element::Int => int_body,
        Element::F16 => f16(),
        Element::Bf16 => bf16(),
        Element::Tf32 => tf32(),
    }
}
