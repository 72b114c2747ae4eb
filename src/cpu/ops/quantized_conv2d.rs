//! Quantized convolution: by [`tiles`] of products of codes; a depthwise one in f32, which holds its
//! integers.

use super::conv2d::shape;
use super::tiles::{self, by_storage};
use crate::cpu::conv::{AtLevels, DepthwiseBands, Leveled};
use crate::cpu::dot::{DotConv, Store};
use crate::cpu::gemm;
use crate::cpu::kernel::{Args, Context, CpuOp, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::QuantizedConv2d;
use crate::ops::levels::Levels;
use bytemuck::Pod;
use std::marker::PhantomData;

impl CpuOp for QuantizedConv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let shape = shape(&self.conv, context);
        if shape.groups == 1 {
            return tiles::of_levels(self, DotConv { shape, dot: context.int8, rule: self.input }, context);
        }
        let bands = DepthwiseBands { shape, isa: context.isa };
        by_storage!(context, X, Y, Bands::<X, Y>::boxed(*self, bands, context))
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        Some(self.kernel(context))
    }
}

/// A depthwise convolution of a map stored as `X` to one stored as `Y`.
struct Bands<X, Y> {
    op: QuantizedConv2d,
    bands: DepthwiseBands,
    workspace: usize,
    elements: PhantomData<fn(X) -> Y>,
}

impl<X: Leveled + Pod, Y: Store> Bands<X, Y> {
    fn boxed(op: QuantizedConv2d, bands: DepthwiseBands, context: &Context<'_>) -> Box<dyn Kernel> {
        let workspace = bands.workspace_len(context.threads);
        Box::new(Bands::<X, Y> { op, bands, workspace, elements: PhantomData })
    }
}

impl<X: Leveled + Pod, Y: Store> Kernel for Bands<X, Y> {
    fn name(&self) -> String {
        format!("depthwise bands int8 {}", self.bands.isa)
    }

    fn workspace(&self) -> usize {
        self.workspace
    }

    fn packing(&self) -> Option<PackedOperand> {
        let shape = &self.bands.shape;
        let (len, layout) = (shape.filter_len() + shape.c_out, PackedLayout::DepthwiseLevels);
        Some(PackedOperand { input: 1, len, layout, isa: Isa::Portable })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        let shape = &self.bands.shape;
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
        let (shape, epilogue) = (&self.bands.shape, self.op.conv.epilogue);
        let (filters, units) = args.packed.split_at(shape.filter_len());
        let ends = AtLevels {
            input: self.op.input,
            units: &units[..shape.c_out],
            bias: epilogue.bias_input().map(|index| args.inputs[index]),
            activation: epilogue.activation,
            output: self.op.output,
        };
        let x = args.map::<X>(0, shape.input_len());
        let workspace = std::mem::take(&mut args.workspace);
        let y = args.map_mut::<Y>(0, shape.output_len());
        self.bands.run(x, filters, (&gemm::Epilogue::default(), &ends), y, workspace);
    }
}
