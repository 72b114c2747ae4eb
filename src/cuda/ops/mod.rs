//! One file an operator: what it launches on a GPU. Pure functions of shapes, types and the device's capabilities.

pub(crate) mod activation;
pub(crate) mod cast;
pub mod conv2d;
mod launches;

use crate::ops::{Op, Operator};
use crate::plan::Site;
use crate::plan::launch::{Program, Target};

/// An operator a GPU can run.
pub trait CudaOp: Operator {
    /// What runs at this site.
    ///
    /// # Errors
    /// A sentence on what the kernels cannot take.
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String>;
}

/// The program of any operator.
///
/// # Errors
/// As [`CudaOp::program`]; operators of training have no CUDA kernels.
pub fn program(site: &Site<'_>, target: &Target) -> Result<Program, String> {
    if site.outputs.iter().all(|output| output.shape.is_empty()) {
        return Ok(Program { kernel: "nothing".into(), ..Program::default() });
    }
    match site.op {
        Op::Activate(op) => op.program(site, target),
        Op::Conv2d(op) => op.program(site, target),
        other => Err(format!("operator {} has no CUDA kernel", other.name())),
    }
}
