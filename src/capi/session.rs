//! Sessions.

use super::flight::{Job, Worker, nothing};
use super::frame::{knet_frame, view};
use super::model::{KNET_TASK_INSTANCE, KNET_TASK_PANOPTIC, KNET_TASK_SEMANTIC, knet_model};
use super::result::knet_result;
use super::status::{Fault, Turn, guarded, knet_status};
use super::structs::{Versioned, give, handle, read, read_or_default, write};
use knet::engine::{InputSize, MaskSize, SessionOptions};
use knet::model::Task;
use knet::task::PostprocessOptions;
use knet::{Error, Session};
use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Masks and maps have the size of the frame.
pub const KNET_MASKS_OF_FRAME: u32 = 0;
/// Masks and maps have the size that the frame has in the network, after the resize: less to write and to
/// read where frames are larger than what the network sees. knet_result_info says how large that is.
pub const KNET_MASKS_OF_NETWORK: u32 = 1;

/// What a session gives, and with what. Zeros are the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_session_options {
    /// sizeof(knet_session_options).
    pub struct_size: u32,
    /// A KNET_TASK_*; 0 for the model's own. A panoptic model gives instances too.
    pub task: u32,
    /// Threads of the session, which sleep between calls; 0 for one a core, or for one for each of `cpus`.
    /// Results do not depend on it.
    pub threads: u32,
    /// Frames are resized to fit into so many pixels, short side and long side, before the network sees them;
    /// both 0 for the model's own size.
    pub short_side: u32,
    /// See short_side.
    pub long_side: u32,
    /// Not 0: frames are not resized.
    pub as_they_are: u32,
    /// Objects that score lower are dropped, from 0 to 1.
    pub min_score: f32,
    /// Not 0: semantic maps come with the probability of each pixel's class.
    pub confidence: u32,
    /// Not 0: the session has no threads; whoever calls it does all the work. `threads` is then 0 or 1, there
    /// are no `cpus`, and frames cannot be submitted. A thread that has called such a session keeps a few
    /// kilobytes for it until the process ends.
    pub on_caller: u32,
    /// How many `cpus` there are.
    pub cpu_count: u32,
    /// Numbers of the CPUs that the session's threads run on, and no others; NULL: any. They are read during
    /// the call alone. Linux.
    pub cpus: *const u32,
    /// Nanoseconds from the call to masks, as knet_session_set_deadline takes them; 0: none.
    pub deadline_ns: u64,
    /// Stages of the network that are run, each of which gives finished masks and the next one better ones;
    /// 0: all.
    pub stages: u32,
    /// A KNET_MASKS_*: what size masks and maps have, boxes and polygons with them.
    pub masks: u32,
}

// SAFETY: plain numbers, and a pointer that may be NULL.
unsafe impl Versioned for knet_session_options {
    const NAME: &'static str = "knet_session_options";
    const FIRST: usize = offset_of!(knet_session_options, on_caller);
}

/// Wall-clock time of the parts of a call, in nanoseconds. A GPU does all of it in one go: there `network` is
/// the whole of its work.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_timings {
    /// sizeof(knet_timings).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Resize, normalise, pad.
    pub pre_ns: u64,
    /// The network.
    pub network_ns: u64,
    /// Masks or map at the size of the frame.
    pub post_ns: u64,
}

// SAFETY: plain numbers.
unsafe impl Versioned for knet_timings {
    const NAME: &'static str = "knet_timings";
    const FIRST: usize = size_of::<knet_timings>();
}

/// A model at work: plans, memory, threads. One for each camera or thread. Opaque.
pub struct knet_session {
    core: Arc<Core>,
    /// Whose thread there is none to work beside.
    on_caller: bool,
    cpus: Vec<usize>,
    /// Made with the first frame that is submitted.
    worker: OnceLock<Worker>,
}

/// What a session and its thread share.
pub(crate) struct Core {
    pub turn: Turn,
    pub session: UnsafeCell<Session>,
}

// SAFETY: a session may be moved between threads, and whoever uses it has its turn.
unsafe impl Send for Core {}
// SAFETY: as above.
unsafe impl Sync for Core {}

impl knet_session {
    /// Runs `body` while no other thread uses the session.
    pub(crate) fn with<T>(&self, body: impl FnOnce(&mut Session) -> Result<T, Fault>) -> Result<T, Fault> {
        let _taken = self.core.turn.take("session")?;
        // SAFETY: the turn is this call's until it is dropped.
        body(unsafe { &mut *self.core.session.get() })
    }

