//! `linear`, by its reference.

use super::super::kernel::{Context, CpuOp, Kernel};
use super::reference::Reference;
use crate::ops::Linear;

impl CpuOp for Linear {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
