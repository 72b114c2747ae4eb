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

/// The same by `mma.sync`: on Hopper and later 62 % of the tensor cores of an H100 (arXiv 2501.12084).
pub fn mma_sync(compute: Compute) -> f64 {
    match compute {
        (9..=11, _) => 1280.0,
        _ => tensor(compute),
    }
}

/// Products with TF32 instead of 16-bit types run at half the rate, and an f32 product takes three.
pub const TF32X3: f64 = 6.0;
