//! The two products between objects and pixels in K-Net: hard-mask pooling and mask convolution.

use crate::isa::Isa;

use super::block::{Block, KC, MC, Target, for_each_task, run};
use super::operand::{BLayout, HardMask, Matrix, Unpacked};
use super::vector::on;
use super::{Bias, Epilogue, span};

/// `out[n, c] = sum over pixels p with mask[n, p] > 0 of x[p, c]` (K-Net's hard-mask pooling: sigmoid > 0.5).
///
/// The comparison is strict and false for NaN. It is a product with a 0/1 matrix that only ever exists as the
/// strips of a microkernel, so (as in PyTorch's `einsum`) an infinite or NaN feature outside a mask gives NaN.
/// Pixels are cut into fixed chunks whose partial sums are added in order.
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
    /// Pixels of a chunk: at most 16 chunks, each of whole K blocks.
    fn chunk(&self) -> usize {
        self.pixels.div_ceil(16).next_multiple_of(KC).max(KC)
    }

    fn chunks(&self) -> usize {
        self.pixels.div_ceil(self.chunk()).max(1)
    }

    /// Values of workspace that [`MaskPool::run`] needs: a partial sum a chunk.
    pub fn workspace_len(&self) -> usize {
        self.chunks() * self.objects * self.channels
    }

    /// Pools `x` `[pixels, channels]` under `masks` `[objects, pixels]` into `out` `[objects, channels]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape.
    pub fn run(&self, masks: &[f32], x: &[f32], out: &mut [f32], workspace: &mut [f32]) {
        let MaskPool { objects, pixels, channels, isa } = *self;
        let size = objects * channels;
        assert!(masks.len() >= objects * pixels, "{} mask logits for {self:?}", masks.len());
        assert!(x.len() >= pixels * channels, "{} features for {self:?}", x.len());
        assert!(out.len() >= size && workspace.len() >= self.workspace_len(), "output of {self:?}");
        let a = HardMask(Matrix { data: masks.as_ptr(), ld: pixels });
        let b = Unpacked { data: x.as_ptr(), ld: channels, n: channels, layout: BLayout::RowMajor };
        let (chunk, chunks) = (self.chunk(), self.chunks());
        let finish = Epilogue::default().finish(objects, channels, channels);
        let target = Target { c: workspace.as_mut_ptr(), ldc: channels, finish };
        let groups = objects.div_ceil(MC);
        for_each_task(chunks * groups, |i| {
            let (part, group) = (i / groups, i % groups);
            let rows = group * MC..((group + 1) * MC).min(objects);
            let k = part * chunk..((part + 1) * chunk).min(pixels);
            let target = Target { c: target.origin().wrapping_add(part * size), ..target };
            on(isa, Block { a: &a, b: &b, target, rows, cols: 0..channels, k });
        });
        out[..size].copy_from_slice(&workspace[..size]);
        for part in workspace[..chunks * size].chunks_exact(size.max(1)).skip(1) {
            for (o, p) in out.iter_mut().zip(part) {
                *o += p;
            }
        }
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
