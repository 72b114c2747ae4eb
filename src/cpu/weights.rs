//! The CPU's constants: those of the graph, and filters packed as its kernels read them, each made once and
//! shared between plans, or mapped from a bundle as they are.

use super::buffer::AlignedBuffer;
use super::kernel::PackedOperand;
use crate::bundle::{Bundle, Floats};
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
    bundle: Option<Arc<Bundle>>,
}

/// A constant that a step reads.
#[derive(Clone)]
pub enum Constant {
    /// As the graph lays it out.
    Plain(Arc<Tensor>),
    /// As a kernel reads it.
    Packed(Arc<AlignedBuffer>),
    /// Either, in a file.
    Mapped(Floats),
}

impl Constant {
    /// The floats.
    pub fn as_slice(&self) -> &[f32] {
        match self {
            Constant::Plain(tensor) => tensor.data(),
            Constant::Packed(buffer) => buffer.as_slice(),
            Constant::Mapped(floats) => floats.as_slice(),
        }
    }
}

impl Weights {
    /// An empty store over a source of parameters.
    pub fn new(load: Box<ParamLoader>) -> Self {
        Weights { constants: Constants::new(load), packed: Store::default(), bundle: None }
    }

    /// The constants of a bundle: nothing is loaded or packed.
    pub fn mapped(bundle: Arc<Bundle>) -> Self {
        Weights { constants: Constants::none(), packed: Store::default(), bundle: Some(bundle) }
    }

    /// The bundle, if they come of one.
    pub fn bundle(&self) -> Option<&Arc<Bundle>> {
        self.bundle.as_ref()
    }

    /// As [`Constants::load`].
    ///
    /// # Errors
    /// As there.
    pub fn load(&self, param: &Param) -> Result<Tensor> {
        self.constants.load(param)
    }

    /// The constant `index` of a plan's `consts` in the graph's layout.
    ///
    /// # Errors
    /// As [`Constants::constant`], or [`Bundle::floats`].
    pub fn constant(&self, consts: &[Const], index: usize) -> Result<Constant> {
        let Const { key, ty, .. } = &consts[index];
        match &self.bundle {
            Some(bundle) => Ok(Constant::Mapped(bundle.floats(&name(key, None), ty.shape.len())?)),
            None => Ok(Constant::Plain(self.constants.constant(consts, index)?)),
        }
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
    ) -> Result<Constant> {
        let key = &consts[index].key;
        if let Some(bundle) = &self.bundle {
            return Ok(Constant::Mapped(bundle.floats(&name(key, Some(&packing)), packing.len)?));
        }
        let made = self.packed.get((key.clone(), packing), || {
            let mut buffer = AlignedBuffer::new(packing.len)?;
            pack(self.constants.constant(consts, index)?.data(), buffer.as_mut_slice());
            Ok(buffer)
        })?;
        Ok(Constant::Packed(made))
    }

    /// Everything that is here, by the names under which a bundle has it, in the order of these.
    pub fn entries(&self) -> Vec<(String, Constant)> {
        let plain = self.constants.held().into_iter();
        let plain = plain.map(|(key, tensor)| (name(&key, None), Constant::Plain(tensor)));
        let packed = self.packed.values().into_iter();
        let packed =
            packed.map(|((key, packing), buffer)| (name(&key, Some(&packing)), Constant::Packed(buffer)));
        let mut all: Vec<_> = plain.chain(packed).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Constants on the host, for back ends that pack them otherwise.
    pub fn constants(&self) -> &Constants {
        &self.constants
    }

    /// Bytes of the constants that plans share, packed and plain; of a bundle, those of its file.
    pub fn bytes(&self) -> usize {
        let mapped = self.bundle.as_ref().map_or(0, |bundle| bundle.file().contents().len());
        mapped + self.constants.bytes() + self.packed.total(|buffer| 4 * buffer.as_slice().len())
    }

    /// As [`Constants::trim`].
    pub fn trim(&self) {
        self.constants.trim();
    }
}

/// The name of a constant in a bundle.
fn name(key: &str, packing: Option<&PackedOperand>) -> String {
    match packing {
        None => format!("cpu {key}"),
        Some(packing) => format!("cpu {packing:?} {key}"),
    }
}
