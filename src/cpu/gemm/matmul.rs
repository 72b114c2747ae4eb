//! Products of two matrices that are both new at every run: B is packed panel by panel inside the tasks.

use crate::isa::Isa;

use super::LongGemm;
use super::operand::{BLayout, Matrix, Transposed, Unpacked};

/// `C[m, n] = A[m, k] B[k, n]`, each operand row-major or stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// A is stored as `[k, m]`.
    pub transpose_a: bool,
    /// How B is stored.
    pub layout: BLayout,
    /// Extents m, n, k.
    pub extents: [usize; 3],
    /// The instruction set.
    pub isa: Isa,
}

impl Product {
    fn gemm(&self) -> LongGemm {
        let [m, n, k] = self.extents;
        LongGemm::new(m, n, k, self.isa)
    }

    /// Values of workspace that [`Product::run`] needs.
    pub fn workspace_len(&self) -> usize {
        self.gemm().workspace_len()
    }

    /// Computes `c`, tasks in parallel on the current rayon pool.
    ///
    /// # Panics
    /// When a slice is shorter than its extents.
    pub fn run(&self, a: &[f32], b: &[f32], c: &mut [f32], workspace: &mut [f32]) {
        let [m, n, k] = self.extents;
        assert!(a.len() >= m * k, "A of {} values for {self:?}", a.len());
        assert!(b.len() >= k * n, "B of {} values for {self:?}", b.len());
        let ld = if self.layout == BLayout::RowMajor { n } else { k };
        let b = Unpacked { data: b.as_ptr(), ld, n, layout: self.layout };
        if self.transpose_a {
            let a = Transposed(Matrix { data: a.as_ptr(), ld: m });
            self.gemm().run(&a, &b, c, workspace);
        } else {
            let a = Matrix { data: a.as_ptr(), ld: k };
            self.gemm().run(&a, &b, c, workspace);
        }
    }
}
