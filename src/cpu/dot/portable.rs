//! The plain loop: the truth beside the other engines, and what tests run where there is no other.

use super::{COLS, Engine, PANEL_STEP, STEP, Tile};
use crate::cpu::element::Element;
use half::bf16;

pub(crate) struct Portable;

impl Engine<bf16> for Portable {
    unsafe fn tile(tile: &Tile<'_>) {
        for row in 0..tile.rows {
            // SAFETY: the caller's contract: a tile's sums, rows and panel.
            unsafe {
                let sums = &mut *tile.sums.add(row * COLS).cast::<[f32; COLS]>();
                if !tile.accumulate {
                    sums.fill(0.0);
                }
                for (step, &offset) in tile.offsets.iter().enumerate() {
                    let a = tile.a.add(offset as usize + row * tile.stride).cast::<[bf16; STEP / 2]>();
                    let b = tile.b.add(step * PANEL_STEP).cast::<[[[[bf16; 2]; 16]; 16]; 2]>();
                    let (a, b) = (a.read_unaligned(), &*b);
                    for (pair, a) in a.as_chunks::<2>().0.iter().enumerate() {
                        for (col, sum) in sums.iter_mut().enumerate() {
                            let b = b[col / 16][pair][col % 16];
                            *sum += a[0].widen() * b[0].widen();
                            *sum += a[1].widen() * b[1].widen();
                        }
                    }
                }
            }
        }
    }
}

impl Engine<u8> for Portable {
    unsafe fn tile(tile: &Tile<'_>) {
        for row in 0..tile.rows {
            // SAFETY: the caller's contract: a tile's sums, rows and panel.
            unsafe {
                let sums = &mut *tile.sums.add(row * COLS).cast::<[i32; COLS]>();
                if !tile.accumulate {
                    sums.fill(0);
                }
                for (step, &offset) in tile.offsets.iter().enumerate() {
                    let a = tile.a.add(offset as usize + row * tile.stride).cast::<[u8; STEP]>();
                    let b = tile.b.add(step * PANEL_STEP).cast::<[[[[i8; 4]; 16]; 16]; 2]>();
                    let (a, b) = (a.read_unaligned(), &*b);
                    for (four, a) in a.as_chunks::<4>().0.iter().enumerate() {
                        for (col, sum) in sums.iter_mut().enumerate() {
                            let b = b[col / 16][four][col % 16];
                            *sum += (0..4).map(|i| i32::from(a[i]) * i32::from(b[i])).sum::<i32>();
                        }
                    }
                }
            }
        }
    }
}
