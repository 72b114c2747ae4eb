//! The threads that kernels run on.

use crate::error::{Error, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A rayon pool with a resident driver.
///
/// `rayon::ThreadPool::install` queues every call and allocates now and then for it. Here one of the
/// pool's threads waits for calls instead, so that handing it work allocates nothing and costs one
/// wake-up.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    /// Last, so that the driver has been told to stop before the pool waits for its threads.
    _rayon: rayon::ThreadPool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    call: Call,
    /// A caller owns the driver from its request to its result.
    owned: bool,
}

#[derive(Default)]
enum Call {
    #[default]
    Idle,
    Requested(Task),
    Running,
    Done(Option<Box<dyn Any + Send>>),
    Stop,
}

/// A borrowed closure. [`Pool::run`] does not return while the driver may still touch it.
struct Task(*mut (dyn FnMut() + Send));

// SAFETY: the closure behind the pointer is `Send`, and exactly one thread (the driver) uses it while the
// thread that lent it waits.
unsafe impl Send for Task {}

/// The number of threads that is meant: 0 means one per available core.
pub fn thread_count(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

impl Pool {
    /// A pool of [`thread_count`] threads.
    ///
    /// # Errors
    /// [`Error::Usage`] if the system refuses the threads.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = thread_count(threads);
        let rayon = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("knet-{i}"))
            .build()
            .map_err(|e| Error::usage(format!("cannot start {threads} threads: {e}")))?;
        // A thread's first search for work registers it with the queues' memory reclamation, which allocates.
        // Without this, that may happen in the midst of any later call.
        rayon.broadcast(|_| rayon::yield_now());
        let shared = Arc::new(Shared::default());
        let driver = shared.clone();
        rayon.spawn(move || driver.drive());
        Ok(Pool { shared, threads, _rayon: rayon })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on the driver thread, where rayon splits work over the pool, and waits for it. A panic
    /// in `work` continues in the caller.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let mut work = Some(work);
        let mut result = None;
        let mut task = || result = work.take().map(|work| work());
        let task: *mut (dyn FnMut() + Send) = &mut task;
        // SAFETY: only the lifetime is erased. The loop below waits until the driver is done with the
        // closure, so it outlives every use.
        let task = Task(unsafe {
            std::mem::transmute::<*mut (dyn FnMut() + Send), *mut (dyn FnMut() + Send + 'static)>(task)
        });

        let mut state = self.shared.wait(|state| !state.owned);
        state.owned = true;
        state.call = Call::Requested(task);
        drop(state);
        self.shared.changed.notify_all();

        let mut state = self.shared.wait(|state| matches!(state.call, Call::Done(_)));
        let panic = match std::mem::take(&mut state.call) {
            Call::Done(panic) => panic,
            _ => None,
        };
        state.owned = false;
        drop(state);
        self.shared.changed.notify_all();
        match (panic, result) {
            (Some(panic), _) => resume_unwind(panic),
            (None, Some(result)) => result,
            (None, None) => unreachable!("the driver finished without running the task"),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().call = Call::Stop;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn drive(&self) {
        loop {
            let mut state = self.wait(|state| matches!(state.call, Call::Requested(_) | Call::Stop));
            let Call::Requested(task) = std::mem::replace(&mut state.call, Call::Running) else { return };
            drop(state);
            // SAFETY: the lender waits for `Done`, so the closure is alive and nobody else uses it.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*task.0)() }));
            self.lock().call = Call::Done(outcome.err());
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, ready: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waiting = self.changed.wait_while(self.lock(), |state| !ready(state));
        waiting.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn runs_inside_the_pool_and_returns() {
        let pool = Pool::new(3).unwrap();
        for n in 0..200u64 {
            let sum: u64 = pool.run(|| (0..n).into_par_iter().sum());
            assert_eq!(sum, n * n.saturating_sub(1) / 2);
            assert_eq!(pool.run(rayon::current_num_threads), 3);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(1).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(|| panic!("boom"))));
        assert!(caught.is_err());
        assert_eq!(pool.run(|| 7), 7);
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for i in 0..4 {
                let pool = &pool;
                scope.spawn(move || (0..50).for_each(|j| assert_eq!(pool.run(|| i * j), i * j)));
            }
        });
    }
}
