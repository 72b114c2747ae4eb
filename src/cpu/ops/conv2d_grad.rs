//! Gradients of convolutions by the kernels that [`crate::cpu::conv`] names.

use crate::cpu::conv::{FilterGrad, GradShape, InputGrad};
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedOperand};
use crate::ops::{Conv2dFilterGrad, Conv2dInputGrad};

impl CpuOp for Conv2dInputGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (dy, w) = (context.inputs[0].shape, context.inputs[1].shape);
        let shape = GradShape {
            batch: dy[0],
            map: self.size,
            out: [dy[1], dy[2]],
            c_in: w[3] * self.groups,
            c_out: w[0],
            kernel: [w[1], w[2]],
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        };
        Box::new(OfInput(InputGrad::new(shape, context.isa)))
    }
}

struct OfInput(InputGrad);

impl Kernel for OfInput {
    fn name(&self) -> String {
        self.0.name()
    }

    fn workspace(&self) -> usize {
        self.0.workspace_len()
    }

    fn packing(&self) -> Option<PackedOperand> {
        Some(PackedOperand {
            input: 1,
            len: self.0.packed_len(),
            layout: self.0.packed_layout(),
            isa: self.0.isa(),
        })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.0.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        self.0.run(args.inputs[0], args.packed, args.outputs[0], args.workspace);
    }
}

impl CpuOp for Conv2dFilterGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let (x, dy) = (context.inputs[0].shape, context.inputs[1].shape);
        let shape = GradShape {
            batch: x[0],
            map: [x[1], x[2]],
            out: [dy[1], dy[2]],
            c_in: x[3],
            c_out: dy[3],
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
        };
        Box::new(OfFilter(FilterGrad::new(shape, context.isa)))
    }
}

struct OfFilter(FilterGrad);

impl Kernel for OfFilter {
    fn name(&self) -> String {
        self.0.name()
    }

    fn workspace(&self) -> usize {
        self.0.workspace_len()
    }

    fn run(&self, args: &mut Args<'_>) {
        self.0.run(args.inputs[0], args.inputs[1], args.outputs[0], args.workspace);
    }
}
