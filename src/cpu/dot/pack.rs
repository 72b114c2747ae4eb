//! The right side of a product, packed: panels of [`COLS`] columns, a panel's steps one after another.

use super::layout::Taps;
use super::{COLS, PANEL_STEP, STEP};
use crate::cpu::element::Element;
use half::bf16;
use rayon::prelude::*;

/// Factors of a step.
pub(super) const FACTORS: usize = STEP / size_of::<bf16>();

/// Values of bf16 of a panel with so many steps.
pub(crate) const fn panel_len(steps: usize) -> usize {
    steps * PANEL_STEP / size_of::<bf16>()
}

/// Where a factor lies in its step of a panel, as `[2][16][16][2]`: half of the columns, pair of factors,
/// column, factor.
pub(super) const fn place(factor: usize, col: usize) -> usize {
    ((col / 16 * 16 + factor / 2) * 16 + col % 16) * 2 + factor % 2
}

/// Packs KRSC filters `[c_out][taps of `layout`]` into panels, rounded to bf16; what a panel has beyond the
/// filters and a step beyond its taps is zero.
pub(super) fn filters(filter: &[f32], c_out: usize, taps: &Taps, packed: &mut [bf16]) {
    let depth = taps.depth();
    let len = panel_len(taps.steps());
    packed[..c_out.div_ceil(COLS) * len].par_chunks_mut(len).enumerate().for_each(|(panel, packed)| {
        packed.fill(bf16::ZERO);
        for col in 0..COLS.min(c_out - panel * COLS) {
            let filter = &filter[(panel * COLS + col) * depth..][..depth];
            for (step, packed) in packed.chunks_exact_mut(panel_len(1)).enumerate() {
                let source = taps.factors(step);
                for (factor, &value) in filter[source].iter().enumerate() {
                    packed[place(factor, col)] = bf16::narrow(value);
                }
            }
        }
    });
}
