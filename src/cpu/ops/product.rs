//! Matrix products small enough to need no packed filter: attention, and products of two activations.

use super::exp::LANES;
use crate::isa::simd;

/// Rows of a register tile.
const TILE_ROWS: usize = 4;

/// Terms that are added up in registers before they join the total: keeps `f32` sums accurate.
const TERMS: usize = 256;

/// A row-major matrix whose rows lie `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

simd! {
    /// `y[m, n] = sum over k of a[m, k] * b[k, n]`; the rows of `y` lie `stride` apart.
    pub(crate) fn product(
        isa, m: usize, k: usize, n: usize, a: Matrix<'_>, b: Matrix<'_>, y: &mut [f32], stride: usize,
    ) {
        // The last panel of columns overlaps the one before it, so that all panels are full.
        for panel in 0..n.div_ceil(LANES) {
            let column = (panel * LANES).min(n.saturating_sub(LANES));
            let width = n.min(LANES);
            let mut row = 0;
            while row < m {
                let y = &mut y[row * stride + column..];
                let left = m - row;
                row += match (left, width) {
                    (TILE_ROWS.., LANES) => tile::<TILE_ROWS>(a, b, row, column, k, y, stride),
                    (_, LANES) => tile::<1>(a, b, row, column, k, y, stride),
                    _ => narrow(a, b, row, k, &mut y[..width]),
                };
            }
        }
    }
}

/// M rows and [`LANES`] columns of the product; gives M.
#[inline(always)]
fn tile<const M: usize>(
    a: Matrix<'_>,
    b: Matrix<'_>,
    row: usize,
    column: usize,
    k: usize,
    y: &mut [f32],
    stride: usize,
) -> usize {
    let mut total = [[0.0f32; LANES]; M];
    for start in (0..k).step_by(TERMS) {
        let terms = TERMS.min(k - start);
        let rows: [&[f32]; M] = std::array::from_fn(|i| &a.data[(row + i) * a.stride + start..][..terms]);
        let mut sums = [[0.0f32; LANES]; M];
        for term in 0..terms {
            let offset = (start + term) * b.stride + column;
            let panel = &b.data[offset..offset + LANES];
            for i in 0..M {
                let factor = rows[i][term];
                // On a copy, not in place: only so does the compiler keep all sums in registers.
                let mut sum = sums[i];
                for lane in 0..LANES {
                    sum[lane] += factor * panel[lane];
                }
                sums[i] = sum;
            }
        }
        for i in 0..M {
            for lane in 0..LANES {
                total[i][lane] += sums[i][lane];
            }
        }
    }
    for i in 0..M {
        y[i * stride..][..LANES].copy_from_slice(&total[i]);
    }
    M
}

/// One row of a product with fewer than [`LANES`] columns; gives 1.
#[inline(always)]
fn narrow(a: Matrix<'_>, b: Matrix<'_>, row: usize, k: usize, y: &mut [f32]) -> usize {
    let mut total = [0.0f32; LANES];
    for start in (0..k).step_by(TERMS) {
        let mut sums = [0.0f32; LANES];
        for term in start..(start + TERMS).min(k) {
            let factor = a.data[row * a.stride + term];
            let panel = &b.data[term * b.stride..][..y.len()];
            sums.iter_mut().zip(panel).for_each(|(sum, v)| *sum += factor * v);
        }
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    y.copy_from_slice(&total[..y.len()]);
    1
}

/// `y[c, r] = x[r, c]` for the `[rows, columns]` matrix `x`; the rows of `y` lie `stride` apart. Goes by
/// square blocks, so that both sides stay in cache.
pub(crate) fn transpose(x: Matrix<'_>, rows: usize, columns: usize, y: &mut [f32], stride: usize) {
    const BLOCK: usize = 16;
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            for r in row..(row + BLOCK).min(rows) {
                let width = BLOCK.min(columns - column);
                let source = &x.data[r * x.stride + column..][..width];
                for (i, &v) in source.iter().enumerate() {
                    y[(column + i) * stride + r] = v;
                }
            }
        }
    }
}
