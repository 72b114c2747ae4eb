//! One file an operator: how the CPU runs it.

use super::kernel::{Context, CpuOp, Kernel};
use crate::for_each_op;
use crate::isa::Isa;
use crate::ops::Op;

macro_rules! define_kernels {
    ($($($variant:ident),+ in $module:ident;)*) => {
        $(mod $module;)*

        /// The kernel of any operator.
        pub(crate) fn kernel(op: &Op, context: &Context<'_>) -> Box<dyn Kernel> {
            match op { $($(Op::$variant(op) => CpuOp::kernel(op, context),)+)* }
        }
    };
}
for_each_op!(define_kernels);

pub(crate) mod epilogue;
mod exp;
mod normalise;
mod normalise_grad;
mod product;
mod reference;
mod resize_grad;

/// Fewest elements worth a task of their own for kernels that stream memory. Fixed, so that the split (and
/// with it every bit) is the same for any number of threads.
pub(crate) const ELEMENTS_PER_TASK: usize = 16 * 1024;
