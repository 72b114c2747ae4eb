//! The CPU's constants: those of the graph, and filters packed as its kernels read them, each made once and
//! shared between plans.

use super::buffer::AlignedBuffer;
use super::kernel::Packing;
use crate::error::Result;
use crate::graph::Param;
use crate::plan::Const;
use crate::plan::constants::{Constants, Loader};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Store of constants, filled on demand. Kept between plans so that a new input size loads little.
pub struct Weights {
    constants: Constants,
    packed: Mutex<HashMap<(String, Packing), Arc<AlignedBuffer>>>,
}

impl Weights {
    /// An empty store over a source of parameters.
    pub fn new(load: Box<Loader>) -> Self {
        Weights { constants: Constants::new(load), packed: Mutex::default() }
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
        packing: Packing,
        pack: impl FnOnce(&[f32], &mut [f32]),
    ) -> Result<Arc<AlignedBuffer>> {
        // A poisoned lock only means that another thread panicked between two whole insertions.
        let store = || self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (consts[index].key.clone(), packing);
        if let Some(known) = store().get(&key) {
            return Ok(known.clone());
        }
        let mut buffer = AlignedBuffer::new(packing.len)?;
        pack(self.constant(consts, index)?.data(), buffer.as_mut_slice());
        let buffer = Arc::new(buffer);
        store().insert(key, buffer.clone());
        Ok(buffer)
    }

    /// As [`Constants::trim`].
    pub fn trim(&self) {
        self.constants.trim();
    }
}
