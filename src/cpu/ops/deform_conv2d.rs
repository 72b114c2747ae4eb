//! Deformable convolution: a product whose left side is sampled as it is needed.

use super::epilogue::Tail;
use crate::cpu::conv::{DeformConv, DeformShape};
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::DeformConv2d;

struct Convolution {
    conv: DeformConv,
    isa: Isa,
    tail: Tail,
    offset: usize,
}

impl CpuOp for DeformConv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let [x, w, y] = [context.inputs[0], context.inputs[1], context.outputs[0]].map(|ty| ty.shape);
        let shape = DeformShape {
            batch: x[0],
            map: [x[1], x[2]],
            out: [y[1], y[2]],
            c_in: x[3],
            c_out: w[0],
            kernel: [w[1], w[2]],
            stride: self.conv.stride,
            padding: self.conv.padding,
            dilation: self.conv.dilation,
        };
        Box::new(Convolution {
            conv: DeformConv::new(shape, context.isa),
            isa: context.isa,
            tail: Tail::new(self.conv.epilogue, context.isa),
            offset: self.offset_input(),
        })
    }
}

impl Kernel for Convolution {
    fn name(&self) -> String {
        format!("sampled-gemm {}", self.isa)
    }

    fn packing(&self) -> Option<PackedOperand> {
        let len = self.conv.packed_len();
        Some(PackedOperand { input: 1, len, layout: PackedLayout::Panels, isa: self.isa })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.conv.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let epilogue = self.tail.fused(&args.inputs);
        let (x, offset) = (args.inputs[0], args.inputs[self.offset]);
        self.conv.run(x, offset, args.packed, &epilogue, args.outputs[0]);
        self.tail.finish(args.outputs[0]);
    }
}
