//! What this machine can do at best, measured in the same run as what is compared with it: multiply-adds in
//! registers, and bytes to and from memory.

use knet::isa::Isa;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

/// The two lines of a roofline, of all threads together.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations a second, in f32.
    pub flops: f64,
    /// Bytes read and written a second, by copying what no cache holds.
    pub bytes: f64,
}

/// Independent sums, each a vector of `LANES`: more than the latency of two units takes to hide.
const SUMS: usize = 12;
const STEPS: usize = 4_000_000;
/// Floats that a thread copies: 64 MiB.
const FLOATS: usize = 16 << 20;
const ROUNDS: usize = 5;

impl Ceilings {
    /// The best of a few rounds on `threads` threads.
    pub fn measure(threads: usize) -> Ceilings {
        let best = |work: &(dyn Fn() -> f64 + Sync)| {
            let round = |_| {
                thread::scope(|scope| {
                    let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                    workers.into_iter().map(|worker| worker.join().expect("a measurement")).sum::<f64>()
                })
            };
            (0..ROUNDS).map(round).fold(0.0, f64::max)
        };
        Ceilings { flops: best(&multiply_adds), bytes: best(&copies) }
    }

    /// The least seconds that these operations and bytes take.
    pub fn least(&self, flops: u64, bytes: u64) -> f64 {
        (flops as f64 / self.flops).max(bytes as f64 / self.bytes)
    }
}

/// Operations a second of one thread.
fn multiply_adds() -> f64 {
    let start = Instant::now();
    let lanes = match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        Isa::Avx512 => unsafe { avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        Isa::Avx2 => unsafe { avx2() },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the processor has the instructions.
        Isa::Neon => unsafe { neon() },
        _ => portable(),
    };
    (2 * lanes * SUMS * STEPS) as f64 / start.elapsed().as_secs_f64()
}

/// Adds products to sums of vectors; gives the lanes of a vector.
macro_rules! sums {
    ($lanes:literal, $splat:expr, $multiply_add:expr) => {{
        let (a, b) = ($splat(black_box(0.999)), $splat(black_box(1e-3)));
        let mut sums = [$splat(1.0); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = $multiply_add(*sum, a, b);
            }
        }
        black_box(sums);
        $lanes
    }};
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512() -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    sums!(16, _mm512_set1_ps, _mm512_fmadd_ps)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2() -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    sums!(8, _mm256_set1_ps, _mm256_fmadd_ps)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon() -> usize {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
    sums!(4, vdupq_n_f32, vfmaq_f32)
}

fn portable() -> usize {
    sums!(4, |x: f32| [x; 4], |sum: [f32; 4], a: [f32; 4], b: [f32; 4]| {
        std::array::from_fn(|lane| sum[lane] * a[lane] + b[lane])
    })
}

/// Bytes a second of one thread.
fn copies() -> f64 {
    let (from, mut to) = (vec![1.0f32; FLOATS], vec![2.0f32; FLOATS]);
    let start = Instant::now();
    black_box(&mut to[..]).copy_from_slice(black_box(&from[..]));
    black_box(&to);
    (2 * size_of_val(&from[..])) as f64 / start.elapsed().as_secs_f64()
}
