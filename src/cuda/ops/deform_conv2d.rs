//! Deformable convolution: the implicit GEMM of a convolution, whose taps read the map through
//! `kernels/conv/deformed.cuh`.

use super::conv2d::{self, Besides, with_besides};
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::cuda::tiles::conv::{self, ConvChoice, ConvGemm};
use crate::ops::DeformConv2d;
use crate::plan::Site;

impl CudaOp for DeformConv2d {
    const ROUNDING: Rounding = Rounding::Samples;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        program(self, site, &conv::conv(&shape(self, site), target.precision, &target.caps)?)
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let choices = conv::candidates(&shape(self, site), target.precision, &target.caps)?;
        choices.iter().map(|choice| program(self, site, choice)).collect()
    }
}

/// The convolution of a site, as kernels see it.
pub fn shape(op: &DeformConv2d, site: &Site<'_>) -> ConvGemm {
    ConvGemm { deformed: true, ..conv2d::shape(&op.conv, site) }
}

/// As [`conv2d::program`].
///
/// # Errors
/// As there, and if the offsets are not f32.
pub fn program(op: &DeformConv2d, site: &Site<'_>, choice: &ConvChoice) -> Result<Program, String> {
    let besides = Besides { offsets: Some(op.offset_input()), ..Besides::default() };
    with_besides(&op.conv, site, choice, besides)
}
