//! Convolution by the kernel that [`crate::cpu::conv::select`] names; in bf16 by [`tiles`].

use super::epilogue::Tail;
use super::tiles;
use crate::cpu::conv::{Conv, ConvKernel, ConvShape, Depthwise, Ends, Tap};
use crate::cpu::dot::DotConv;
use crate::cpu::gemm::Stored;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::ops::Conv2d;
use crate::tensor::DType;
use half::bf16;
use std::marker::PhantomData;

struct Convolution {
    conv: Conv,
    tail: Tail,
    workspace: usize,
}

/// The shape of `op` at these types.
pub(super) fn shape(op: &Conv2d, context: &Context<'_>) -> ConvShape {
    let (x, w) = (context.inputs[0].shape, context.inputs[1].shape);
    ConvShape {
        batch: x[0],
        height: x[1],
        width: x[2],
        c_in: x[3],
        c_out: w[0],
        kernel: [w[1], w[2]],
        stride: op.stride,
        padding: op.padding,
        padding_end: op.padding_end,
        dilation: op.dilation,
        groups: op.groups,
    }
}

impl CpuOp for Conv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let conv = Conv::new(shape(self, context), context.isa, context.arithmetic);
        let workspace = conv.workspace_len();
        Box::new(Convolution { conv, tail: Tail::new(self.epilogue, context.isa), workspace })
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        let shape = shape(self, context);
        if self.groups == 1 {
            let conv = DotConv { shape, dot: context.dot(), rule: () };
            return Some(tiles::of_bf16(conv, self.epilogue, context));
        }
        let conv = Conv::new(shape, context.isa, context.arithmetic);
        let tail = Tail::new(self.epilogue, context.isa);
        if conv.kernel != ConvKernel::Depthwise || self.epilogue.residual || !tail.is_fused() {
            return None;
        }
        Some(match (context.inputs[0].dtype, context.outputs[0].dtype) {
            (DType::BF16, DType::BF16) => Channelwise::<bf16, bf16>::boxed(conv, tail),
            (DType::BF16, _) => Channelwise::<bf16, f32>::boxed(conv, tail),
            _ => Channelwise::<f32, bf16>::boxed(conv, tail),
        })
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
        Some(packing(&self.conv))
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

fn packing(conv: &Conv) -> PackedOperand {
    let layout = PackedLayout::Filters(conv.kernel);
    PackedOperand { input: 1, len: conv.packed_len(), layout, isa: conv.isa }
}

/// A depthwise convolution of maps stored as `X` and `Y`.
struct Channelwise<X, Y> {
    /// As it is in f32, which packs the filters.
    conv: Conv,
    tail: Tail,
    elements: PhantomData<fn(X) -> Y>,
}

impl<X: Stored + Tap, Y: Stored> Channelwise<X, Y> {
    fn boxed(conv: Conv, tail: Tail) -> Box<dyn Kernel> {
        Box::new(Channelwise::<X, Y> { conv, tail, elements: PhantomData })
    }
}

impl<X: Stored + Tap, Y: Stored> Kernel for Channelwise<X, Y> {
    fn name(&self) -> String {
        format!("{} {}", self.conv.kernel, self.conv.isa)
    }

    fn packing(&self) -> Option<PackedOperand> {
        Some(packing(&self.conv))
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.conv.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let Conv { shape, isa, .. } = self.conv;
        let (x, packed) = (args.map::<X>(0, shape.input_len()), args.packed);
        let ends = Ends::of(&self.tail.fused(&args.inputs));
        let y = args.map_mut::<Y>(0, shape.output_len());
        Depthwise { shape, isa }.run(x, packed, &ends, y);
    }
}
