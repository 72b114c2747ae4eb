//! `mask_pool`, by its reference.

use super::super::kernel::{Context, CpuOp, Kernel};
use super::reference::Reference;
use crate::ops::MaskPool;

impl CpuOp for MaskPool {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
