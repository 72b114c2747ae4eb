//! Means, in fixed chunks.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::ELEMENTS_PER_TASK;
use crate::ops::Mean;
use rayon::prelude::*;

struct Values(usize);

impl CpuOp for Mean {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Values(context.inputs.len()))
    }
}

impl Kernel for Values {
    fn name(&self) -> String {
        "mean".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let inputs = &args.inputs[..self.0];
        args.outputs[0].par_chunks_mut(ELEMENTS_PER_TASK).enumerate().for_each(|(task, y)| {
            let (from, count) = (task * ELEMENTS_PER_TASK, self.0 as f32);
            y.copy_from_slice(&inputs[0][from..][..y.len()]);
            for x in &inputs[1..] {
                y.iter_mut().zip(&x[from..]).for_each(|(y, x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y /= count);
        });
    }
}
