//! `sine_positional_encoding`, by its reference.

use super::super::kernel::{Context, CpuOp, Kernel};
use super::reference::Reference;
use crate::ops::SinePositionalEncoding;

impl CpuOp for SinePositionalEncoding {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Reference::new(*self, context)
    }
}
