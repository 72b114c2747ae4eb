//! The transforms of F(2, 3) and F(4, 3) (Winograd; Lavin and Gray 2016), derived as Toom-Cook interpolation.
//!
//! For points `p_0 .. p_{n-2}` and infinity, with `n = OUT + 2`:
//! * `B^T` row i holds the coefficients of `prod_{j != i} (x - p_j)`, the last row those of
//!   `prod_j (x - p_j)`;
//! * `G` row i is `[1, p_i, p_i^2] / prod_{j != i} (p_i - p_j)`, the last row `[0, 0, 1]`;
//! * `A^T` row j is `[p_0^j, p_1^j, ...]`, with a 1 for infinity in the last row alone.
//!
//! In two dimensions `Y = A^T ((G g G^T) . (B^T d B)) A`.

use crate::cpu::gemm::Vector;

/// One-dimensional transforms of a scheme with tiles of `IN = OUT + 2` inputs.
pub(crate) trait Scheme<const IN: usize, const OUT: usize>: Sync {
    /// The finite points.
    const POINTS: &'static [f64];

    /// `B^T d`.
    ///
    /// # Safety
    /// The processor has the features of `V`.
    unsafe fn input<V: Vector>(d: [V; IN]) -> [V; IN];

    /// `A^T m`.
    ///
    /// # Safety
    /// The processor has the features of `V`.
    unsafe fn output<V: Vector>(m: [V; IN]) -> [V; OUT];

    /// `A y`: the adjoint of [`Scheme::output`], for gradients.
    ///
    /// # Safety
    /// The processor has the features of `V`.
    unsafe fn output_adjoint<V: Vector>(y: [V; OUT]) -> [V; IN];

    /// `G`, in f64.
    fn filter() -> [[f64; 3]; IN] {
        let p = Self::POINTS;
        std::array::from_fn(|i| match p.get(i) {
            Some(&x) => {
                let others = p.iter().enumerate().filter(|&(j, _)| j != i);
                let scale: f64 = others.map(|(_, &y)| x - y).product();
                [1.0 / scale, x / scale, x * x / scale]
            }
            None => [0.0, 0.0, 1.0],
        })
    }
}

/// F(2, 3) at 0, 1, -1.
pub(crate) struct F2;

impl Scheme<4, 2> for F2 {
    const POINTS: &'static [f64] = &[0.0, 1.0, -1.0];

    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3]: [V; 4]) -> [V; 4] {
        // SAFETY: the caller's contract.
        unsafe { [d2.sub(d0), d2.add(d1), d2.sub(d1), d3.sub(d1)] }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3]: [V; 4]) -> [V; 2] {
        // SAFETY: the caller's contract.
        unsafe { [m0.add(m1).add(m2), m1.sub(m2).add(m3)] }
    }

    #[inline(always)]
    unsafe fn output_adjoint<V: Vector>([y0, y1]: [V; 2]) -> [V; 4] {
        // SAFETY: the caller's contract.
        unsafe { [y0, y0.add(y1), y0.sub(y1), y1] }
    }
}

/// F(4, 3) at 0, ±5/8, ±3/2.
///
/// The usual 0, ±1, ±2 lose 2.3 times more precision: magnitudes on both sides of 1 balance the entries of
/// `B^T` against those of `A^T`. These two were the best of a search, and everything below is exact in f32.
pub(crate) struct F4;

/// `a x + y`.
#[inline(always)]
unsafe fn axpy<V: Vector>(a: f32, x: V, y: V) -> V {
    // SAFETY: the caller's contract.
    unsafe { V::splat(a).mul_add(x, y) }
}

const A: f32 = 0.625;
const B: f32 = 1.5;

impl Scheme<6, 4> for F4 {
    const POINTS: &'static [f64] = &[0.0, A as f64, -A as f64, B as f64, -B as f64];

    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, d4, d5]: [V; 6]) -> [V; 6] {
        const AA: f32 = A * A;
        const BB: f32 = B * B;
        // SAFETY: the caller's contract.
        unsafe {
            // x (x + p) (x^2 - q^2) and its mirror image at -p share their even and odd halves.
            let (even_a, odd_a) = (axpy(-BB, d2, d4), V::splat(A).mul(axpy(-BB, d1, d3)));
            let (even_b, odd_b) = (axpy(-AA, d2, d4), V::splat(B).mul(axpy(-AA, d1, d3)));
            let (middle, product) = (AA + BB, V::splat(AA * BB));
            [
                product.mul_add(d0, axpy(-middle, d2, d4)),
                even_a.add(odd_a),
                even_a.sub(odd_a),
                even_b.add(odd_b),
                even_b.sub(odd_b),
                product.mul_add(d1, axpy(-middle, d3, d5)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            let (sum_a, diff_a, sum_b, diff_b) = (m1.add(m2), m1.sub(m2), m3.add(m4), m3.sub(m4));
            [
                m0.add(sum_a).add(sum_b),
                axpy(A, diff_a, V::splat(B).mul(diff_b)),
                axpy(A * A, sum_a, V::splat(B * B).mul(sum_b)),
                axpy(A * A * A, diff_a, axpy(B * B * B, diff_b, m5)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn output_adjoint<V: Vector>([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        // SAFETY: the caller's contract.
        unsafe {
            let (even_a, odd_a) = (axpy(A * A, y2, y0), axpy(A * A * A, y3, V::splat(A).mul(y1)));
            let (even_b, odd_b) = (axpy(B * B, y2, y0), axpy(B * B * B, y3, V::splat(B).mul(y1)));
            [y0, even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), y3]
        }
    }
}
