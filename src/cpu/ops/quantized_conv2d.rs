//! Quantized convolution: by [`tiles`] of products of codes; a depthwise one in f32, which holds its
//! integers.

use super::conv2d::shape;
use super::normalise;
use super::tiles::{self, by_storage};
use crate::cpu::conv::{AtLevels, Depthwise, Ends};
use crate::cpu::dot::DotConv;
use crate::cpu::gemm::Stored;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::QuantizedConv2d;
use crate::ops::levels::Levels;
use bytemuck::TransparentWrapper;
use std::marker::PhantomData;

impl CpuOp for QuantizedConv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let shape = shape(&self.conv, context);
        if shape.groups == 1 {
            return tiles::of_levels(
                self,
                DotConv { shape, dot: context.int8, rule: self.input.rule() },
                context,
            );
        }
        let depthwise = Depthwise { shape, isa: context.isa };
        by_storage!(context, X, Y, Channelwise::<X, Y>::boxed(*self, depthwise))
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        Some(self.kernel(context))
    }
}

/// A depthwise convolution of a map stored as `X` to one stored as `Y`.
struct Channelwise<X, Y> {
    op: QuantizedConv2d,
    depthwise: Depthwise,
    elements: PhantomData<fn(X) -> Y>,
}

impl<X: Stored, Y: Stored> Channelwise<X, Y> {
    fn boxed(op: QuantizedConv2d, depthwise: Depthwise) -> Box<dyn Kernel> {
        Box::new(Channelwise::<X, Y> { op, depthwise, elements: PhantomData })
    }
}

impl<X: Stored, Y: Stored> Kernel for Channelwise<X, Y> {
    fn name(&self) -> String {
        format!("depthwise int8 {}", self.depthwise.isa)
    }

    fn packing(&self) -> Option<PackedOperand> {
        let shape = &self.depthwise.shape;
        let (len, layout) = (shape.filter_len() + shape.c_out, PackedLayout::DepthwiseLevels);
        Some(PackedOperand { input: 1, len, layout, isa: Isa::Portable })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        let shape = &self.depthwise.shape;
        let channels = shape.c_out;
        let (levels, units) = packed.split_at_mut(shape.filter_len());
        let filters = source.chunks_exact(shape.kernel.iter().product());
        for (channel, (filter, unit)) in filters.zip(&mut units[..channels]).enumerate() {
            let own = Levels::of_filter(filter);
            *unit = self.op.input.step * own.step;
            for (tap, &w) in filter.iter().enumerate() {
                levels[tap * channels + channel] = own.level(w);
            }
        }
    }

    fn run(&self, args: &mut Args<'_>) {
        let (shape, epilogue) = (&self.depthwise.shape, self.op.conv.epilogue);
        let (filters, units) = args.packed.split_at(shape.filter_len());
        let ends = Ends {
            input: Some(self.op.input),
            units: Some(&units[..shape.c_out]),
            bias: epilogue.bias_input().map(|index| args.inputs[index]),
            residual: None,
            clamp: normalise::bounds(epilogue.activation),
            activation: epilogue.activation.filter(|activation| activation.clamp().is_none()),
            output: self.op.output,
        };
        let x = args.map::<X>(0, shape.input_len());
        let y = args.map_mut::<Y>(0, shape.output_len());
        // Codes without a sign are levels.
        if let Ok(codes) = bytemuck::try_cast_slice::<X, u8>(x)
            && X::CODE
            && !self.op.input.signed
        {
            return self.depthwise.run(codes, filters, &ends, y);
        }
        self.depthwise.run(AtLevels::wrap_slice(x), filters, &ends, y);
    }
}
