//! Fully connected layers by packed GEMM; next to maps of bf16 by tiles of dot products.

use super::epilogue::Tail;
use super::tiles;
use crate::cpu::conv::ConvShape;
use crate::cpu::dot::DotConv;
use crate::cpu::gemm::{BLayout, Gemm};
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::ops::Linear;

struct Dense {
    gemm: Gemm,
    tail: Tail,
}

/// Rows, filters, and terms of each.
fn sizes(context: &Context<'_>) -> (usize, usize, usize) {
    let (n, k) = (context.inputs[1].shape[0], context.inputs[1].shape[1]);
    let m = context.outputs[0].shape.dims().split_last().map_or(0, |(_, rows)| rows.iter().product());
    (m, n, k)
}

impl CpuOp for Linear {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        // Where maps are bf16, rows stay f32 and become bf16 as they are multiplied: their filters, read once
        // for a hundred rows or fewer, are then half as long.
        if context.bf16.is_some()
            && let Some(kernel) = self.bf16_kernel(context)
        {
            return kernel;
        }
        let (m, n, k) = sizes(context);
        let gemm = Gemm { m, n, k, isa: context.isa };
        Box::new(Dense { gemm, tail: Tail::new(self.epilogue, context.isa) })
    }

    /// A convolution of points.
    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        let (m, n, k) = sizes(context);
        let conv = DotConv { shape: ConvShape::pointwise(m, k, n), dot: context.dot(), rule: () };
        (k > 0).then(|| tiles::of_bf16(conv, self.epilogue, context))
    }
}

impl Kernel for Dense {
    fn name(&self) -> String {
        format!("gemm {}", self.gemm.isa)
    }

    fn packing(&self) -> Option<PackedOperand> {
        Some(PackedOperand {
            input: 1,
            len: self.gemm.packed_len(),
            layout: PackedLayout::Panels,
            isa: self.gemm.isa,
        })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.gemm.pack_b(source, BLayout::Transposed, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let epilogue = self.tail.fused(&args.inputs);
        let Gemm { n, k, .. } = self.gemm;
        self.gemm.run(args.inputs[0], k, args.packed, &epilogue, args.outputs[0], n);
        self.tail.finish(args.outputs[0]);
    }
}
