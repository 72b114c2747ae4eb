//! AVX-VNNI: four factors of 8 columns an instruction, on processors with vectors of 256 bits.

use super::{COLS, Engine, PANEL_STEP, Tile};
use std::arch::x86_64::*;

pub(crate) struct AvxVnni;

impl Engine<u8> for AvxVnni {
    unsafe fn tile(tile: &Tile<'_>) {
        /// Four registers a row, of 16, beside one for the row's factors.
        const MOST: usize = 3;
        let mut row = 0;
        while row < tile.rows {
            // SAFETY: the caller's contract; all rows of a tile can be read, its sums written.
            unsafe {
                match tile.rows - row {
                    1 => rows::<1>(tile, row),
                    2 => rows::<2>(tile, row),
                    _ => rows::<MOST>(tile, row),
                }
            }
            row += MOST;
        }
    }
}

/// Rows `first..first + R` of the tile.
///
/// # Safety
/// The processor has the features; else as [`Engine::tile`], and the rows lie in the tile.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn rows<const R: usize>(tile: &Tile<'_>, first: usize) {
    const PARTS: [usize; 4] = [0, 8, 16, 24];
    // SAFETY: the caller's contract.
    unsafe {
        let sums = tile.sums.add(first * COLS);
        let mut acc = [[_mm256_setzero_si256(); 4]; R];
        if tile.accumulate {
            for (row, acc) in acc.iter_mut().enumerate() {
                for (acc, col) in acc.iter_mut().zip(PARTS) {
                    *acc = _mm256_loadu_si256(sums.add(row * COLS + col).cast());
                }
            }
        }
        let mut b = tile.b;
        for &offset in tile.offsets {
            let mut a = tile.a.add(offset as usize + first * tile.stride);
            for four in 0..16 {
                let mut groups = [_mm256_setzero_si256(); R];
                for (row, group) in groups.iter_mut().enumerate() {
                    *group = _mm256_set1_epi32(a.add(row * tile.stride).cast::<i32>().read_unaligned());
                }
                for (part, col) in PARTS.into_iter().enumerate() {
                    let b = b.add(col / 16 * (PANEL_STEP / 2) + four * 64 + col % 16 * 4);
                    let b = _mm256_loadu_si256(b.cast());
                    for (acc, &group) in acc.iter_mut().zip(&groups) {
                        acc[part] = _mm256_dpbusd_avx_epi32(acc[part], group, b);
                    }
                }
                a = a.add(4);
            }
            b = b.add(PANEL_STEP);
        }
        for (row, acc) in acc.iter().enumerate() {
            for (part, col) in PARTS.into_iter().enumerate() {
                _mm256_storeu_si256(sums.add(row * COLS + col).cast(), acc[part]);
            }
        }
    }
}
