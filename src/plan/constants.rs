//! Constants on the host: parameters, and what is computed from them, each made once and shared between
//! plans. Back ends pack them into layouts and element types of their own.

use super::{Const, ConstSource};
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Gives the checkpoint tensor of a parameter, in the checkpoint's layout.
pub type ParamLoader = dyn Fn(&Param) -> Result<Tensor> + Send + Sync;

/// Values by key, each made once however many threads ask for it: the first makes it, the others wait. Any
/// number of plans and sessions hold a value.
pub struct Store<K, V> {
    slots: Mutex<HashMap<K, Arc<Slot<V>>>>,
}

type Slot<V> = Mutex<Option<Arc<V>>>;

impl<K, V> Default for Store<K, V> {
    fn default() -> Self {
        Store { slots: Mutex::default() }
    }
}

impl<K: Hash + Eq, V> Store<K, V> {
    /// The value of `key`, made by `make` if there is none.
    ///
    /// # Errors
    /// As `make`; the value can be asked for again.
    pub fn get(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        let slot = self.slot(key);
        let mut slot = lock(&slot);
        if let Some(known) = &*slot {
            return Ok(known.clone());
        }
        let made = Arc::new(make()?);
        *slot = Some(made.clone());
        Ok(made)
    }

    /// Keeps a value that came of the making of another, unless there is one or someone else makes it: it is
    /// not waited for, as that one may wait for this.
    pub fn offer(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<()> {
        let slot = self.slot(key);
        let mut slot = match slot.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if slot.is_none() {
            *slot = Some(Arc::new(make()?));
        }
        Ok(())
    }

    /// Forgets every value that no one holds.
    pub fn trim(&self) {
        let held = |slot: &Arc<Slot<V>>| {
            // A slot that someone fills or waits for is held too.
            let Ok(value) = slot.try_lock() else { return true };
            Arc::strong_count(slot) > 1 || value.as_ref().is_some_and(|value| Arc::strong_count(value) > 1)
        };
        lock(&self.slots).retain(|_, slot| held(slot));
    }

    /// Sum of `bytes` over all values that are there.
    pub fn total(&self, bytes: impl Fn(&V) -> usize) -> usize {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        slots.iter().filter_map(|slot| lock(slot).as_ref().map(|value| bytes(value))).sum()
    }

    /// All values that are there.
    pub fn values(&self) -> Vec<(K, Arc<V>)>
    where
        K: Clone,
    {
        let slots: Vec<_> = lock(&self.slots).iter().map(|(key, slot)| (key.clone(), slot.clone())).collect();
        slots.into_iter().filter_map(|(key, slot)| Some((key, lock(&slot).clone()?))).collect()
    }

    fn slot(&self, key: K) -> Arc<Slot<V>> {
        lock(&self.slots).entry(key).or_default().clone()
    }
}

/// Store of constants, filled on demand. Kept between plans so that a new input size loads little.
pub struct Constants {
    load: Box<ParamLoader>,
    known: Store<String, Tensor>,
}

impl Constants {
    /// An empty store over a source of parameters.
    pub fn new(load: Box<ParamLoader>) -> Self {
        Constants { load, known: Store::default() }
    }

    /// A store that makes nothing: what it is asked for lies elsewhere.
    pub fn none() -> Self {
        Constants::new(Box::new(|param: &Param| {
            Err(Error::State(format!("`{}`: there are no parameters here, only packed constants", param.key)))
        }))
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
        self.known.get(wanted.key.clone(), || self.make(consts, wanted))
    }

    fn make(&self, consts: &[Const], wanted: &Const) -> Result<Tensor> {
        let (op, operands, output) = match &wanted.source {
            ConstSource::Param(param) => return checked(wanted, param.layout.apply((self.load)(param)?)),
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
                    self.known.offer(sibling.key.clone(), || checked(sibling, results[*other].to_f32()))?;
                }
                _ => {}
            }
        }
        checked(wanted, results[output].to_f32())
    }

    /// Frees every constant that no one holds: packed filters replace their originals, which the checkpoint
    /// gives again if another plan packs them otherwise.
    pub fn trim(&self) {
        self.known.trim();
    }

    /// The constants that are held, by their keys.
    pub fn held(&self) -> Vec<(String, Arc<Tensor>)> {
        self.known.values()
    }

    /// Bytes of the constants that are held.
    pub fn bytes(&self) -> usize {
        self.known.total(|tensor| 4 * tensor.shape().len())
    }
}

/// `tensor`, if it is what a plan expects of the constant `wanted`.
fn checked(wanted: &Const, tensor: Tensor) -> Result<Tensor> {
    // Constants are floats: indices computed from parameters alone have no use and no place here.
    if tensor.shape() != wanted.ty.shape || wanted.ty.dtype != DType::F32 {
        let (found, key) = (tensor.shape(), &wanted.key);
        return Err(Error::Graph(format!("constant `{key}` is {found}, the plan expects {}", wanted.ty)));
    }
    Ok(tensor)
}

/// A poisoned lock only means that another thread panicked between two whole insertions.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn many_threads_make_a_value_once_and_share_it() {
        let (store, made) = (Store::<u32, Vec<u8>>::default(), AtomicUsize::new(0));
        let ask = || {
            store.get(7, || {
                made.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
                Ok(vec![1; 100])
            })
        };
        let held = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert!(held.iter().all(|value| Arc::ptr_eq(value, &held[0])));
        assert_eq!(store.total(Vec::len), 100);
        store.trim();
        assert_eq!(store.total(Vec::len), 100, "someone holds it");
        drop(held);
        store.trim();
        assert_eq!(store.total(Vec::len), 0);
    }

    #[test]
    fn what_fails_can_be_asked_for_again() {
        let store = Store::<u32, u8>::default();
        assert!(store.get(1, || Err(Error::usage("not yet"))).is_err());
        store.offer(1, || Ok(5)).unwrap();
        store.offer(1, || Ok(6)).unwrap();
        assert_eq!(*store.get(1, || Ok(7)).unwrap(), 5);
    }
}
