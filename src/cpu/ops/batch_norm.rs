//! Frozen batch norm that no convolution could absorb: one multiply-add per element.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::normalise::{Affine, rows_per_task};
use crate::ops::BatchNorm;
use rayon::prelude::*;

struct Frozen {
    eps: f32,
    channels: usize,
    isa: Isa,
}

impl CpuOp for BatchNorm {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Frozen { eps: self.eps, channels: context.inputs[0].shape.last(), isa: context.isa })
    }
}

impl Kernel for Frozen {
    fn name(&self) -> String {
        "affine".to_string()
    }

    fn workspace(&self) -> usize {
        self.channels
    }

    fn run(&self, args: &mut Args<'_>) {
        let [x, gamma, beta, mean, variance, ..] = args.inputs;
        let scale = &mut args.workspace[..self.channels];
        for (c, scale) in scale.iter_mut().enumerate() {
            *scale = (f64::from(gamma[c]) / (f64::from(variance[c]) + f64::from(self.eps)).sqrt()) as f32;
        }
        let affine = Affine { mean, scale, shift: beta, activation: None };
        let chunk = rows_per_task(self.channels) * self.channels.max(1);
        let y = args.outputs[0].par_chunks_mut(chunk);
        y.zip(x.par_chunks(chunk)).for_each(|(y, x)| affine.run(self.isa, x, y));
    }
}
