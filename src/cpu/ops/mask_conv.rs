//! Per-object mask convolution by GEMM, one product per image.

use crate::cpu::gemm;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel};
use crate::ops::MaskConv;

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
