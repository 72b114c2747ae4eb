//! The CPU's constants: those of the graph, and filters packed as its kernels read them, each made once and
//! shared between plans.

use super::buffer::AlignedBuffer;
use super::kernel::PackedOperand;
use crate::error::Result;
use crate::graph::Param;
use crate::plan::Const;
use crate::plan::constants::{Constants, ParamLoader, Store};
use crate::tensor::Tensor;
use std::sync::Arc;

/// Store of constants, filled on demand. Kept between plans so that a new input size loads little.
pub struct Weights {
    constants: Constants,
    packed: Store<(String, PackedOperand), AlignedBuffer>,
}

impl Weights {
    /// An empty store over a source of parameters.
    pub fn new(load: Box<ParamLoader>) -> Self {
        Weights { constants: Constants::new(load), packed: Store::default() }
    }

    /// As [`Constants::load`].
    ///
    /// # Errors
    /// As there.
    pub fn load(&self, param: &Param) -> Result<Tensor> {
        self.constants.load(param)
    }

    /// As [`Constants::constant`].
    ///
    /// # Errors
    /// As there.
    pub fn constant(&self, consts: &[Const], index: usize) -> Result<Arc<Tensor>> {
        self.constants.constant(consts, index)
    }

    /// The constant `index` of a plan's `consts`, packed by `pack` as `packing` says.
    ///
    /// # Errors
    /// As [`Weights::constant`].
    pub fn packed(
        &self,
        consts: &[Const],
        index: usize,
        packing: PackedOperand,
        pack: impl FnOnce(&[f32], &mut [f32]),
    ) -> Result<Arc<AlignedBuffer>> {
        self.packed.get((consts[index].key.clone(), packing), || {
            let mut buffer = AlignedBuffer::new(packing.len)?;
            pack(self.constant(consts, index)?.data(), buffer.as_mut_slice());
            Ok(buffer)
        })
    }

    /// Bytes of the constants that plans share, packed and plain.
    pub fn bytes(&self) -> usize {
        self.constants.bytes() + self.packed.total(|buffer| 4 * buffer.as_slice().len())
    }

    /// As [`Constants::trim`].
    pub fn trim(&self) {
        self.constants.trim();
    }
}
