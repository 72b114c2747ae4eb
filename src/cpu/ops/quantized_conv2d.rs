//! Quantized convolution: by [`tiles`] of products of codes.

use super::conv2d::shape;
use super::tiles;
use crate::cpu::dot::DotConv;
use crate::cpu::kernel::{Context, CpuOp, Kernel};
use crate::ops::QuantizedConv2d;

impl CpuOp for QuantizedConv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let shape = shape(&self.conv, context);
        tiles::of_levels(self, DotConv { shape, dot: context.int8, rule: self.input }, context)
    }

    fn bf16_kernel(&self, context: &Context<'_>) -> Option<Box<dyn Kernel>> {
        Some(self.kernel(context))
    }
}