    /// The session's thread, whose turn the caller has.
    fn worker(&self) -> Result<&Worker, Fault> {
        if self.on_caller {
            let text = "a session that works in the calling thread has none to submit a frame to";
            return Err(Error::usage(text).into());
        }
        if self.worker.get().is_none() {
            // Nobody else makes one meanwhile.
            let _ = self.worker.set(Worker::start(self.core.clone(), self.cpus.clone())?);
        }
        self.worker.get().ok_or_else(nothing)
    }
}

/// Makes a session of a model; `options` may be NULL. It is written to `*session`, NULL if there is none.
///
/// KNET_ERROR_USAGE: a task the model cannot do, a size without pixels, CPUs or stages that are not there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_open(
    model: *const knet_model,
    options: *const knet_session_options,
    session: *mut *mut knet_session,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        unsafe {
            give(std::ptr::null_mut(), session, "session")?;
            let model = handle(model, "model")?;
            let options = chosen(&read_or_default(options)?)?;
            let opened = Session::new(model.model.clone(), &options)?;
            let core = Core { turn: Turn::default(), session: UnsafeCell::new(opened) };
            let SessionOptions { on_caller, cpus, .. } = options;
            let opened = knet_session { core: Arc::new(core), on_caller, cpus, worker: OnceLock::new() };
            give(Box::into_raw(Box::new(opened)), session, "session")
        }
    })
}

/// # Safety
/// `options.cpus` is as the header says.
unsafe fn chosen(options: &knet_session_options) -> Result<SessionOptions, Fault> {
    let refuse =
        |field: &str, reason: String| Err(Fault::argument(format!("knet_session_options.{field} {reason}")));
    let task = match options.task {
        0 => None,
        KNET_TASK_INSTANCE => Some(Task::Instance),
        KNET_TASK_PANOPTIC => Some(Task::Panoptic),
        KNET_TASK_SEMANTIC => Some(Task::Semantic),
        other => return refuse("task", format!("is {other}: no KNET_TASK_*")),
    };
    let size = match (options.as_they_are, options.short_side, options.long_side) {
        (0, 0, 0) => InputSize::OfModel,
        (0, short, long) => InputSize::Within(short as usize, long as usize),
        (_, 0, 0) => InputSize::AsTheyAre,
        _ => return refuse("as_they_are", "is set, and a size too".into()),
    };
    let masks = match options.masks {
        KNET_MASKS_OF_FRAME => MaskSize::OfPhoto,
        KNET_MASKS_OF_NETWORK => MaskSize::OfNetwork,
        other => return refuse("masks", format!("is {other}: no KNET_MASKS_*")),
    };
    let score = options.min_score;
    if !(0.0..=1.0).contains(&score) {
        return refuse("min_score", format!("is {score}: from 0 to 1"));
    }
    let results = PostprocessOptions {
        min_score: (score > 0.0).then_some(f64::from(score)),
        confidence: options.confidence != 0,
        ..PostprocessOptions::default()
    };
    let cpus = match (options.cpus.is_null(), options.cpu_count) {
        (true, 0) => &[],
        (true, count) => return refuse("cpus", format!("is NULL, and cpu_count {count}")),
        // SAFETY: as the caller says.
        (false, count) => unsafe { std::slice::from_raw_parts(options.cpus, count as usize) },
    };
    let cpus = cpus.iter().map(|&cpu| cpu as usize).collect();
    let (threads, on_caller) = (options.threads as usize, options.on_caller != 0);
    let stages = (options.stages != 0).then_some(options.stages as usize);
    let deadline = deadline(options.deadline_ns);
    Ok(SessionOptions { task, threads, cpus, on_caller, size, masks, results, stages, deadline })
}

fn deadline(nanoseconds: u64) -> Option<Duration> {
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

/// From the next frame on, runs as many stages of the network as there is time for, so that masks are there
/// so many nanoseconds after the call; knet_result_info.stages says how many these were. 0 takes the deadline
/// back. The first stage is always run, however long it takes. The network is planned anew when a deadline is
/// set for the first time or taken back: call knet_session_warm_up then. Frames on a GPU
/// (knet_segment_on_device) run all stages.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_set_deadline(
    session: *const knet_session,
    deadline_ns: u64,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointer is as the header asks.
        let session = unsafe { handle(session, "session") }?;
        session.with(|session| {
            session.set_deadline(deadline(deadline_ns));
            Ok(())
        })
    })
}

