//! Hard-mask pooling: the threshold is fused with the pooling GEMM, one product per image.

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

impl CpuOp for MaskPoolGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        super::reference::Reference::new(*self, context)
    }
}
