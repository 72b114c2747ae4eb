//! Gradients of convolutions.

use super::reference::Reference;
use crate::cpu::kernel::{Context, CpuOp, Kernel};
use crate::ops::{Conv2dFilterGrad, Conv2dInputGrad};

impl CpuOp for Conv2dInputGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}

impl CpuOp for Conv2dFilterGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
