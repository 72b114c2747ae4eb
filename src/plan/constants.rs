//! Constants on the host: parameters, and what is computed from them, each made once and shared between
//! plans. Back ends pack them into layouts and element types of their own.

use super::{Const, ConstSource};
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gives the checkpoint tensor of a parameter, in the checkpoint's layout.
pub type Loader = dyn Fn(&Param) -> Result<Tensor> + Send + Sync;

/// Store of constants, filled on demand. Kept between plans so that a new input size loads little.
pub struct Constants {
    load: Box<Loader>,
    known: Mutex<HashMap<String, Arc<Tensor>>>,
}

impl Constants {
    /// An empty store over a source of parameters.
    pub fn new(load: Box<Loader>) -> Self {
        Constants { load, known: Mutex::default() }
    }

    /// A parameter in the checkpoint's layout, from the source; nothing is kept.
    ///
    /// # Errors
    /// Whatever the source of parameters says.
    pub fn load(&self, param: &Param) -> Result<Tensor> {
        (self.load)(param)
    }

    /// The constant `index` of a plan's `consts` in the graph's layout.
    ///
    /// # Errors
    /// Whatever the source of parameters says; [`Error::Graph`] if a tensor has not the type the plan
    /// expects.
    pub fn constant(&self, consts: &[Const], index: usize) -> Result<Arc<Tensor>> {
        let wanted = &consts[index];
        if let Some(known) = lock(&self.known).get(&wanted.key) {
            return Ok(known.clone());
        }
        let (op, operands, output) = match &wanted.source {
            ConstSource::Param(param) => {
                return self.keep(wanted, param.layout.apply((self.load)(param)?));
            }
            ConstSource::Computed { op, inputs, output } => (op, inputs, *output),
        };
        let inputs: Vec<Tensor<f64>> =
            operands.iter().map(|&i| Ok(self.constant(consts, i)?.to_f64())).collect::<Result<_>>()?;
        let results = op.reference(&inputs.iter().collect::<Vec<_>>());
        drop(inputs);
        // The operator's other results are wanted too, or will be: compute it once.
        for sibling in consts {
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
        lock(&self.known).insert(wanted.key.clone(), tensor.clone());
        Ok(tensor)
    }

    /// Frees every constant that no one holds: packed filters replace their originals, which the checkpoint
    /// gives again if another plan packs them otherwise.
    pub fn trim(&self) {
        lock(&self.known).retain(|_, tensor| Arc::strong_count(tensor) > 1);
    }
}

/// A poisoned lock only means that another thread panicked between two whole insertions.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
