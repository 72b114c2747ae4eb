//! Messages, by a callback of the program's: the library prints nothing.

use super::status::{Fault, guarded, knet_status};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

/// A fault inside the library.
pub const KNET_LOG_ERROR: u32 = 1;
/// Something is not as it was asked for, such as the CPU in place of a GPU.
pub const KNET_LOG_WARNING: u32 = 2;
/// What was loaded, and where it computes.
pub const KNET_LOG_INFO: u32 = 3;
/// What is planned, and how long it took.
pub const KNET_LOG_DEBUG: u32 = 4;

/// Takes a message: a KNET_LOG_*, a line in UTF-8 that lives during the call alone, and what knet_set_log was
/// given. It may be called by any thread, by several at once, and must return: no exception, no longjmp.
pub type knet_log_callback =
    Option<unsafe extern "C" fn(level: u32, message: *const c_char, user: *mut c_void)>;

/// Where messages go.
struct Sink {
    callback: unsafe extern "C" fn(u32, *const c_char, *mut c_void),
    user: *mut c_void,
}

// SAFETY: the header asks that any thread may call back.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// Whether this thread is calling back.
    static CALLING: Cell<bool> = const { Cell::new(false) };
}

struct Forward;

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("knet")
    }

    fn log(&self, record: &Record<'_>) {
        // What a callback causes would be told to itself.
        if !self.enabled(record.metadata()) || CALLING.get() {
            return;
        }
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Sink { callback, user }) = &*sink else { return };
        let level = match record.level() {
            Level::Error => KNET_LOG_ERROR,
            Level::Warn => KNET_LOG_WARNING,
            Level::Info => KNET_LOG_INFO,
            Level::Debug | Level::Trace => KNET_LOG_DEBUG,
        };
        let message = CString::new(record.args().to_string().replace('\0', " ")).unwrap_or_default();
        CALLING.set(true);
        // SAFETY: the program's own function, with what it asked for.
        unsafe { callback(level, message.as_ptr(), *user) };
        CALLING.set(false);
    }

    fn flush(&self) {}
}

/// Sends messages up to `level`, a KNET_LOG_*, to a callback, for the whole process; with a callback of NULL,
/// to nobody, as at the beginning. When it returns, the callback before is not called any more.
///
/// KNET_ERROR_STATE: called by the callback itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_set_log(
    callback: knet_log_callback,
    user: *mut c_void,
    level: u32,
) -> knet_status {
    guarded(|| {
        let level = match (callback, level) {
            (None, _) => LevelFilter::Off,
            (_, KNET_LOG_ERROR) => LevelFilter::Error,
            (_, KNET_LOG_WARNING) => LevelFilter::Warn,
            (_, KNET_LOG_INFO) => LevelFilter::Info,
            (_, KNET_LOG_DEBUG) => LevelFilter::Debug,
            (_, other) => return Err(Fault::argument(format!("level is {other}: no KNET_LOG_*"))),
        };
        if CALLING.get() {
            return Err(Fault::state("the log's callback cannot set another"));
        }
        static ONCE: Once = Once::new();
        // The messages of this library alone go through it: it has the crate `log` to itself.
        ONCE.call_once(|| {
            let _ = log::set_logger(&Forward);
        });
        // Waits for callbacks that are going on.
        *SINK.write().unwrap_or_else(PoisonError::into_inner) =
            callback.map(|callback| Sink { callback, user });
        log::set_max_level(level);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::status::caught;
    use super::*;
    use std::ffi::CStr;
    use std::sync::Mutex;

    static HEARD: Mutex<Vec<(u32, String)>> = Mutex::new(Vec::new());

    unsafe extern "C" fn hear(level: u32, message: *const c_char, user: *mut c_void) {
        assert_eq!(user.addr(), 77);
        // SAFETY: a text, as the caller promises.
        let text = unsafe { CStr::from_ptr(message) }.to_str().unwrap().to_string();
        log::error!("an echo");
        HEARD.lock().unwrap().push((level, text));
        // SAFETY: plain arguments.
        assert_eq!(unsafe { knet_set_log(None, user, 0) }, knet_status::KNET_ERROR_STATE);
    }

    #[test]
    fn messages_and_panics_reach_the_callback_and_nobody_after_it() {
        let user = std::ptr::without_provenance_mut(77);
        // SAFETY: the callback takes what it is given.
        let set = |callback, level| unsafe { knet_set_log(callback, user, level) };
        assert_eq!(set(Some(hear), 9), knet_status::KNET_ERROR_ARGUMENT);
        assert_eq!(set(Some(hear), KNET_LOG_INFO), knet_status::KNET_OK);
        log::info!("a\0b");
        log::debug!("too fine");
        log::error!(target: "another", "not ours");
        let fault = caught::<()>(|| panic!("broken here")).unwrap_err();
        assert!(fault.text.contains("src/capi/messages.rs:"), "{}", fault.text);
        assert_eq!(set(None, 0), knet_status::KNET_OK);
        log::error!("nobody");
        let heard = HEARD.lock().unwrap();
        assert!(heard.contains(&(KNET_LOG_INFO, "a b".to_string())), "{heard:?}");
        let broken: Vec<_> = heard.iter().filter(|(_, text)| text.contains("broken here")).collect();
        assert!(broken.len() == 1 && broken[0].0 == KNET_LOG_ERROR, "{heard:?}");
        assert!(!heard.iter().any(|(_, text)| text.contains("echo") || text.contains("fine")), "{heard:?}");
    }
}
