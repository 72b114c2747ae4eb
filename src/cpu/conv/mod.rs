//! Convolution of NHWC maps in f32: every stride, padding, dilation and group count.
//!
//! [`select`] names the kernel for a shape; [`Conv`] packs filters for it once and runs it. Nothing here
//! allocates: scratch that is too large for a task's stack comes from the caller's workspace, whose size is
//! known from the shape.

mod deform;
mod depthwise;
mod grad;
mod implicit;
mod shape;
mod skip;
#[cfg(test)]
pub(crate) mod tests;
mod winograd;

use crate::cpu::gemm::{self, BLayout, Bias, Epilogue, Gemm, Packed, Target};
use crate::isa::Isa;

pub use deform::{DeformConv, DeformFilterGrad, DeformShape};
pub use depthwise::Depthwise;
pub(crate) use depthwise::{AtLevels, Ends, Tap};
pub use grad::{DeformInputGrad, FilterGrad, GradShape, InputGrad};
pub use shape::{Arithmetic, ConvKernel, ConvShape, select};
use winograd::{F2, F4, Order};

/// A convolution and how it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// What is computed.
    pub shape: ConvShape,
    /// How. Must support the shape, see [`ConvKernel::supports`].
    pub kernel: ConvKernel,
    /// The instruction set; filters must be packed for the same one.
    pub isa: Isa,
}

impl Conv {
    /// The convolution with the kernel that [`select`] names.
    pub fn new(shape: ConvShape, isa: Isa, arithmetic: Arithmetic) -> Conv {
        Conv { shape, kernel: select(&shape, arithmetic), isa }
    }

    /// The matrix product of one group.
    fn group_gemm(&self) -> Gemm {
        let s = &self.shape;
        Gemm { m: s.out_pixels(), n: s.c_out / s.groups, k: s.depth(), isa: self.isa }
    }

    /// The tiles of a Winograd kernel with `out x out` outputs each.
    fn tiles(&self, out: usize) -> winograd::Layout {
        winograd::Layout::new(self.shape, out, self.isa)
    }

    /// Values of the packed filters.
    pub fn packed_len(&self) -> usize {
        match self.kernel {
            ConvKernel::Pointwise | ConvKernel::ImplicitGemm => {
                self.shape.groups * self.group_gemm().packed_len()
            }
            ConvKernel::Winograd2 => 16 * self.tiles(2).plane_gemm().packed_len(),
            ConvKernel::Winograd4 => 36 * self.tiles(4).plane_gemm().packed_len(),
            ConvKernel::Depthwise => self.shape.filter_len(),
        }
    }

    /// Packs KRSC filters into `packed[..packed_len()]`, in parallel and without allocating, so that filters
    /// may change between runs.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn pack(&self, filter: &[f32], packed: &mut [f32]) {
        let s = &self.shape;
        assert!(filter.len() >= s.filter_len(), "filter of {} values for {s:?}", filter.len());
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        match self.kernel {
            ConvKernel::Pointwise | ConvKernel::ImplicitGemm => {
                let gemm = self.group_gemm();
                let size = gemm.packed_len();
                for g in 0..s.groups {
                    let filter = &filter[g * gemm.n * gemm.k..(g + 1) * gemm.n * gemm.k];
                    gemm.pack_b(filter, BLayout::Transposed, &mut packed[g * size..(g + 1) * size]);
                }
            }
            ConvKernel::Winograd2 | ConvKernel::Winograd4 => self.pack_winograd(filter, Order::Krsc, packed),
            ConvKernel::Depthwise => {
                let taps = s.kernel[0] * s.kernel[1];
                for (c, filter) in filter[..s.filter_len()].chunks_exact(taps).enumerate() {
                    for (tap, &w) in filter.iter().enumerate() {
                        packed[tap * s.c_in + c] = w;
                    }
                }
            }
        }
    }

    /// Packs filters for one of Winograd's kernels.
    fn pack_winograd(&self, filter: &[f32], order: Order, packed: &mut [f32]) {
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {self:?}", packed.len());
        match self.kernel {
            ConvKernel::Winograd2 => {
                winograd::pack_parallel::<F2, 4, 2>(&self.tiles(2), filter, order, packed);
            }
            _ => winograd::pack_parallel::<F4, 6, 4>(&self.tiles(4), filter, order, packed),
        }
    }

    /// Values of workspace that [`Conv::run`] needs, on any number of threads.
    pub fn workspace_len(&self) -> usize {
        match self.kernel {
            ConvKernel::Winograd2 => self.tiles(2).workspace_len(16),
            ConvKernel::Winograd4 => self.tiles(4).workspace_len(36),
            ConvKernel::Pointwise | ConvKernel::ImplicitGemm | ConvKernel::Depthwise => 0,
        }
    }

    /// `y = epilogue(conv(x))`, tasks in parallel on the current rayon pool. The residual is laid out as `y`.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says, or the epilogue's bias is per row.
    pub fn run(&self, x: &[f32], packed: &[f32], epilogue: &Epilogue, y: &mut [f32], workspace: &mut [f32]) {
        let s = &self.shape;
        assert!(x.len() >= s.input_len(), "input of {} values for {s:?}", x.len());
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(y.len() >= s.output_len(), "output of {} values for {s:?}", y.len());
        assert!(!matches!(epilogue.bias, Some(Bias::Row(_))), "a convolution's bias is per channel");
        let finish = epilogue.finish(s.out_pixels(), s.c_out, s.c_out);
        let target = Target { c: y.as_mut_ptr(), ldc: s.c_out, finish };
        let gemm = self.group_gemm();
        match self.kernel {
            ConvKernel::Pointwise => gemm.run(x, s.c_in, packed, epilogue, y, s.c_out),
            ConvKernel::ImplicitGemm if skip::suits(s) && epilogue.residual.is_none() => {
                skip::run(self, x, packed, target);
            }
            ConvKernel::ImplicitGemm => {
                for group in 0..s.groups {
                    let a = implicit::Fields::new(*s, x.as_ptr(), group);
                    let b = Packed { data: packed[group * gemm.packed_len()..].as_ptr(), k_total: gemm.k };
                    gemm::run(
                        self.isa,
                        [gemm.m, gemm.n, gemm.k],
                        &a,
                        &b,
                        target.columns_from(group * gemm.n),
                    );
                }
            }
            ConvKernel::Winograd2 => self.winograd(2, 16, x, packed, target, workspace).run::<F2, 4, 2>(),
            ConvKernel::Winograd4 => self.winograd(4, 36, x, packed, target, workspace).run::<F4, 6, 4>(),
            ConvKernel::Depthwise => {
                let depthwise = Depthwise { shape: *s, isa: self.isa };
                depthwise.run(x, packed, &Ends::of(epilogue), y);
            }
        }
    }

    fn winograd(
        &self,
        out: usize,
        planes: usize,
        x: &[f32],
        packed: &[f32],
        target: Target,
        workspace: &mut [f32],
    ) -> winograd::Pass {
        let layout = self.tiles(out);
        let (v, m) = workspace[..layout.workspace_len(planes)].split_at_mut(planes * layout.v_plane);
        winograd::Pass {
            layout,
            x: x.as_ptr(),
            packed: packed.as_ptr(),
            target,
            v: v.as_mut_ptr(),
            m: m.as_mut_ptr(),
        }
    }
}
