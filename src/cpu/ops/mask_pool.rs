//! Hard-mask pooling: the threshold is fused with the pooling GEMM, one product per image; its
//! gradient is the product with the transposed mask.

use crate::cpu::gemm;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel};
use crate::ops::{MaskPool, MaskPoolGrad};

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
