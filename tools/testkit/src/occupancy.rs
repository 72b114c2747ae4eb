//! How many blocks a multiprocessor holds: limits of the architectures, from the CUDA C++ Programming Guide's
//! table of compute capabilities. Each has 65536 registers.

/// Limits of a multiprocessor.
pub struct Architecture {
    /// Compute capability.
    pub compute: (u32, u32),
    /// Most threads of a multiprocessor.
    pub threads: u32,
    /// Most blocks of a multiprocessor.
    pub blocks: u32,
    /// Shared memory of a multiprocessor, in KiB.
    pub shared_kib: u32,
}

/// Architectures that kernels are built for: A100, A10 and RTX 30, Orin, L4 and RTX 40, H100, B200, Thor, RTX
/// 50.
pub const ARCHITECTURES: [Architecture; 8] = [
    Architecture { compute: (8, 0), threads: 2048, blocks: 32, shared_kib: 164 },
    Architecture { compute: (8, 6), threads: 1536, blocks: 16, shared_kib: 100 },
    Architecture { compute: (8, 7), threads: 1536, blocks: 16, shared_kib: 164 },
    Architecture { compute: (8, 9), threads: 1536, blocks: 24, shared_kib: 100 },
    Architecture { compute: (9, 0), threads: 2048, blocks: 32, shared_kib: 228 },
    Architecture { compute: (10, 0), threads: 2048, blocks: 32, shared_kib: 228 },
    Architecture { compute: (11, 0), threads: 1536, blocks: 24, shared_kib: 228 },
    Architecture { compute: (12, 0), threads: 1536, blocks: 24, shared_kib: 100 },
];

/// Position of H100's among them.
pub const H100: usize = 4;

impl Architecture {
    /// Blocks that a multiprocessor holds at once, of so many threads with so many registers each and bytes
    /// of shared memory, static and dynamic.
    pub fn resident(&self, threads: u32, registers: u32, shared: u32) -> u32 {
        let warps = threads.div_ceil(32);
        // Registers are given out to warps in portions of 256; every block takes 1 KiB of shared memory
        // besides its own.
        let by_registers = 65_536 / (warps * (32 * registers).next_multiple_of(256)).max(1);
        let by_shared = self.shared_kib * 1024 / (shared + 1024);
        by_registers.min(by_shared).min(self.threads / (warps * 32)).min(self.blocks)
    }

    /// Threads of those blocks, in percent of the multiprocessor's limit.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> u32 {
        100 * self.resident(threads, registers, shared) * threads.next_multiple_of(32) / self.threads
    }

    /// As compilers call it, such as `sm_80`.
    pub fn name(&self) -> String {
        format!("sm_{}{}", self.compute.0, self.compute.1)
    }
}
