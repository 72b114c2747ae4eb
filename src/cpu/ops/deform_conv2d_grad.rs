//! Gradients of deformable convolutions.

use crate::cpu::conv::{DeformFilterGrad, DeformInputGrad, DeformShape};
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::{DeformConv2dFilterGrad, DeformConv2dInputGrad};

struct OfInput {
    grad: DeformInputGrad,
    isa: Isa,
}

impl CpuOp for DeformConv2dInputGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let [dy, w, x] = [0, 1, 2].map(|i| context.inputs[i].shape);
        let shape = DeformShape {
            batch: x[0],
            map: [x[1], x[2]],
            out: [dy[1], dy[2]],
            c_in: x[3],
            c_out: dy[3],
            kernel: [w[1], w[2]],
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        };
        Box::new(OfInput { grad: DeformInputGrad::new(shape, context.isa), isa: context.isa })
    }
}

impl Kernel for OfInput {
    fn name(&self) -> String {
        format!("slices {}", self.isa)
    }

    fn workspace(&self) -> usize {
        self.grad.workspace_len()
    }

    fn packing(&self) -> Option<PackedOperand> {
        let len = self.grad.packed_len();
        Some(PackedOperand { input: 1, len, layout: PackedLayout::Slices, isa: self.isa })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.grad.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let [dy, _, x, offset, ..] = args.inputs;
        let [dx, doffset, ..] = &mut args.outputs;
        self.grad.run([dy, args.packed, x, offset], [dx, doffset], args.workspace);
    }
}

struct OfFilter {
    grad: DeformFilterGrad,
    isa: Isa,
}

impl CpuOp for DeformConv2dFilterGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let [x, dy] = [0, 1].map(|i| context.inputs[i].shape);
        let shape = DeformShape {
            batch: x[0],
            map: [x[1], x[2]],
            out: [dy[1], dy[2]],
            c_in: x[3],
            c_out: dy[3],
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        };
        Box::new(OfFilter { grad: DeformFilterGrad::new(shape, context.isa), isa: context.isa })
    }
}

impl Kernel for OfFilter {
    fn name(&self) -> String {
        format!("sampled-gemm {}", self.isa)
    }

    fn workspace(&self) -> usize {
        self.grad.workspace_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, dy, offset, ..] = args.inputs;
        self.grad.run(x, dy, offset, args.outputs[0], args.workspace);
    }
}
