//! The least time a step can take on a GPU: its operations at the device's peak or its bytes at the memory's
//! bandwidth, whichever is longer (Williams, Waterman, Patterson 2009).

use super::{Caps, Precision, Target, rates};
use crate::cuda::launch::Program;
use crate::cuda::stored;
use crate::ops::Op;
use crate::plan::{Place, Plan, Step};
use std::collections::BTreeMap;
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

/// What the steps of one operator take together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperatorShare {
    /// The operator.
    pub name: &'static str,
    /// Steps.
    pub steps: usize,
    /// Launches.
    pub launches: usize,
    /// Operations.
    pub flops: u64,
    /// Bytes, as [`bytes`] counts them.
    pub bytes: u64,
    /// The least time.
    pub least: Duration,
}

/// The operators of a plan, what takes most time first.
pub fn by_operator(plan: &Plan<Program>, target: &Target) -> Vec<OperatorShare> {
    let mut shares: BTreeMap<&'static str, OperatorShare> = BTreeMap::new();
    for one in &plan.steps {
        let name = one.op.name();
        let share = shares.entry(name).or_insert(OperatorShare { name, ..OperatorShare::default() });
        share.steps += 1;
        share.launches += one.program.launches.len();
        share.flops += one.flops;
        share.bytes += bytes(one, target);
        share.least += step(one, target);
    }
    let mut shares: Vec<_> = shares.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.least));
    shares
}

/// A line for each.
pub fn table(shares: &[OperatorShare]) -> String {
    let total: Duration = shares.iter().map(|share| share.least).sum();
    let mut text = format!(
        "{:<26} {:>7} {:>9} {:>10} {:>10} {:>10} {:>7}\n",
        "operator", "steps", "launches", "GFLOP", "MiB", "roof µs", "share"
    );
    for OperatorShare { name, steps, launches, flops, bytes, least } in shares {
        text += &format!(
            "{name:<26} {steps:>7} {launches:>9} {:>10.2} {:>10.1} {:>10.1} {:>6.1}%\n",
            *flops as f64 / 1e9,
            *bytes as f64 / f64::from(1 << 20),
            least.as_secs_f64() * 1e6,
            100.0 * least.as_secs_f64() / total.as_secs_f64()
        );
    }
    text
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
