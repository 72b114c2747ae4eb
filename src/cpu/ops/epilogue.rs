//! The tail of a product: what the GEMM fuses into its last store, and what is left to a second pass.

use super::activation;
use super::{ELEMENTS_PER_TASK, Isa};
use crate::cpu::gemm::{Bias, Epilogue as Fused};
use crate::cpu::kernel::MAX_INPUTS;
use crate::ops::epilogue::Epilogue;
use rayon::prelude::*;

/// An operator's epilogue on the CPU.
pub(crate) struct Tail {
    epilogue: Epilogue,
    isa: Isa,
}

impl Tail {
    /// The tail of an operator.
    pub(crate) fn new(epilogue: Epilogue, isa: Isa) -> Self {
        Tail { epilogue, isa }
    }

    /// Bias, residual and clamp, over the operands of the step.
    pub(crate) fn fused<'a>(&self, inputs: &[&'a [f32]; MAX_INPUTS]) -> Fused<'a> {
        Fused {
            bias: self.epilogue.bias_input().map(|i| Bias::Column(inputs[i])),
            residual: self.epilogue.residual_input().map(|i| inputs[i]),
            clamp: self.epilogue.activation.and_then(|a| a.clamp()),
        }
    }

    /// Whether [`Tail::fused`] is all of it.
    pub(crate) fn is_fused(&self) -> bool {
        self.epilogue.activation.is_none_or(|a| a.clamp().is_some())
    }

    /// An activation that is no clamp, in place.
    pub(crate) fn finish(&self, y: &mut [f32]) {
        if let Some(activation) = self.epilogue.activation.filter(|a| a.clamp().is_none()) {
            y.par_chunks_mut(ELEMENTS_PER_TASK).for_each(|y| activation::apply(self.isa, activation, y));
        }
    }
}
