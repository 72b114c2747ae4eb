//! `fused_conv2d`, by its reference: graphs for the CPU have none.

use super::super::kernel::{Context, CpuOp, Kernel};
use super::reference::Reference;
use crate::ops::FusedConv2d;

impl CpuOp for FusedConv2d {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
