//! Convolution by the kernel that [`crate::cpu::conv::select`] names; in bf16 by [`tiles`].

use super::epilogue::Tail;
use super::tiles;
use crate::cpu::conv::{Conv, ConvKernel, ConvShape, DepthwiseBands, Numbers};
use crate::cpu::dot::DotConv;
use crate::cpu::element::Element;
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
        let bands = DepthwiseBands { shape, isa: context.isa };
        Some(match (context.inputs[0].dtype, context.outputs[0].dtype) {
            (DType::BF16, DType::BF16) => Bands::<bf16, bf16>::boxed(conv, bands, tail, context.threads),
            (DType::BF16, _) => Bands::<bf16, f32>::boxed(conv, bands, tail, context.threads),
            _ => Bands::<f32, bf16>::boxed(conv, bands, tail, context.threads),
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
struct Bands<X, Y> {
    /// As it is in f32, which packs the filters.
    conv: Conv,
    bands: DepthwiseBands,
    tail: Tail,
    workspace: usize,
    elements: PhantomData<fn(X) -> Y>,
}

impl<X: Element, Y: Element> Bands<X, Y> {
    fn boxed(conv: Conv, bands: DepthwiseBands, tail: Tail, threads: usize) -> Box<dyn Kernel> {
        let workspace = bands.workspace_len(threads);
        Box::new(Bands::<X, Y> { conv, bands, tail, workspace, elements: PhantomData })
    }
}

impl<X: Element, Y: Element> Kernel for Bands<X, Y> {
    fn name(&self) -> String {
        format!("{} bands {}", self.conv.kernel, self.conv.isa)
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
        let (epilogue, shape) = (self.tail.fused(&args.inputs), &self.bands.shape);
        let x = args.map::<X>(0, shape.input_len());
        let (packed, workspace) = (args.packed, std::mem::take(&mut args.workspace));
        let y = args.map_mut::<Y>(0, shape.output_len());
        self.bands.run(x, packed, (&epilogue, &Numbers), y, workspace);
    }
}
