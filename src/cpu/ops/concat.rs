//! `concat`, by its reference.

use super::super::kernel::{Context, CpuOp, Kernel};
use super::reference::Reference;
use crate::ops::Concat;

impl CpuOp for Concat {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
