//! Per-object mask convolution by GEMM, one product per image; in bf16 by tiles of dot products.

use crate::cpu::dot::{DotMaskConv, Read, Store};
use crate::cpu::gemm;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::MaskConv;
use crate::tensor::DType;
use half::bf16;
use std::marker::PhantomData;

struct Product {
    product: gemm::MaskConv,
    batch: usize,
    /// Kernels of one image, or 0 if all images share them.
    kernel_step: usize,
    bias: bool,
}

impl CpuOp for MaskConv {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (kernels, x) = (context.inputs[0].shape, context.inputs[1].shape);
        let (objects, channels) = (kernels[1], kernels[2]);
        Box::new(Product {
            product: gemm::MaskConv { objects, pixels: x[1] * x[2], channels, isa: context.isa },
            batch: x[0],
            kernel_step: if kernels[0] == x[0] { objects * channels } else { 0 },
            bias: self.bias,
        })
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        let (kernels, x) = (context.inputs[0], context.inputs[1]);
        if kernels.dtype != DType::F32 {
            return None;
        }
        let (objects, pixels, channels) = (kernels.shape[1], x.shape[1] * x.shape[2], x.shape[3]);
        let product = DotMaskConv { objects, pixels, channels, dot: context.dot(), isa: context.isa };
        let (batch, own, bias) = (x.shape[0], kernels.shape[0] == x.shape[0], self.bias);
        let workspace = product.workspace_len(context.threads);
        Some(match (x.dtype, context.outputs[0].dtype) {
            (DType::BF16, DType::BF16) => Tiles::<bf16, bf16>::boxed(product, batch, own, bias, workspace),
            (DType::BF16, _) => Tiles::<bf16, f32>::boxed(product, batch, own, bias, workspace),
            _ => Tiles::<f32, bf16>::boxed(product, batch, own, bias, workspace),
        })
    }
}

impl Kernel for Product {
    fn name(&self) -> String {
        format!("gemm {}", self.product.isa)
    }

    fn run(&self, args: &mut Args<'_>) {
        let gemm::MaskConv { objects, pixels, channels, .. } = self.product;
        for image in 0..self.batch {
            let kernels = &args.inputs[0][image * self.kernel_step..][..objects * channels];
            let x = &args.inputs[1][image * pixels * channels..][..pixels * channels];
            let logits = &mut args.outputs[0][image * objects * pixels..][..objects * pixels];
            self.product.run(kernels, x, self.bias.then_some(args.inputs[2]), logits);
        }
    }
}

/// Features stored as `X`, logits as `Y`.
struct Tiles<X, Y> {
    product: DotMaskConv,
    batch: usize,
    /// Whether every image has kernels of its own.
    own: bool,
    bias: bool,
    workspace: usize,
    elements: PhantomData<fn(X) -> Y>,
}

impl<X: Read<bf16>, Y: Store> Tiles<X, Y> {
    fn boxed(product: DotMaskConv, batch: usize, own: bool, bias: bool, workspace: usize) -> Box<dyn Kernel> {
        Box::new(Tiles::<X, Y> { product, batch, own, bias, workspace, elements: PhantomData })
    }

    /// Images with kernels of their own.
    fn kernels(&self) -> usize {
        if self.own { self.batch } else { 1 }
    }
}

impl<X: Read<bf16>, Y: Store> Kernel for Tiles<X, Y> {
    fn name(&self) -> String {
        format!("tiles {}", self.product.dot)
    }

    fn workspace(&self) -> usize {
        self.workspace
    }

    fn packing(&self) -> Option<PackedOperand> {
        let (len, layout) = (self.kernels() * self.product.packed_len(), PackedLayout::DotPanels);
        Some(PackedOperand { input: 0, len, layout, isa: Isa::Portable })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        let (kernels, len) = (self.product.objects * self.product.channels, self.product.packed_len());
        for image in 0..self.kernels() {
            self.product.pack(&source[image * kernels..], &mut packed[image * len..][..len]);
        }
    }

    fn run(&self, args: &mut Args<'_>) {
        let DotMaskConv { objects, pixels, channels, .. } = self.product;
        let x = args.map::<X>(1, self.batch * pixels * channels);
        let bias = self.bias.then_some(args.inputs[2]);
        let (packed, workspace) = (args.packed, std::mem::take(&mut args.workspace));
        let logits = args.map_mut::<Y>(0, self.batch * objects * pixels);
        for image in 0..self.batch {
            let packed = if self.own { &packed[image * self.product.packed_len()..] } else { packed };
            let x = &x[image * pixels * channels..][..pixels * channels];
            let logits = &mut logits[image * objects * pixels..][..objects * pixels];
            self.product.run(packed, x, bias, logits, workspace);
        }
    }
}
