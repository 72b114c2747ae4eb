//! AMX: the processor multiplies whole tiles of 16 rows of 64 bytes. A tile of ours is two of its rows by two
//! of its columns, so that each of the four that a step loads is used twice.
//!
//! One block of assembly computes a tile, since the compiler does not know the tile registers: nothing in
//! them lives longer than the block.

use super::{COLS, Engine, PANEL_STEP, ROWS, STEP, Tile, Vectors};
use half::bf16;
use std::arch::asm;

pub(crate) struct Amx;

/// Sizes of the eight tile registers, as `ldtilecfg` reads them: 16 rows of 64 bytes each.
#[repr(align(64))]
struct Sizes([u8; 64]);

const SIZES: Sizes = {
    let mut sizes = [0; 64];
    sizes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        sizes[16 + 2 * tile] = 64;
        sizes[48 + tile] = 16;
        tile += 1;
    }
    Sizes(sizes)
};

/// Keeps neighbouring instructions on tiles out of one group of six, which a processor takes up at a time.
/// Where such neighbours share a group, a step of four products took 120 ns on a busy host (Sapphire Rapids;
/// another thread on the same core, as it seems), and 80 with this; on a quiet core it takes 31 either way.
macro_rules! apart {
    () => {
        ".rept 8\nnop\n.endr"
    };
}

/// The engine for factors that one instruction multiplies.
macro_rules! engine {
    ($factor:ty, $multiply:literal) => {
        impl Engine<$factor> for Amx {
            const VECTORS: Vectors = Vectors { avx512: true, avx512_bf16: true };

            #[inline(always)]
            unsafe fn begin() {
                // SAFETY: the processor has AMX, and the system lets the process use it (`Dot::detect`).
                unsafe { asm!("ldtilecfg [{}]", in(reg) SIZES.0.as_ptr(), options(nostack, readonly)) };
            }

            #[inline(always)]
            unsafe fn end() {
                // SAFETY: as above. Without it every switch of threads would save eight kilobytes.
                unsafe { asm!("tilerelease", options(nostack, nomem)) };
            }

            #[inline(always)]
            unsafe fn tile(tile: &Tile<'_>) {
                const { assert!(ROWS == 32 && COLS == 32 && STEP == 64 && PANEL_STEP == 2048) };
                if tile.offsets.is_empty() {
                    if !tile.accumulate {
                        // SAFETY: a tile's sums.
                        unsafe { tile.sums.write_bytes(0, ROWS * COLS) };
                    }
                    return;
                }
                // SAFETY: reads all 32 rows at the offsets and the steps of the panel, reads and writes the
                // sums: the caller's contract. `begin` configured the tile registers, whose contents are the
                // block's own.
                unsafe {
                    asm!(
                        "test {accumulate:e}, {accumulate:e}",
                        "jnz 2f",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "jmp 3f",
                        "2:",
                        "tileloadd tmm0, [{sums} + {row}]",
                        "tileloadd tmm1, [{sums} + {row} + 64]",
                        "tileloadd tmm2, [{sums} + {row} + 2048]",
                        "tileloadd tmm3, [{sums} + {row} + 2112]",
                        "3:",
                        "mov {at:e}, dword ptr [{offsets}]",
                        "add {at}, {a}",
                        "tileloadd tmm4, [{at} + {stride}]",
                        apart!(),
                        "tileloadd tmm6, [{b} + {line}]",
                        apart!(),
                        "lea {at}, [{at} + 8 * {stride}]",
                        "lea {at}, [{at} + 8 * {stride}]",
                        "tileloadd tmm5, [{at} + {stride}]",
                        apart!(),
                        concat!($multiply, " tmm0, tmm4, tmm6"),
                        apart!(),
                        "tileloadd tmm7, [{b} + {line} + 1024]",
                        apart!(),
                        concat!($multiply, " tmm2, tmm5, tmm6"),
                        apart!(),
                        concat!($multiply, " tmm1, tmm4, tmm7"),
                        apart!(),
                        concat!($multiply, " tmm3, tmm5, tmm7"),
                        apart!(),
                        "add {b}, 2048",
                        "add {offsets}, 4",
                        "dec {steps}",
                        "jnz 3b",
                        "tilestored [{sums} + {row}], tmm0",
                        "tilestored [{sums} + {row} + 64], tmm1",
                        "tilestored [{sums} + {row} + 2048], tmm2",
                        "tilestored [{sums} + {row} + 2112], tmm3",
                        accumulate = in(reg) u32::from(tile.accumulate),
                        sums = in(reg) tile.sums,
                        row = in(reg) 4 * COLS,
                        a = in(reg) tile.a,
                        stride = in(reg) tile.stride,
                        at = out(reg) _,
                        line = in(reg) STEP,
                        b = inout(reg) tile.b => _,
                        offsets = inout(reg) tile.offsets.as_ptr() => _,
                        steps = inout(reg) tile.offsets.len() => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        }
    };
}
engine!(bf16, "tdpbf16ps");
engine!(u8, "tdpbusd");
