//! `batch_norm`, by its reference.

use super::super::kernel::{Context, CpuOp, Kernel};
use super::reference::Reference;
use crate::ops::BatchNorm;

impl CpuOp for BatchNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
