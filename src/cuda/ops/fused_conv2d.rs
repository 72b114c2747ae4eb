//! A convolution with tails: as a convolution, with the code of `kernels/conv/tail.cuh`.

use super::conv2d::{Besides, shape, with_besides};
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::cuda::tiles::conv::{self, ConvChoice};
use crate::ops::FusedConv2d;
use crate::plan::Site;

impl CudaOp for FusedConv2d {
    const ROUNDING: Rounding = Rounding::Between;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        program(self, site, &conv::conv(&shape(&self.conv, site), target.precision, &target.caps)?)
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let choices = conv::candidates(&shape(&self.conv, site), target.precision, &target.caps)?;
        choices.iter().map(|choice| program(self, site, choice)).collect()
    }
}

/// As [`conv2d::program`](super::conv2d::program).
///
/// # Errors
/// As there, and if the chosen kernel has no such tail.
pub fn program(op: &FusedConv2d, site: &Site<'_>, choice: &ConvChoice) -> Result<Program, String> {
    let besides = Besides { upsampled: op.upsampled, groups: op.groups, ..Besides::default() };
    with_besides(&op.conv, site, choice, besides)
}
