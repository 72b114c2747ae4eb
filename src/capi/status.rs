//! What functions return, the words that go with it, and the guard that keeps panics inside.

use knet::{Error, ErrorKind};
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// How a call ended. Values never change; new ones may come.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum knet_status {
    /// Done.
    KNET_OK = 0,
    /// An argument cannot be meant: NULL where something must be, a struct_size that no header had, a stride
    /// that is too small. The call did nothing, but a result that it was to fill may be empty.
    KNET_ERROR_ARGUMENT = 1,
    /// A request that cannot be served as worded: an unknown model, device or option.
    KNET_ERROR_USAGE = 2,
    /// The operating system refused to read a file.
    KNET_ERROR_IO = 3,
    /// An image of a size that cannot be.
    KNET_ERROR_IMAGE = 4,
    /// A checkpoint that is damaged or of no known format.
    KNET_ERROR_CHECKPOINT = 5,
    /// A sound checkpoint that does not fit the model.
    KNET_ERROR_WEIGHTS = 6,
    /// A network that breaks a rule: a fault of the library.
    KNET_ERROR_GRAPH = 7,
    /// No GPU that can be used, or none of that number. The CPU can do the work.
    KNET_ERROR_NO_DEVICE = 8,
    /// The GPU's context is of no further use: close everything that uses it.
    KNET_ERROR_DEVICE_LOST = 9,
    /// Another fault of the driver, of the compiler or of a kernel.
    KNET_ERROR_CUDA = 10,
    /// More memory is needed than there is.
    KNET_ERROR_MEMORY = 11,
    /// A call that does not fit what was called before, such as asking an empty result for a mask.
    KNET_ERROR_STATE = 12,
    /// The session or result is in use by another thread, or by a frame in flight.
    KNET_ERROR_BUSY = 13,
    /// A fault inside the library, which was caught. The message says where; please report it.
    KNET_ERROR_INTERNAL = 14,
    /// The session or result was in use when a fault was caught: close it.
    KNET_ERROR_POISONED = 15,
}

use knet_status::*;

/// A status with its words.
#[derive(Debug)]
pub(crate) struct Fault {
    pub status: knet_status,
    pub text: String,
}

impl Fault {
    pub fn argument(text: impl Into<String>) -> Fault {
        Fault { status: KNET_ERROR_ARGUMENT, text: text.into() }
    }

    pub fn state(text: impl Into<String>) -> Fault {
        Fault { status: KNET_ERROR_STATE, text: text.into() }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let status = match error.kind() {
            ErrorKind::Usage => KNET_ERROR_USAGE,
            ErrorKind::Io => KNET_ERROR_IO,
            ErrorKind::Image => KNET_ERROR_IMAGE,
            ErrorKind::Checkpoint => KNET_ERROR_CHECKPOINT,
            ErrorKind::Weights => KNET_ERROR_WEIGHTS,
            ErrorKind::NoDevice => KNET_ERROR_NO_DEVICE,
            ErrorKind::DeviceLost => KNET_ERROR_DEVICE_LOST,
            ErrorKind::Cuda => KNET_ERROR_CUDA,
            ErrorKind::Memory => KNET_ERROR_MEMORY,
            ErrorKind::State => KNET_ERROR_STATE,
            // Training's classes never reach an embedder.
            ErrorKind::Graph | ErrorKind::Data | ErrorKind::Diverged | ErrorKind::Ranks => KNET_ERROR_GRAPH,
        };
        Fault { status, text: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The words of the last call on this thread that did not return KNET_OK; empty before the first. Never NULL.
/// Lives until another call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn knet_last_error() -> *const c_char {
    // While a thread ends there is nothing left to tell.
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Where the last panic was, of any thread.
static PLACE: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// Where this thread's was.
    static OWN_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps a panic's place and logs it. A library prints nothing.
fn note(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
    let _ = OWN_PLACE.try_with(|own| own.replace(Some(place.clone())));
    *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place;
    log::error!("{}", panic.to_string().replace('\n', " "));
}

/// Runs what may panic, and makes a fault of it.
pub(crate) fn caught<T>(body: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = std::panic::take_hook();
        // The test harness needs its own besides.
        std::panic::set_hook(Box::new(move |panic| {
            note(panic);
            if cfg!(test) {
                before(panic);
            }
        }));
    });
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind");
        // One that came from another thread went through it last.
        let own = OWN_PLACE.try_with(RefCell::take).ok().flatten();
        let place = own.unwrap_or_else(|| PLACE.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Err(Fault { status: KNET_ERROR_INTERNAL, text: format!("a fault inside knet ({place}): {text}") })
    })
}

