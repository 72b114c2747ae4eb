//! Pooling under soft masks, image by image: the weights into scratch, then a product over all pixels, cut
//! into fixed chunks whose partial sums are added in order.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::softmax::Columns;
use crate::cpu::gemm::{BLayout, Product};
use crate::ops::SoftMaskPool;

struct Pooling {
    softmax: Columns,
    product: Product,
    batch: usize,
}

impl CpuOp for SoftMaskPool {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (masks, x) = (context.inputs[0].shape, context.inputs[1].shape);
        let (classes, pixels, channels, isa) = (masks[1], masks[2] * masks[3], x[3], context.isa);
        Box::new(Pooling {
            softmax: Columns::new(classes, pixels, isa),
            product: Product {
                transpose_a: false,
                layout: BLayout::RowMajor,
                extents: [classes, channels, pixels],
                isa,
            },
            batch: x[0],
        })
    }
}

impl Kernel for Pooling {
    fn name(&self) -> String {
        format!("softmax, gemm {}", self.product.isa)
    }

    fn workspace(&self) -> usize {
        let [classes, _, pixels] = self.product.extents;
        classes * pixels + self.softmax.workspace().max(self.product.workspace_len())
    }

    fn run(&self, args: &mut Args<'_>) {
        let [classes, channels, pixels] = self.product.extents;
        let (weights, workspace) = args.workspace.split_at_mut(classes * pixels);
        for image in 0..self.batch {
            let masks = &args.inputs[0][image * classes * pixels..][..classes * pixels];
            let x = &args.inputs[1][image * pixels * channels..][..pixels * channels];
            let out = &mut args.outputs[0][image * classes * channels..][..classes * channels];
            self.softmax.apply(masks, weights, workspace);
            self.product.run(weights, x, out, workspace);
        }
    }
}
