//! One value everywhere, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::Fill;
use rayon::prelude::*;

struct Constant(f32);

impl CpuOp for Fill {
    fn kernel(&self, _: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Constant(self.value))
    }
}

impl Kernel for Constant {
    fn name(&self) -> String {
        "fill".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK).for_each(|y| y.fill(self.0));
    }
}
