//! Loops that the gradients of the norms share. Rows are pixels, columns are channels.
//!
//! The gradient of every norm is affine in `dy` and `x` with coefficients per channel, which follow from a
//! few sums over columns. These are taken in double precision, for the reasons given in
//! [`normalise`](super::normalise).

use super::Isa;
use crate::isa::simd;

/// `dx = a * dy + b * (x - mean) + d` with operands per channel.
#[derive(Clone, Copy)]
pub(crate) struct AffineGrad<'a> {
    mean: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    d: &'a [f32],
}

impl<'a> AffineGrad<'a> {
    /// From the four operands one after the other.
    pub(crate) fn new(coefficients: &'a [f32]) -> Self {
        let mut quarters = coefficients.chunks_exact((coefficients.len() / 4).max(1));
        let [mean, a, b, d] = std::array::from_fn(|_| quarters.next().unwrap_or_default());
        AffineGrad { mean, a, b, d }
    }

    /// Four runs of equal length.
    pub(crate) fn quarters_mut<T>(all: &mut [T]) -> [&mut [T]; 4] {
        let mut quarters = all.chunks_exact_mut((all.len() / 4).max(1));
        std::array::from_fn(|_| quarters.next().unwrap_or_default())
    }

    /// Whole rows.
    pub(crate) fn run(&self, isa: Isa, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        affine_grad(isa, x, dy, *self, dx);
    }
}

simd! {
    fn affine_grad(isa, x: &[f32], dy: &[f32], by: AffineGrad<'_>, dx: &mut [f32]) {
        let channels = by.mean.len().max(1);
        let AffineGrad { mean, a, b, d } = by;
        let (a, b, d) = (&a[..mean.len()], &b[..mean.len()], &d[..mean.len()]);
        let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(channels)) {
            for c in 0..channels {
                dx[c] = a[c] * dy[c] + (b[c] * (x[c] - mean[c]) + d[c]);
            }
        }
    }
}

/// Rows that are added before the accumulators are written again.
const ROWS: usize = 4;

simd! {
    /// Sums of `dy`, `dy * x`, `x` and `x * x` of every column over all rows, four runs of C doubles.
    pub(crate) fn product_sums(isa, x: &[f32], dy: &[f32], sums: &mut [f64]) {
        sums.fill(0.0);
        let channels = sums.len() / 4;
        let [first, products, linear, squares] = AffineGrad::quarters_mut(sums);
        let (products, linear) = (&mut products[..first.len()], &mut linear[..first.len()]);
        let squares = &mut squares[..first.len()];
        let mut blocks = x.chunks_exact(ROWS * channels.max(1));
        let mut grads = dy.chunks_exact(ROWS * channels.max(1));
        for (x, dy) in (&mut blocks).zip(&mut grads) {
            let xs: [&[f32]; ROWS] = std::array::from_fn(|i| &x[i * channels..][..first.len()]);
            let dys: [&[f32]; ROWS] = std::array::from_fn(|i| &dy[i * channels..][..first.len()]);
            for c in 0..first.len() {
                let mut total = [0.0; 4];
                for i in 0..ROWS {
                    let (x, dy) = (f64::from(xs[i][c]), f64::from(dys[i][c]));
                    total[0] += dy;
                    total[1] += dy * x;
                    total[2] += x;
                    total[3] += x * x;
                }
                first[c] += total[0];
                products[c] += total[1];
                linear[c] += total[2];
                squares[c] += total[3];
            }
        }
        let rest = blocks.remainder().chunks_exact(channels.max(1));
        for (x, dy) in rest.zip(grads.remainder().chunks_exact(channels.max(1))) {
            for c in 0..first.len() {
                let (x, dy) = (f64::from(x[c]), f64::from(dy[c]));
                first[c] += dy;
                products[c] += dy * x;
                linear[c] += x;
                squares[c] += x * x;
            }
        }
    }
}

simd! {
    /// Sums of `dy` and of `dy * (x - mean)` of every column over all rows, two runs of C doubles.
    pub(crate) fn centred_sums(isa, x: &[f32], dy: &[f32], mean: &[f32], sums: &mut [f64]) {
        sums.fill(0.0);
        let channels = mean.len();
        let (first, products) = sums.split_at_mut(channels);
        let products = &mut products[..channels];
        for (x, dy) in x.chunks_exact(channels.max(1)).zip(dy.chunks_exact(channels.max(1))) {
            for c in 0..channels {
                first[c] += f64::from(dy[c]);
                products[c] += f64::from(dy[c] * (x[c] - mean[c]));
            }
        }
    }
}