/// Closes a session; NULL is allowed. It waits for a frame in flight and for the session's threads to end.
/// Results that it filled stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_close(session: *mut knet_session) {
    let _ = guarded(|| {
        if !session.is_null() {
            // SAFETY: made by `knet_session_open`, closed once.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// Plans the network for frames of this size and loads its weights, so that the first frame is as fast as
/// the others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_warm_up(
    session: *const knet_session,
    height: u32,
    width: u32,
) -> knet_status {
    guarded(|| {
        // SAFETY: the handle is as the header asks.
        let session = unsafe { handle(session, "session") }?;
        session.with(|session| Ok(session.warm_up(height as usize, width as usize)?))
    })
}

/// Segments a frame and waits. `result` holds what was found, on the host; after an error it is empty.
/// From the second frame of a size on, nothing is allocated, also if up to four sizes take turns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_segment(
    session: *const knet_session,
    frame: *const knet_frame,
    result: *mut knet_result,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let (session, frame, result) =
            unsafe { (handle(session, "session")?, read(frame)?, handle(result.cast_const(), "result")?) };
        session.with(|session| {
            result.with_mut(|found| {
                found.fill(frame.timestamp_ns, |found| {
                    // SAFETY: as above.
                    let image = unsafe { view(&frame) }?;
                    Ok(session.segment_into(image, found)?)
                })
            })
        })
    })
}

/// Hands a frame to a thread of the session and returns: knet_session_wait has to follow. A session has one
/// frame in flight at a time; as long as it has one, and until it was waited for, other calls with the
/// session or the result, but for knet_session_wait, knet_session_poll, their close and their free, get
/// KNET_ERROR_BUSY.
///
/// Until knet_session_poll has said that the frame is done, or knet_session_wait or knet_session_close has
/// returned, what `planes` points to must stay as it is. `frame` itself is read during the call alone, and
/// `result` may be freed at any time.
///
/// KNET_ERROR_BUSY: a frame is in flight. KNET_ERROR_USAGE: the session is `on_caller`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_submit(
    session: *const knet_session,
    frame: *const knet_frame,
    result: *mut knet_result,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let (session, frame, result) =
            unsafe { (handle(session, "session")?, read(frame)?, handle(result.cast_const(), "result")?) };
        // SAFETY: as above; and the pixels outlive the frame's flight.
        let image = unsafe { view(&frame) }?;
        let own = session.core.turn.take("session")?;
        let slot = result.slot();
        let filled = slot.turn.take("result")?;
        let worker = session.worker()?;
        worker.check_process()?;
        let job = Job { image, timestamp_ns: frame.timestamp_ns, result: slot.clone() };
        worker.submit(job, own, filled);
        Ok(())
    })
}

/// Whether the frame in flight is done, without waiting: `*done` is 1, or 0. Any thread may ask.
///
/// KNET_ERROR_STATE: no frame was submitted, or it was waited for already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_poll(session: *const knet_session, done: *mut u32) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let session = unsafe { handle(session, "session") }?;
        let is_done = session.worker.get().ok_or_else(nothing)?.poll()?;
        // SAFETY: as above.
        unsafe { give(u32::from(is_done), done, "done") }
    })
}

/// Waits for the frame in flight, without spinning. What it returns, and the words, are what knet_segment
/// would have returned for it; session and result can be used again. Any thread may wait.
///
/// KNET_ERROR_STATE: no frame was submitted, or it was waited for already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_wait(session: *const knet_session) -> knet_status {
    guarded(|| {
        // SAFETY: the pointer is as the header asks.
        let session = unsafe { handle(session, "session") }?;
        session.worker.get().ok_or_else(nothing)?.wait()
    })
}

/// Times of the last frame that was segmented.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_session_timings(
    session: *const knet_session,
    timings: *mut knet_timings,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let session = unsafe { handle(session, "session") }?;
        let times = session.with(|session| Ok(session.timings()))?;
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let value = knet_timings {
            struct_size: 0,
            reserved: 0,
            pre_ns: ns(times.pre),
            network_ns: ns(times.network),
            post_ns: ns(times.post),
        };
        // SAFETY: as above.
        unsafe { write(value, timings) }
    })
}
