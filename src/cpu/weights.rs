//! Constants in memory: parameters, what is computed from them, and packed filters, each made once and
//! shared between plans.

use super::buffer::AlignedBuffer;
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::plan::{Const, ConstSource, Plan};
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Gives the checkpoint tensor of a parameter, in the checkpoint's layout.
pub type Loader = dyn Fn(&Param) -> Result<Tensor> + Send + Sync;

/// Store of constants, filled on demand. Kept between plans so that a new input size loads little.
pub struct Weights {
    load: Box<Loader>,
    plain: Mutex<HashMap<String, Arc<Tensor>>>,
    packed: Mutex<HashMap<(String, String), Arc<AlignedBuffer>>>,
}

impl Weights {
    /// An empty store over a source of parameters.
    pub fn new(load: Box<Loader>) -> Self {
        Weights { load, plain: Mutex::default(), packed: Mutex::default() }
    }

    /// A parameter in the checkpoint's layout, from the source; nothing is kept.
    ///
    /// # Errors
    /// Whatever the source of parameters says.
    pub fn load(&self, param: &Param) -> Result<Tensor> {
        (self.load)(param)
    }

    /// The constant `index` of `plan` in the graph's layout.
    ///
    /// # Errors
    /// Whatever the source of parameters says; [`Error::Graph`] if a tensor has not the type the plan expects.
    pub fn constant(&self, plan: &Plan, index: usize) -> Result<Arc<Tensor>> {
        let wanted = &plan.consts[index];
        if let Some(known) = lock(&self.plain).get(&wanted.key) {
            return Ok(known.clone());
        }
        let (op, operands, output) = match &wanted.source {
            ConstSource::Param(param) => {
                return self.keep(wanted, param.layout.apply((self.load)(param)?));
            }
            ConstSource::Computed { op, inputs, output } => (op, inputs, *output),
        };
        let inputs: Vec<Tensor<f64>> =
            operands.iter().map(|&i| Ok(self.constant(plan, i)?.to_f64())).collect::<Result<_>>()?;
        let results = op.reference(&inputs.iter().collect::<Vec<_>>());
        drop(inputs);
        // The operator's other results are wanted too, or will be: compute it once.
        for sibling in &plan.consts {
            match &sibling.source {
                ConstSource::Computed { op: of, inputs, output: other }
                    if *other != output && of == op && inputs == operands =>
                {
                    self.keep(sibling, results[*other].to_f32())?;
                }
                _ => {}
            }
        }
        self.keep(wanted, results[output].to_f32())
    }

    /// Stores `tensor` as the constant `wanted`.
    fn keep(&self, wanted: &Const, tensor: Tensor) -> Result<Arc<Tensor>> {
        // Constants are floats: indices computed from parameters alone have no use and no place here.
        if tensor.shape() != wanted.ty.shape || wanted.ty.dtype != DType::F32 {
            let (found, key) = (tensor.shape(), &wanted.key);
            return Err(Error::Graph(format!("constant `{key}` is {found}, the plan expects {}", wanted.ty)));
        }
        let tensor = Arc::new(tensor);
        lock(&self.plain).insert(wanted.key.clone(), tensor.clone());
        Ok(tensor)
    }

    /// The constant `index` of `plan` as the kernel called `kernel` packs it.
    ///
    /// # Errors
    /// As [`Weights::constant`].
    pub fn packed(
        &self,
        plan: &Plan,
        index: usize,
        kernel: &str,
        len: usize,
        pack: impl FnOnce(&[f32], &mut [f32]),
    ) -> Result<Arc<AlignedBuffer>> {
        let key = (plan.consts[index].key.clone(), kernel.to_string());
        if let Some(known) = lock(&self.packed).get(&key) {
            return Ok(known.clone());
        }
        let mut buffer = AlignedBuffer::new(len);
        pack(self.constant(plan, index)?.data(), buffer.as_mut_slice());
        let buffer = Arc::new(buffer);
        lock(&self.packed).insert(key, buffer.clone());
        Ok(buffer)
    }

    /// Frees every constant that no executor holds in the graph's layout: packed filters replace their
    /// originals, which the checkpoint gives again if another plan packs them otherwise.
    pub fn trim(&self) {
        lock(&self.plain).retain(|_, tensor| Arc::strong_count(tensor) > 1);
    }
}

/// A poisoned lock only means that another thread panicked between two whole insertions.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
