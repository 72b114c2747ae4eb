//! Convolution by the kernel that [`crate::cpu::conv::select`] names; in bf16 by tiles of dot products.

use super::epilogue::Tail;
use crate::cpu::conv::{Conv, ConvShape};
use crate::cpu::dot::{DotConv, Finish, Layout};
use crate::cpu::element::{Element, stored};
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::Conv2d;
use crate::ops::epilogue::Epilogue;
use crate::tensor::DType;
use half::bf16;
use std::marker::PhantomData;

struct Convolution {
    conv: Conv,
    tail: Tail,
    workspace: usize,
}

/// The shape of `op` at these types.
fn shape(op: &Conv2d, context: &Context<'_>) -> ConvShape {
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
        let (x, y) = (context.inputs[0].dtype, context.outputs[0].dtype);
        let residual = self.epilogue.residual_input().map(|index| context.inputs[index].dtype);
        if self.groups != 1 || residual.is_some_and(|dtype| dtype != y) {
            return None;
        }
        let conv = DotConv { shape: shape(self, context), dot: context.dot };
        let workspace = conv.workspace_len(context.threads);
        let (epilogue, isa) = (self.epilogue, context.isa);
        Some(match (x, y) {
            (DType::BF16, DType::BF16) => Tiles::<bf16, bf16>::boxed(conv, epilogue, isa, workspace),
            (DType::BF16, _) => Tiles::<bf16, f32>::boxed(conv, epilogue, isa, workspace),
            _ => Tiles::<f32, bf16>::boxed(conv, epilogue, isa, workspace),
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

/// Maps stored as `X` become one stored as `Y`, products of bf16.
struct Tiles<X, Y> {
    conv: DotConv,
    epilogue: Epilogue,
    isa: Isa,
    workspace: usize,
    elements: PhantomData<fn(X) -> Y>,
}

impl<X: Element, Y: Element> Tiles<X, Y> {
    fn boxed(conv: DotConv, epilogue: Epilogue, isa: Isa, workspace: usize) -> Box<dyn Kernel> {
        Box::new(Tiles::<X, Y> { conv, epilogue, isa, workspace, elements: PhantomData })
    }
}

impl<X: Element, Y: Element> Kernel for Tiles<X, Y> {
    fn name(&self) -> String {
        format!("tiles {}", self.conv.dot)
    }

    fn workspace(&self) -> usize {
        self.workspace
    }

    fn packing(&self) -> Option<PackedOperand> {
        let (len, layout) = (self.conv.packed_len(), PackedLayout::DotPanels);
        // One layout for all processors.
        Some(PackedOperand { input: 1, len, layout, isa: Isa::Portable })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.conv.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let (inputs, shape) = (args.inputs, &self.conv.shape);
        let finish = Finish {
            bias: self.epilogue.bias_input().map(|index| inputs[index]),
            residual: self.epilogue.residual_input().map(|index| stored(inputs[index], shape.output_len())),
            activation: self.epilogue.activation,
            layout: Layout::Channels(shape.c_out),
            isa: self.isa,
        };
        let x = args.map::<X>(0, shape.input_len());
        let workspace = std::mem::take(&mut args.workspace);
        let packed = args.packed;
        let y = args.map_mut::<Y>(0, shape.output_len());
        self.conv.run(x, packed, &finish, y, workspace);
    }
}
