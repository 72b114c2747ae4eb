//! The driver's functions in use, from the `libcuda.so` that the process has loaded.

use libloading::Library;
use std::ffi::{c_int, c_uint, c_void};

/// A stream of the driver.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Stream(*mut c_void);

/// A function that a stream calls.
pub type HostFunction = extern "C" fn(*mut c_void);

/// Entry points, as `cuda.h` declares them.
pub struct Driver {
    allocate: unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> c_int,
    free: unsafe extern "C" fn(*mut c_void) -> c_int,
    to_host: unsafe extern "C" fn(*mut c_void, u64, usize, Stream) -> c_int,
    to_device: unsafe extern "C" fn(u64, *const c_void, usize, Stream) -> c_int,
    call: unsafe extern "C" fn(Stream, HostFunction, *mut c_void) -> c_int,
    /// Keeps the code loaded.
    _library: Library,
}

/// What the driver says of a call.
fn check(what: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what}: error {code} of the driver")) }
}

impl Driver {
    /// The driver of this process.
    pub fn open() -> Result<Driver, String> {
        // SAFETY: the stand-in driver, which is loaded already.
        let library = unsafe { Library::new("libcuda.so.1") }.map_err(|error| error.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of `cuda.h`.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Driver {
            allocate: function!(b"cuMemHostAlloc\0"),
            free: function!(b"cuMemFreeHost\0"),
            to_host: function!(b"cuMemcpyDtoHAsync_v2\0"),
            to_device: function!(b"cuMemcpyHtoDAsync_v2\0"),
            call: function!(b"cuLaunchHostFunc\0"),
            _library: library,
        })
    }

    /// Page-locked memory.
    pub fn allocate(&self, bytes: usize) -> Result<*mut u8, String> {
        let mut place = std::ptr::null_mut();
        // SAFETY: a place for the address.
        check("cuMemHostAlloc", unsafe { (self.allocate)(&mut place, bytes, 0) })?;
        Ok(place.cast())
    }

    /// Frees what [`Driver::allocate`] gave. Without a context there is nothing to free any more.
    pub fn free(&self, place: *mut u8) {
        // SAFETY: allocated by this driver, freed once.
        unsafe { (self.free)(place.cast()) };
    }

    /// Sends a copy to page-locked memory.
    pub fn to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: Stream) -> Result<(), String> {
        // SAFETY: as many bytes at both ends, as NCCL's caller promises and as the communicator allocated.
        check("cuMemcpyDtoHAsync", unsafe { (self.to_host)(to.cast(), from, bytes, stream) })
    }

    /// Sends a copy from page-locked memory.
    pub fn to_device(&self, to: u64, from: *const u8, bytes: usize, stream: Stream) -> Result<(), String> {
        // SAFETY: as above.
        check("cuMemcpyHtoDAsync", unsafe { (self.to_device)(to, from.cast(), bytes, stream) })
    }

    /// Lets the stream call a function.
    pub fn call(&self, stream: Stream, function: HostFunction, data: *mut c_void) -> Result<(), String> {
        // SAFETY: the data are the function's.
        check("cuLaunchHostFunc", unsafe { (self.call)(stream, function, data) })
    }
}
