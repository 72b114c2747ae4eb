//! The right side of a product, packed: panels of [`COLS`] columns, a panel's steps one after another.

use super::layout::Taps;
use super::{COLS, Factor, PANEL_STEP};
use rayon::prelude::*;

/// Factors of a panel with so many steps.
pub(crate) const fn panel_len<F: Factor>(steps: usize) -> usize {
    steps * PANEL_STEP / size_of::<F>()
}

/// Where a factor lies in its step of a panel, as `[2][16][16][GROUP]`: half of the columns, group of
/// factors, column, factor.
pub(super) const fn place<F: Factor>(factor: usize, col: usize) -> usize {
    ((col / 16 * 16 + factor / F::GROUP) * 16 + col % 16) * F::GROUP + factor % F::GROUP
}

/// Packs KRSC filters `[c_out][taps of `layout`]` into panels, each value of a filter as `right` has it; what
/// a panel has beyond the filters and a step beyond its taps is zero.
pub(super) fn filters<F: Factor>(
    filter: &[f32],
    c_out: usize,
    taps: &Taps,
    packed: &mut [F::Right],
    right: impl Fn(usize, f32) -> F::Right + Sync,
) {
    let depth = taps.depth();
    let len = panel_len::<F>(taps.steps());
    packed[..c_out.div_ceil(COLS) * len].par_chunks_mut(len).enumerate().for_each(|(panel, packed)| {
        packed.fill(bytemuck::Zeroable::zeroed());
        for col in 0..COLS.min(c_out - panel * COLS) {
            let k = panel * COLS + col;
            let filter = &filter[k * depth..][..depth];
            for (step, packed) in packed.chunks_exact_mut(panel_len::<F>(1)).enumerate() {
                let source = taps.factors(step);
                for (factor, &value) in filter[source].iter().enumerate() {
                    packed[place::<F>(factor, col)] = right(k, value);
                }
            }
        }
    });
}
