//! The two products between objects and pixels in K-Net: hard-mask pooling and mask convolution.

use crate::isa::Isa;

use super::block::{Target, run};
use super::operand::{BLayout, HardMask, Matrix, TransposedMask, Unpacked};
use super::{Bias, Epilogue, LongGemm, span};

/// `out[n, c] = sum over pixels p with mask[n, p] > 0 of x[p, c]` (K-Net's hard-mask pooling: sigmoid > 0.5).
///
/// The comparison is strict and false for NaN. It is a product with a 0/1 matrix that only ever exists as the
/// strips of a microkernel, so (as in PyTorch's `einsum`) an infinite or NaN feature outside a mask gives
/// NaN. Pixels are cut into fixed chunks whose partial sums are added in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskPool {
    /// N: masks.
    pub objects: usize,
    /// Pixels of each mask.
    pub pixels: usize,
    /// C: channels of the features.
    pub channels: usize,
    /// The instruction set.
    pub isa: Isa,
}

impl MaskPool {
    fn product(&self) -> LongGemm {
        LongGemm::new(self.objects, self.channels, self.pixels, self.isa)
    }

    /// Values of workspace that [`MaskPool::run`] needs.
    pub fn workspace_len(&self) -> usize {
        self.product().workspace_len()
    }

    /// Pools `x` `[pixels, channels]` under `masks` `[objects, pixels]` into `out` `[objects, channels]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape.
    pub fn run(&self, masks: &[f32], x: &[f32], out: &mut [f32], workspace: &mut [f32]) {
        let MaskPool { objects, pixels, channels, .. } = *self;
        assert!(masks.len() >= objects * pixels, "{} mask logits for {self:?}", masks.len());
        assert!(x.len() >= pixels * channels, "{} features for {self:?}", x.len());
        let a = HardMask(Matrix { data: masks.as_ptr(), ld: pixels });
        let b = Unpacked { data: x.as_ptr(), ld: channels, n: channels, layout: BLayout::RowMajor };
        self.product().run(&a, &b, out, workspace);
    }

    /// The gradient of the features, `dx[p, c] = sum over masks n with mask[n, p] > 0 of dy[n, c]`, from
    /// `masks` `[objects, pixels]` and `dy` `[objects, channels]` into `dx` `[pixels, channels]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape.
    pub fn run_grad(&self, masks: &[f32], dy: &[f32], dx: &mut [f32]) {
        let MaskPool { objects, pixels, channels, isa } = *self;
        assert!(masks.len() >= objects * pixels, "{} mask logits for {self:?}", masks.len());
        assert!(dy.len() >= objects * channels, "{} gradients for {self:?}", dy.len());
        assert!(dx.len() >= pixels * channels, "{} features for {self:?}", dx.len());
        let a = TransposedMask(Matrix { data: masks.as_ptr(), ld: pixels });
        let b = Unpacked { data: dy.as_ptr(), ld: channels, n: channels, layout: BLayout::RowMajor };
        let finish = Epilogue::default().finish(pixels, channels, channels);
        run(isa, [pixels, channels, objects], &a, &b, Target { c: dx.as_mut_ptr(), ldc: channels, finish });
    }
}

/// `logits[n, p] = kernels[n, :] . x[p, :] + bias[n]`: a 1x1 convolution whose filters are the objects'
/// kernels, written planar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskConv {
    /// N: kernels.
    pub objects: usize,
    /// Pixels of the map.
    pub pixels: usize,
    /// C: channels of the features.
    pub channels: usize,
    /// The instruction set.
    pub isa: Isa,
}

impl MaskConv {
    /// `kernels` `[objects, channels]`, `x` `[pixels, channels]`, `bias` `[objects]`, `logits`
    /// `[objects, pixels]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape.
    pub fn run(&self, kernels: &[f32], x: &[f32], bias: Option<&[f32]>, logits: &mut [f32]) {
        let MaskConv { objects, pixels, channels, isa } = *self;
        assert!(kernels.len() >= objects * channels, "{} kernel weights for {self:?}", kernels.len());
        assert!(x.len() >= pixels * channels, "{} features for {self:?}", x.len());
        assert!(logits.len() >= span(objects, pixels, pixels), "{} logits for {self:?}", logits.len());
        let a = Matrix { data: kernels.as_ptr(), ld: channels };
        let b = Unpacked { data: x.as_ptr(), ld: channels, n: pixels, layout: BLayout::Transposed };
        let epilogue = Epilogue { bias: bias.map(Bias::Row), ..Default::default() };
        let finish = epilogue.finish(objects, pixels, pixels);
        let target = Target { c: logits.as_mut_ptr(), ldc: pixels, finish };
        run(isa, [objects, pixels, channels], &a, &b, target);
    }
}
