//! Convolution by the kernel that [`crate::cpu::conv::select`] names.

use super::epilogue::Tail;
use crate::cpu::conv::{Conv, ConvShape};
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::ops::Conv2d;

struct Convolution {
    conv: Conv,
    tail: Tail,
    workspace: usize,
}

impl CpuOp for Conv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, w) = (context.inputs[0].shape, context.inputs[1].shape);
        let shape = ConvShape {
            batch: x[0],
            height: x[1],
            width: x[2],
            c_in: x[3],
            c_out: w[0],
            kernel: [w[1], w[2]],
            stride: self.stride,
            padding: self.padding,
            padding_end: self.padding_end,
            dilation: self.dilation,
            groups: self.groups,
        };
        let conv = Conv::new(shape, context.isa, context.arithmetic);
        let workspace = conv.workspace_len();
        Box::new(Convolution { conv, tail: Tail::new(self.epilogue, context.isa), workspace })
    }
}

impl Kernel for Convolution {
    fn name(&self) -> String {
        format!("{} {}", self.conv.kernel, self.conv.isa)
    }

    fn workspace(&self) -> usize {
        self.workspace
    }

    fn packing(&self) -> Option<PackedOperand> {
        Some(PackedOperand {
            input: 1,
            len: self.conv.packed_len(),
            layout: PackedLayout::Filters(self.conv.kernel),
            isa: self.conv.isa,
        })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.conv.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let epilogue = self.tail.fused(&args.inputs);
        self.conv.run(args.inputs[0], args.packed, &epilogue, args.outputs[0], args.workspace);
        self.tail.finish(args.outputs[0]);
    }
}
