//! A frame in flight: submitted, worked on by the session's own thread, waited for.

use super::result::Slot;
use super::session::Core;
use super::status::{Fault, Taken, caught, knet_status};
use knet::Error;
use knet::cpu::pin;
use knet::image::view::ImageView;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What a session's thread is asked to do.
pub(crate) struct Job {
    /// The caller's pixels, which stay until the frame has landed.
    pub image: ImageView<'static>,
    pub timestamp_ns: u64,
    pub result: Arc<Slot>,
}

#[derive(Default)]
enum Flight {
    #[default]
    None,
    Asked(Job),
    Working,
    /// What came of it, until somebody has waited for it.
    Done(Result<(), Fault>, Arc<Slot>),
}

impl Flight {
    fn is_under_way(&self) -> bool {
        matches!(self, Flight::Asked(_) | Flight::Working)
    }
}

#[derive(Default)]
struct Shared {
    /// And whether the thread is to end.
    state: Mutex<(Flight, bool)>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Flight, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, busy: impl Fn(&(Flight, bool)) -> bool) -> MutexGuard<'_, (Flight, bool)> {
        let waiting = self.changed.wait_while(self.lock(), |state| busy(state));
        waiting.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread of a session. It sleeps unless a frame is in flight.
pub(crate) struct Worker {
    core: Arc<Core>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The process it is of: one that was forked off has not got it.
    process: u32,
}

impl Worker {
    /// Starts the thread, on these CPUs alone if there are any.
    pub fn start(core: Arc<Core>, cpus: Vec<usize>) -> Result<Worker, Fault> {
        let shared = Arc::new(Shared::default());
        let (own, state) = (core.clone(), shared.clone());
        let work = move || {
            if !cpus.is_empty() {
                // The session's other threads run there, so these CPUs can be used.
                let _ = pin(&cpus);
            }
            serve(&own, &state);
        };
        let started = std::thread::Builder::new().name("knet-frames".into()).spawn(work);
        let thread = started.map_err(|e| Error::usage(format!("cannot start a thread: {e}")))?;
        Ok(Worker { core, shared, thread: Some(thread), process: std::process::id() })
    }

    /// Refuses what would wait for ever.
    pub fn check_process(&self) -> Result<(), Fault> {
        match self.process == std::process::id() {
            true => Ok(()),
            false => {
                Err(Fault::state("the session's thread stayed in the process that this one was forked off"))
            }
        }
    }

    /// Lets the frame fly; session and result stay taken until it has been waited for.
    pub fn submit(&self, job: Job, session: Taken<'_>, result: Taken<'_>) {
        session.keep();
        result.keep();
        self.shared.lock().0 = Flight::Asked(job);
        self.shared.changed.notify_all();
    }

    /// Whether [`Worker::wait`] would return at once.
    pub fn poll(&self) -> Result<bool, Fault> {
        match &self.shared.lock().0 {
            Flight::None => Err(nothing()),
            flight => Ok(!flight.is_under_way()),
        }
    }

    /// Waits for the frame, and says how it went.
    pub fn wait(&self) -> Result<(), Fault> {
        self.check_process()?;
        self.land().unwrap_or_else(|| Err(nothing()))
    }

    /// Waits for the frame, if there is one, and gives session and result back.
    fn land(&self) -> Option<Result<(), Fault>> {
        let mut state = self.shared.wait_while(|(flight, _)| flight.is_under_way());
        let Flight::Done(outcome, result) = std::mem::take(&mut state.0) else { return None };
        let broken = matches!(&outcome, Err(fault) if fault.status == knet_status::KNET_ERROR_INTERNAL);
        result.turn.land(broken);
        self.core.turn.land(broken);
        Some(outcome)
    }
}

/// There is no frame in flight.
pub(crate) fn nothing() -> Fault {
    Fault::state("no frame was submitted to the session, or it was waited for already")
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Its place may be another thread's by now.
            std::mem::forget(self.thread.take());
            return;
        }
        let _ = self.land();
        self.shared.lock().1 = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It catches what panics in it.
            let _ = thread.join();
        }
    }
}

/// The session's thread, from its first frame to the session's end.
fn serve(core: &Core, shared: &Shared) {
    loop {
        let mut state = shared.wait_while(|(flight, end)| !matches!(flight, Flight::Asked(_)) && !end);
        let asked = std::mem::replace(&mut state.0, Flight::Working);
        let Flight::Asked(Job { image, timestamp_ns, result }) = asked else {
            state.0 = Flight::None;
            return;
        };
        drop(state);
        let outcome = caught(|| {
            // SAFETY: session and result are taken for this frame until it has been waited for, and the
            // pixels are there until then.
            let (session, found) = unsafe { (&mut *core.session.get(), &mut *result.found.get()) };
            found.fill(timestamp_ns, |found| Ok(session.segment_into(image, found)?))
        });
        shared.lock().0 = Flight::Done(outcome, result);
        shared.changed.notify_all();
    }
}
