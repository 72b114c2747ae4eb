//! Hard-mask pooling: the threshold is fused with the pooling GEMM, one product per image; its
//! gradient is the product with the transposed mask.

use crate::cpu::dot::DotMaskPool;
use crate::cpu::element::Element;
use crate::cpu::gemm;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel};
use crate::ops::{MaskPool, MaskPoolGrad};
use crate::tensor::DType;
use half::bf16;
use std::marker::PhantomData;

struct Pooling {
    product: gemm::MaskPool,
    batch: usize,
}

impl CpuOp for MaskPool {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (masks, x) = (context.inputs[0].shape, context.inputs[1].shape);
        let (objects, pixels, channels) = (masks[1], masks[2] * masks[3], x[3]);
        let product = gemm::MaskPool { objects, pixels, channels, isa: context.isa };
        Box::new(Pooling { product, batch: masks[0] })
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        let (masks, x) = (context.inputs[0], context.inputs[1]);
        if x.dtype != DType::BF16 || context.outputs[0].dtype != DType::F32 {
            return None;
        }
        let (objects, pixels, channels) = (masks.shape[1], masks.shape[2] * masks.shape[3], x.shape[3]);
        let product = DotMaskPool { objects, pixels, channels, dot: context.dot(), isa: context.isa };
        let (batch, workspace) = (masks.shape[0], product.workspace_len(context.threads));
        Some(match masks.dtype {
            DType::BF16 => Box::new(Tiles::<bf16> { product, batch, workspace, element: PhantomData }),
            _ => Box::new(Tiles::<f32> { product, batch, workspace, element: PhantomData }),
        })
    }
}

/// Masks stored as `M`.
struct Tiles<M> {
    product: DotMaskPool,
    batch: usize,
    workspace: usize,
    element: PhantomData<fn(M)>,
}

impl<M: Element> Kernel for Tiles<M> {
    fn name(&self) -> String {
        format!("tiles {}", self.product.dot)
    }

    fn workspace(&self) -> usize {
        self.workspace
    }

    fn run(&self, args: &mut Args<'_>) {
        let DotMaskPool { objects, pixels, channels, .. } = self.product;
        let masks = args.map::<M>(0, self.batch * objects * pixels);
        let x = args.map::<bf16>(1, self.batch * pixels * channels);
        for image in 0..self.batch {
            let masks = &masks[image * objects * pixels..][..objects * pixels];
            let x = &x[image * pixels * channels..][..pixels * channels];
            let out = &mut args.outputs[0][image * objects * channels..][..objects * channels];
            self.product.run(masks, x, out, args.workspace);
        }
    }
}

impl Kernel for Pooling {
    fn name(&self) -> String {
        format!("gemm {}", self.product.isa)
    }

    fn workspace(&self) -> usize {
        self.product.workspace_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        let gemm::MaskPool { objects, pixels, channels, .. } = self.product;
        for image in 0..self.batch {
            let masks = &args.inputs[0][image * objects * pixels..][..objects * pixels];
            let x = &args.inputs[1][image * pixels * channels..][..pixels * channels];
            let out = &mut args.outputs[0][image * objects * channels..][..objects * channels];
            self.product.run(masks, x, out, args.workspace);
        }
    }
}

struct PoolingGrad {
    product: gemm::MaskPool,
    batch: usize,
}

impl CpuOp for MaskPoolGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (masks, dy) = (context.inputs[0].shape, context.inputs[1].shape);
        let (objects, pixels, channels) = (masks[1], masks[2] * masks[3], dy[2]);
        let product = gemm::MaskPool { objects, pixels, channels, isa: context.isa };
        Box::new(PoolingGrad { product, batch: masks[0] })
    }
}

impl Kernel for PoolingGrad {
    fn name(&self) -> String {
        format!("gemm {}", self.product.isa)
    }

    fn run(&self, args: &mut Args<'_>) {
        let gemm::MaskPool { objects, pixels, channels, .. } = self.product;
        for image in 0..self.batch {
            let masks = &args.inputs[0][image * objects * pixels..][..objects * pixels];
            let dy = &args.inputs[1][image * objects * channels..][..objects * channels];
            let dx = &mut args.outputs[0][image * pixels * channels..][..pixels * channels];
            self.product.run_grad(masks, dy, dx);
        }
    }
}
