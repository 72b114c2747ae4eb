//! The boundary to C: how an entry point is declared, what its pointer arguments are, and how panics stop
//! here.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Arguments;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::context;
use crate::driver::{Driver, driver};
use crate::error::{CUresult, Outcome};
use crate::log;

/// A handle (stream, event, module, ...): an opaque pointer to the caller, a number here.
pub type Handle = usize;

/// Declares entry points: `policy fn cuName(arguments) |call, driver| { ... }`, each an exported C function
/// that returns a [`CUresult`]. The policies are [`anytime`], [`initialised`], [`bound`] and [`healthy`].
macro_rules! entry_points {
    ($(
        $(#[doc = $doc:literal])+
        $policy:ident fn $name:ident($($arg:ident: $kind:ty),* $(,)?) |$call:pat_param, $driver:pat_param| $body:block
    )*) => {$(
        $(#[doc = $doc])+
        ///
        /// # Safety
        /// Pointers are null or valid for what the CUDA driver API does with them.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the driver API's names")]
        #[allow(clippy::too_many_arguments, reason = "the driver API's signatures")]
        pub unsafe extern "C" fn $name($($arg: $kind),*) -> $crate::error::CUresult {
            $crate::ffi::$policy(stringify!($name), |$call, $driver| $body)
        }
    )*};
}
pub(crate) use entry_points;

/// The call in progress: collects what the log says about it.
pub struct Call {
    name: &'static str,
    notes: String,
}

impl Call {
    /// Adds ` key=value` pairs to the call's line in the log.
    pub fn note(&mut self, text: Arguments) {
        if log::enabled() {
            self.notes.push(' ');
            self.notes.push_str(&text.to_string());
        }
    }

    /// Tells the user on stderr why the call is refused, and gives the code to refuse it with.
    pub fn refuse(&self, code: CUresult, why: Arguments) -> CUresult {
        eprintln!("ptxemu: {}: {why} ({code})", self.name);
        code
    }
}

thread_local! {
    /// Whether this thread runs a host function for a stream, from where driver calls are not permitted.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs a caller's host function, during which this thread's driver calls are refused.
pub fn host_function(run: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    run();
    IN_HOST_FUNCTION.set(false);
}

fn call(name: &'static str, body: impl FnOnce(&mut Call) -> Outcome) -> CUresult {
    let mut call = Call { name, notes: String::new() };
    let outcome = if IN_HOST_FUNCTION.get() {
        Err(call.refuse(CUresult::NOT_PERMITTED, format_args!("called from a host function")))
    } else {
        catch_unwind(AssertUnwindSafe(|| body(&mut call))).unwrap_or_else(|_| {
            eprintln!("ptxemu: {name} panicked; the message is above");
            Err(CUresult::UNKNOWN)
        })
    };
    let result = outcome.err().unwrap_or(CUresult::SUCCESS);
    log::line(format_args!("{name}{} = {result}", call.notes));
    result
}

/// An entry point that needs no initialisation.
pub fn anytime(name: &'static str, body: impl FnOnce(&mut Call, ()) -> Outcome) -> CUresult {
    call(name, |call| body(call, ()))
}

/// An entry point that needs `cuInit`.
pub fn initialised(name: &'static str, body: impl FnOnce(&mut Call, &mut Driver) -> Outcome) -> CUresult {
    call(name, |call| body(call, driver().as_mut().ok_or(CUresult::NOT_INITIALIZED)?))
}

/// An entry point that needs a current context.
pub fn bound(name: &'static str, body: impl FnOnce(&mut Call, &mut Driver) -> Outcome) -> CUresult {
    initialised(name, |call, driver| {
        context::current(driver)?;
        body(call, driver)
    })
}

/// An entry point that needs a current context in which nothing has failed.
pub fn healthy(name: &'static str, body: impl FnOnce(&mut Call, &mut Driver) -> Outcome) -> CUresult {
    bound(name, |call, driver| match driver.failure {
        Some(failure) => Err(failure),
        None => body(call, driver),
    })
}

/// Where the caller wants a result.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// The place that a caller's array of pointers names.
    pub fn at(place: HostPtr) -> Out<T> {
        Out(place.0.cast())
    }

    /// Writes the result; a null pointer is an invalid value.
    pub fn set(self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        // SAFETY: an `Out` only comes as an entry point's argument, whose caller vouches for a pointer that
        // is not null.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result if the caller wants it.
    pub fn offer(self, value: T) {
        let _ = self.set(value);
    }

    /// Whether the caller passed no place for it.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes element `index` of a caller's array.
    pub fn set_at(self, index: usize, value: T) -> Outcome {
        Out(self.0.wrapping_add(if self.is_null() { 0 } else { index })).set(value)
    }

    /// The value that is there already, for arguments that go both ways.
    pub fn input(self) -> In<T> {
        In(self.0)
    }

    /// The same place for another type, for results whose type another argument decides.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

/// Where the caller keeps a value.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    /// Nothing.
    pub fn null() -> In<T> {
        In(std::ptr::null())
    }

    /// An array of the driver's own.
    pub fn of(values: &'static [T]) -> In<T> {
        In(values.as_ptr())
    }

    /// What lies at an address that the caller gave as an untyped pointer.
    pub fn behind(address: HostPtr) -> In<T> {
        In(address.0.cast())
    }

    /// Reads the value; a null pointer is an invalid value.
    pub fn get(self) -> Outcome<T> {
        self.at(0)
    }

    /// Reads element `index` of the caller's array.
    pub fn at(self, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        // SAFETY: an `In` only comes as an entry point's argument, whose caller vouches for a pointer that is
        // not null and for as many elements as the other arguments say.
        Ok(unsafe { self.0.wrapping_add(index).read_unaligned() })
    }

    /// Whether the caller passed nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
}

impl In<c_char> {
    /// Reads a NUL-terminated string.
    pub fn text(self) -> Outcome<String> {
        if self.is_null() {
            return Err(CUresult::INVALID_VALUE);
        }
        // SAFETY: as in `at`; the API's strings end in NUL.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| CUresult::INVALID_VALUE)
    }
}

/// An address in the caller's memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPtr(pub *mut c_void);

// SAFETY: the address is only used where the API's contract lets the driver's threads access that memory.
unsafe impl Send for HostPtr {}
// SAFETY: as above.
unsafe impl Sync for HostPtr {}

impl HostPtr {
    /// The address as a number.
    pub fn address(self) -> usize {
        self.0 as usize
    }

    /// The address `bytes` further on.
    pub fn add(self, bytes: usize) -> HostPtr {
        HostPtr(self.0.wrapping_byte_add(bytes))
    }

    /// Copies memory from here to `to`.
    ///
    /// # Safety
    /// `to.len()` bytes are readable here.
    pub unsafe fn read(self, to: &mut [u8]) {
        // SAFETY: the caller vouches for the source; `to` is a separate, exclusive slice.
        unsafe { std::ptr::copy_nonoverlapping(self.0.cast::<u8>(), to.as_mut_ptr(), to.len()) };
    }

    /// Copies `from` to the memory here.
    ///
    /// # Safety
    /// `from.len()` bytes are writable here.
    pub unsafe fn write(self, from: &[u8]) {
        // SAFETY: the caller vouches for the destination; `from` is memory of our own.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.0.cast::<u8>(), from.len()) };
    }
}
