//! The threads that kernels run on.

use super::affinity::pin;
use crate::error::{Error, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Where kernels run: on threads of the pool's own, or on the one that calls.
pub struct Pool(Kind);

enum Kind {
    /// The thread that calls [`Pool::run`].
    Caller,
    Threads(Threads),
}

/// A rayon pool with a resident driver.
///
/// `rayon::ThreadPool::install` queues every call and allocates now and then for it. Here one of the
/// pool's threads waits for calls instead, so that handing it work allocates nothing and costs one
/// wake-up.
struct Threads {
    shared: Arc<Shared>,
    /// All of them, for whoever ends the pool to wait for: none is left behind it.
    handles: Vec<JoinHandle<()>>,
    /// The process they are of: one that was forked off has none of them.
    process: u32,
    /// There until the pool ends.
    rayon: Option<rayon::ThreadPool>,
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
        Ok(Pool(Kind::Threads(Threads::start(thread_count(threads), &[])?)))
    }

    /// A pool of so many threads, all of which run on these CPUs alone; 0 threads: one for each of them.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are no CPUs, one of them cannot be used, or the system refuses the threads.
    pub fn on_cpus(threads: usize, cpus: &[usize]) -> Result<Self> {
        if cpus.is_empty() {
            return Err(Error::usage("no CPU to run on"));
        }
        let threads = if threads == 0 { cpus.len() } else { threads };
        Ok(Pool(Kind::Threads(Threads::start(threads, cpus)?)))
    }

    /// No threads: work is done by whoever calls, alone.
    ///
    /// A thread that has done so remains one of a rayon pool of its own: what else it does with rayon from
    /// then on, it does alone, and a few kilobytes for that are kept until the process ends.
    pub fn on_caller() -> Self {
        Pool(Kind::Caller)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        match &self.0 {
            Kind::Caller => 1,
            Kind::Threads(threads) => threads.handles.len(),
        }
    }

    /// Whether [`Pool::run`] can be called here.
    ///
    /// # Errors
    /// [`Error::State`] in a process that was forked off the one with the pool's threads, and for
    /// [`Pool::on_caller`] in a thread of a rayon pool of several.
    pub fn admit(&self) -> Result<()> {
        match &self.0 {
            Kind::Caller => admit_alone(),
            Kind::Threads(threads) if threads.process != std::process::id() => Err(Error::State(
                "the threads stayed in the process that this one was forked off: make a session here".into(),
            )),
            Kind::Threads(_) => Ok(()),
        }
    }

    /// Runs `work` where rayon splits work over the pool, and waits for it. A panic in `work` continues in
    /// the caller.
    ///
    /// # Panics
    /// As `work`; for [`Pool::on_caller`] where [`Pool::admit`] has an error.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Kind::Caller => {
                let admitted = admit_alone();
                assert!(admitted.is_ok(), "{admitted:?}");
                work()
            }
            Kind::Threads(threads) => threads.run(work),
        }
    }
}

/// Makes the calling thread, if it is in no rayon pool yet, the one of a pool of its own, so that kernels
/// find a pool of one thread and it does all their work.
fn admit_alone() -> Result<()> {
    if rayon::current_thread_index().is_some() {
        return match rayon::current_num_threads() {
            1 => Ok(()),
            n => Err(Error::State(format!(
                "a thread of a rayon pool of {n} cannot work alone: call from another"
            ))),
        };
    }
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    // The thread stays in it. Ending it would only mark as ended what goes on.
    std::mem::forget(alone.map_err(|e| Error::usage(format!("cannot work in the calling thread: {e}")))?);
    // The first search for work allocates: see `Threads::start`.
    rayon::yield_now();
    Ok(())
}

impl Threads {
    fn start(threads: usize, cpus: &[usize]) -> Result<Threads> {
        let mut handles = Vec::with_capacity(threads);
        let refused: Arc<Mutex<Option<std::io::Error>>> = Arc::default();
        let built = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .spawn_handler(|thread| {
                let (cpus, refused) = (cpus.to_vec(), refused.clone());
                let name = format!("knet-{}", thread.index());
                handles.push(std::thread::Builder::new().name(name).spawn(move || {
                    if !cpus.is_empty()
                        && let Err(reason) = pin(&cpus)
                    {
                        *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                    }
                    thread.run();
                })?);
                Ok(())
            })
            .build();
        let rayon = match built {
            Ok(rayon) => rayon,
            Err(reason) => {
                join(handles);
                return Err(Error::usage(format!("cannot start {threads} threads: {reason}")));
            }
        };
        // A thread's first search for work registers it with the queues' memory reclamation, which allocates.
        // Without this, that may happen in the midst of any later call. And all have started now.
        rayon.broadcast(|_| rayon::yield_now());
        let shared = Arc::new(Shared::default());
        let driver = shared.clone();
        rayon.spawn(move || driver.drive());
        let started = Threads { shared, handles, process: std::process::id(), rayon: Some(rayon) };
        match refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(started),
            Some(reason) => Err(Error::usage(format!("cannot run on the CPUs {cpus:?}: {reason}"))),
        }
    }

    /// As [`Pool::run`], on the driver thread.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
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

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().call = Call::Stop;
        self.shared.changed.notify_all();
        // Told to end, before they are waited for.
        drop(self.rayon.take());
        let handles = std::mem::take(&mut self.handles);
        if self.process == std::process::id() {
            join(handles);
        } else {
            // Their places may be other threads' by now.
            std::mem::forget(handles);
        }
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // A panic outside of any work has been told.
        let _ = thread.join();
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

    #[test]
    fn the_calling_thread_does_all_the_work_of_a_pool_without_threads() {
        let pool = Pool::on_caller();
        assert_eq!(pool.threads(), 1);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let here = std::thread::current().id();
                    pool.admit().unwrap();
                    let ran = pool.run(|| {
                        (0..100).into_par_iter().map(|_| std::thread::current().id()).collect::<Vec<_>>()
                    });
                    assert!(ran.iter().all(|&id| id == here), "work left the thread");
                    assert_eq!(pool.run(rayon::current_num_threads), 1);
                });
            }
        });
        // Where others would take part of the work it is refused, not shared.
        let refused = Pool::new(2).unwrap().run(|| pool.admit().unwrap_err());
        assert!(refused.to_string().contains("a rayon pool of 2"), "{refused}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_keep_to_their_cpus() {
        // SAFETY: asks for a number.
        let here = unsafe { libc::sched_getcpu() } as usize;
        let pool = Pool::on_cpus(0, &[here]).unwrap();
        assert_eq!(pool.threads(), 1);
        // SAFETY: as above.
        assert_eq!(pool.run(|| unsafe { libc::sched_getcpu() }) as usize, here);
        assert_eq!(Pool::on_cpus(3, &[here]).unwrap().threads(), 3);
        for (cpus, wanted) in [(&[here, 4000][..], "cannot run on the CPUs"), (&[], "no CPU")] {
            let refused = Pool::on_cpus(1, cpus).err().expect("refused").to_string();
            assert!(refused.contains(wanted), "{refused}");
        }
    }
}
