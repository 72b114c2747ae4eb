//! Multiply-adds of a multiprocessor a clock, by compute capability: from NVIDIA's tuning guides and data
//! sheets, and what measurements say of them. The one place where such numbers live.

/// Compute capability, such as (9, 0).
type Compute = (u32, u32);

/// f32, on the plain pipes.
pub fn fma(compute: Compute) -> f64 {
    match compute {
        (8, 0) => 64.0,
        _ => 128.0,
    }
}

/// 16-bit types with f32 accumulation, on tensor cores at their best.
pub fn tensor(compute: Compute) -> f64 {
    match compute {
        (8, 0 | 7) => 1024.0,
        (9, 0) => 2048.0,
        (10 | 11, _) => 4096.0,
        // Smaller parts of Ampere, Ada and Blackwell. GeForce reaches half of it with f32 accumulation.
        _ => 512.0,
    }
}

/// The same by `mma.sync` as our kernels issue it: of Hopper's tensor cores 39 % (fitted, with the latencies
/// of `tiles/conv_cost.rs`, to what an H200 took for 1118 candidates of K-Net's convolutions:
/// `benches/results/2026-11-27-h200`; `wgmma` alone reaches the rest). Of later ones 31 %, which is what
/// microbenchmarks of `mma.sync` on an H100 find (62 %, arXiv 2501.12084) over twice the rate.
pub fn mma_sync(compute: Compute) -> f64 {
    match compute {
        (9, _) => 800.0,
        (10 | 11, _) => 1280.0,
        _ => tensor(compute),
    }
}

/// Products with TF32 instead of 16-bit types run at half the rate, and an f32 product takes three.
pub const TF32X3: f64 = 6.0;