/// Runs the body of a function of the interface.
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), Fault>) -> knet_status {
    let Err(fault) = caught(body) else { return KNET_OK };
    // A message with a zero byte, such as a file name from hostile data, ends there.
    let text = CString::new(fault.text).unwrap_or_else(|e| {
        let before = e.nul_position();
        CString::new(&e.into_vec()[..before]).unwrap_or_default()
    });
    let _ = LAST.try_with(|last| last.replace(text));
    fault.status
}

/// Lets one thread at a time use a handle.
#[derive(Debug, Default)]
pub(crate) struct Turn(AtomicU8);

const FREE: u8 = 0;
const TAKEN: u8 = 1;
const POISONED: u8 = 2;
const IN_FLIGHT: u8 = 3;

impl Turn {
    /// Takes the handle called `what` until the value is dropped.
    pub fn take(&self, what: &str) -> Result<Taken<'_>, Fault> {
        match self.0.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Taken(&self.0)),
            Err(POISONED) => Err(Fault {
                status: KNET_ERROR_POISONED,
                text: format!("the {what} was in use when a fault was caught: close it"),
            }),
            Err(IN_FLIGHT) => Err(Fault {
                status: KNET_ERROR_BUSY,
                text: format!("the {what} is taken by a frame in flight: call knet_session_wait first"),
            }),
            Err(_) => Err(Fault {
                status: KNET_ERROR_BUSY,
                text: format!("the {what} is in use by another thread: each thread needs one of its own"),
            }),
        }
    }

    /// Gives back what [`Taken::keep`] kept.
    pub fn land(&self, poisoned: bool) {
        self.0.store(if poisoned { POISONED } else { FREE }, Ordering::Release);
    }
}

/// A handle in use.
pub(crate) struct Taken<'a>(&'a AtomicU8);

impl Taken<'_> {
    /// Leaves the handle taken, for a frame in flight.
    pub fn keep(self) {
        self.0.store(IN_FLIGHT, Ordering::Release);
        std::mem::forget(self);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let state = if std::thread::panicking() { POISONED } else { FREE };
        self.0.store(state, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: a string of this thread, which nobody replaces meanwhile.
        unsafe { CStr::from_ptr(knet_last_error()) }.to_str().unwrap().to_string()
    }

    #[test]
    fn a_panic_becomes_a_status_and_poisons_what_was_in_use() {
        let turn = Turn::default();
        let status = guarded(|| {
            let _taken = turn.take("session")?;
            panic!("index {} out of range", 7)
        });
        assert_eq!(status, KNET_ERROR_INTERNAL);
        // With the place, for who reports it.
        let (before, after) = ("a fault inside knet (src/capi/status.rs:", "): index 7 out of range");
        assert!(last().starts_with(before) && last().ends_with(after), "{}", last());
        assert_eq!(guarded(|| turn.take("session").map(|_| ())), KNET_ERROR_POISONED);
        assert!(last().contains("the session was in use when a fault was caught"), "{}", last());
    }

    #[test]
    fn a_handle_is_one_threads_at_a_time() {
        let turn = Turn::default();
        let taken = turn.take("result").unwrap();
        let status = std::thread::scope(|scope| {
            scope.spawn(|| (guarded(|| turn.take("result").map(|_| ())), last())).join().unwrap()
        });
        assert_eq!(status.0, KNET_ERROR_BUSY);
        assert!(status.1.contains("another thread"), "{}", status.1);
        drop(taken);
        assert_eq!(guarded(|| turn.take("result").map(|_| ())), KNET_OK);
    }

    #[test]
    fn a_handle_in_flight_is_refused_until_it_has_landed() {
        let turn = Turn::default();
        turn.take("session").unwrap().keep();
        assert_eq!(guarded(|| turn.take("session").map(|_| ())), KNET_ERROR_BUSY);
        assert!(last().contains("the session is taken by a frame in flight"), "{}", last());
        turn.land(false);
        turn.take("session").unwrap().keep();
        turn.land(true);
        assert_eq!(guarded(|| turn.take("session").map(|_| ())), KNET_ERROR_POISONED);
    }

    #[test]
    fn words_belong_to_a_thread_and_end_at_a_zero() {
        assert_eq!(guarded(|| Err(Fault::argument("here"))), KNET_ERROR_ARGUMENT);
        std::thread::spawn(|| assert_eq!(last(), "")).join().unwrap();
        assert_eq!(last(), "here");
        assert_eq!(guarded(|| Err(Fault::state("a\0b"))), KNET_ERROR_STATE);
        assert_eq!(last(), "a");
    }
}
