//! Working memory lent to whichever thread asks.

use std::sync::{Mutex, PoisonError};

/// Working memories of one kind, at least one for each thread of the pool in use.
#[derive(Debug)]
pub(super) struct WorkerPool<W>(Mutex<Vec<W>>);

impl<W> Default for WorkerPool<W> {
    fn default() -> Self {
        WorkerPool(Mutex::default())
    }
}

impl<W> WorkerPool<W> {
    /// Drops all, because sizes changed.
    pub(super) fn clear(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Makes what is missing for the current thread pool, so that nothing is made while tasks run.
    pub(super) fn fill(&mut self, make: impl FnMut() -> W) {
        let workers = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if workers.len() < rayon::current_num_threads() {
            workers.resize_with(rayon::current_num_threads(), make);
        }
    }

    /// Calls `task` with a working memory that no other thread holds meanwhile.
    ///
    /// # Panics
    /// If more threads ask than [`WorkerPool::fill`] saw.
    pub(super) fn lend<R>(&self, task: impl FnOnce(&mut W) -> R) -> R {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut worker = idle.expect("a working memory for each thread");
        let outcome = task(&mut worker);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        outcome
    }
}
