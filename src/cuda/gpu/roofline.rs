//! The least time a step can take on a GPU: its operations at the device's peak or its bytes at the memory's
//! bandwidth, whichever is longer (Williams, Waterman, Patterson 2009).

use super::{Caps, Precision, Target, rates};
use crate::cuda::stored;
use crate::ops::Op;
use crate::plan::{Place, Plan, Step};
use std::time::Duration;

/// Peak of dense multiply-adds with f32 accumulation, in operations a second (a multiply-add counts two). By
/// the rates of tensor cores for 16-bit types, of the f32 pipes else.
pub fn peak(caps: &Caps, precision: Precision) -> f64 {
    let multiply_adds = match precision {
        Precision::F32 => rates::fma(caps.compute),
        Precision::Tf32x3 => return peak(caps, Precision::F16) / rates::TF32X3,
        Precision::F16 | Precision::Bf16 => rates::tensor(caps.compute),
    };
    2.0 * multiply_adds * f64::from(caps.multiprocessors) * f64::from(caps.clock_mhz) * 1e6
}

/// Bytes of a step's operands and results on the device, each counted once. Constants, which plans know by
/// the graph's type, count by their role as if they lay in the arena, but for filters of convolutions:
/// kernels read those in the precision's type.
pub fn bytes<P>(step: &Step<P>, target: &Target) -> u64 {
    let convolution = matches!(step.op, Op::Conv2d(_) | Op::DeformConv2d(_) | Op::FusedConv2d(_));
    let inputs = step.inputs.iter().enumerate().map(|(index, operand)| match operand.place {
        Place::Const(_) if convolution && index == 1 => {
            operand.ty.shape.len() * target.precision.storage().size()
        }
        Place::Const(_) => stored(*target)(operand.ty).bytes(),
        Place::Arena(_) => operand.ty.bytes(),
    });
    inputs.chain(step.outputs.iter().map(|output| output.ty.bytes())).map(|bytes| bytes as u64).sum()
}

/// The least time of so many operations.
pub fn compute(flops: u64, target: &Target) -> Duration {
    Duration::from_secs_f64(flops as f64 / peak(&target.caps, target.precision))
}

/// The least time of a step.
pub fn step<P>(step: &Step<P>, target: &Target) -> Duration {
    let memory = bytes(step, target) as f64 / (f64::from(target.caps.bandwidth_gbs) * 1e9);
    compute(step.flops, target).max(Duration::from_secs_f64(memory))
}

/// The least time of a plan whose steps run one after the other.
pub fn plan<P>(plan: &Plan<P>, target: &Target) -> Duration {
    plan.steps.iter().map(|s| step(s, target)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_h100_has_the_peaks_of_its_data_sheet() {
        let (half, single) = (peak(&Caps::H100, Precision::F16), peak(&Caps::H100, Precision::F32));
        assert!((half / 989e12 - 1.0).abs() < 0.01, "{half:e}");
        assert!((single / 61.8e12 - 1.0).abs() < 0.01, "{single:e}");
    }
}
