//! GPUs that plans are printed for without one at hand, from what NVIDIA publishes.
//!
//! Multiprocessors, boost clock, L2 cache and bandwidth: the data sheets and white papers named beside each.
//! Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". A test holds
//! clock and multiprocessors to the peak rates of the same data sheets.

use super::Caps;

/// A GPU by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Short name, as typed.
    pub name: &'static str,
    /// The product.
    pub title: &'static str,
    /// What it can do.
    pub caps: Caps,
    /// Memory in GB, as it is sold.
    pub memory_gb: u32,
}

impl Gpu {
    /// What a driver may say of this GPU where it differs from the data sheet: the clock, which is the
    /// highest it allows (1980 MHz of an H100 whose tensor cores are sold at 1830), and the memory's. Kernels
    /// are chosen by bandwidth a clock alone of these: it is that of the data sheet first, then up to 15 %
    /// less and more.
    pub fn reported(&self) -> Vec<Caps> {
        let percent = std::iter::once(100).chain((85..=115).filter(|&percent| percent != 100));
        let caps = |percent| Caps { bandwidth_gbs: self.caps.bandwidth_gbs * percent / 100, ..self.caps };
        percent.map(caps).collect()
    }
}

/// Compute capability, multiprocessors, boost clock in MHz, L2 cache in KiB, bandwidth in GB/s.
const fn caps(
    compute: (u32, u32),
    multiprocessors: u32,
    clock_mhz: u32,
    l2_kib: u32,
    bandwidth_gbs: u32,
) -> Caps {
    // KiB of shared memory of a multiprocessor; a block may have one less.
    let shared_kib = match compute {
        (8, 0 | 7) => 164,
        (9..=11, _) => 228,
        _ => 100,
    };
    Caps {
        compute,
        multiprocessors,
        shared_per_block: (shared_kib - 1) << 10,
        shared_per_multiprocessor: shared_kib << 10,
        l2_bytes: l2_kib << 10,
        clock_mhz,
        bandwidth_gbs,
    }
}

const fn gpu(name: &'static str, title: &'static str, caps: Caps, memory_gb: u32) -> Gpu {
    Gpu { name, title, caps, memory_gb }
}

/// All of them.
pub const GPUS: [Gpu; 8] = [
    // H100 Tensor Core GPU Architecture white paper, table of the SXM5.
    gpu("h100", "H100 SXM", Caps::H100, 80),
    // H200 data sheet: an H100 SXM with HBM3e.
    gpu("h200", "H200 SXM", Caps { bandwidth_gbs: 4800, ..Caps::H100 }, 141),
    // A100 Tensor Core GPU Architecture white paper; bandwidth of the 80 GB SXM from its data sheet.
    gpu("a100", "A100 SXM 80 GB", caps((8, 0), 108, 1410, 40 << 10, 2039), 80),
    // A10 data sheet; Ampere GA102 white paper.
    gpu("a10", "A10", caps((8, 6), 72, 1695, 6 << 10, 600), 24),
    // L4 data sheet; Ada GPU Architecture white paper (AD104).
    gpu("l4", "L4", caps((8, 9), 58, 2040, 48 << 10, 300), 24),
    // L40S data sheet; Ada GPU Architecture white paper (AD102).
    gpu("l40s", "L40S", caps((8, 9), 142, 2520, 96 << 10, 864), 48),
    // Ada GPU Architecture white paper.
    gpu("rtx4090", "GeForce RTX 4090", caps((8, 9), 128, 2520, 72 << 10, 1008), 24),
    // Jetson AGX Orin Series technical brief, 64 GB module.
    gpu("orin", "Jetson AGX Orin 64 GB", caps((8, 7), 16, 1300, 4 << 10, 204), 64),
];

/// The GPU of this name, whatever the case.
///
/// # Errors
/// A sentence with all names.
pub fn find(name: &str) -> Result<&'static Gpu, String> {
    let found = GPUS.iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("`{name}` is none of {}", GPUS.map(|gpu| gpu.name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::gpu::Precision;
    use crate::cuda::gpu::roofline::peak;

    /// TFLOP/s of the same data sheets: dense f16 on tensor cores, and f32. The RTX 4090's is with f16
    /// accumulation; the Orin's is a quarter of its 170 sparse INT8 TOPS.
    #[test]
    fn peaks_are_those_of_the_data_sheets() {
        let published = [
            ("h100", 989.4, 66.9),
            ("h200", 989.4, 66.9),
            ("a100", 312.0, 19.5),
            ("a10", 125.0, 31.2),
            ("l4", 121.0, 30.3),
            ("l40s", 362.05, 91.6),
            ("rtx4090", 330.3, 82.6),
            ("orin", 42.5, 5.3),
        ];
        assert_eq!(GPUS.map(|gpu| gpu.name), published.map(|(name, ..)| name));
        for (name, half, single) in published {
            let caps = &find(name).unwrap().caps;
            for (precision, wanted) in [(Precision::F16, half), (Precision::F32, single)] {
                let found = peak(caps, precision) / 1e12;
                // An H100's f32 pipes are sold at 1980 MHz, its tensor cores at 1830; an L40S's tensor cores
                // at 2490.
                let tolerance =
                    if (caps.compute, precision) == ((9, 0), Precision::F32) { 0.08 } else { 0.015 };
                assert!((found / wanted - 1.0).abs() < tolerance, "{name} {}: {found}", precision.name());
            }
        }
    }

    #[test]
    fn what_drivers_report_is_around_the_data_sheet() {
        let h100 = find("h100").unwrap();
        let rate = |caps: &Caps| f64::from(caps.bandwidth_gbs) / f64::from(caps.clock_mhz);
        let rates: Vec<f64> = h100.reported().iter().map(rate).collect();
        assert_eq!((rates.len(), rates[0]), (31, rate(&h100.caps)));
        // 2619 MHz of double data rate on 5120 bits, 1980 MHz.
        let driver = rate(&Caps { clock_mhz: 1980, bandwidth_gbs: 3352, ..Caps::H100 });
        assert!(rates.iter().any(|rate| (rate / driver - 1.0).abs() < 0.01));
        assert!(h100.reported().iter().all(|caps| Caps { bandwidth_gbs: 3350, ..*caps } == Caps::H100));
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find("RTX4090").map(|gpu| gpu.title), Ok("GeForce RTX 4090"));
        assert_eq!(find("h100").map(|gpu| gpu.caps), Ok(Caps::H100));
        let error = find("tpu").unwrap_err();
        assert!(error.starts_with("`tpu` is none of h100, h200, "), "{error}");
    }
}
