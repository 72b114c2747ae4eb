//! NCCL, opened at run time: nothing is linked, and any NCCL 2 from 2.13 on will do. It is opened by our own
//! table of functions because the file is `libnccl.so.2` wherever it comes from, in a folder of Python's that
//! no loader knows or where `KNET_NCCL` says.
//! <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html>

use crate::cuda::compile::find;
use crate::error::{Error, Result};
use cudarc::driver::sys::CUstream;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;

/// The file, wherever it lies.
const FILE: &str = "libnccl.so.2";

/// What is to be done where there is no NCCL.
const REMEDY: &str = "install it (`pip install nvidia-nccl-cu13`, or nvidia-nccl-cu12 for a driver of CUDA 12, in the active Python \
                      environment; Debian's libnccl2), or name the file by KNET_NCCL";

/// A communicator of NCCL's.
pub(super) type Handle = *mut c_void;

/// What ranks must know of each other before they are connected: rank 0 makes it, and tells the others.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its length.
    pub const BYTES: usize = 128;
}

/// Codes and types of `nccl.h`.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
const UINT8: c_int = 1;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// The loaded library.
pub struct Nccl {
    name: String,
    version: c_int,
    functions: Functions,
    /// Keeps the functions' code in place.
    _library: Library,
}

/// Entry points, as `nccl.h` declares them.
struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Handle, CUstream) -> c_int,
    all_gather: unsafe extern "C" fn(u64, u64, usize, c_int, Handle, CUstream) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
}

impl Nccl {
    /// The library that `KNET_NCCL` names and no other, else the loader's, else that of a Python package.
    ///
    /// # Errors
    /// [`Error::Ranks`] naming every file that was tried, and what to do.
    pub fn open() -> Result<Nccl> {
        let named = std::env::var_os("KNET_NCCL").filter(|named| !named.is_empty()).map(PathBuf::from);
        let candidates = named.map_or_else(
            || [vec![FILE.into()], find::in_python("nvidia/nccl/lib", FILE)].concat(),
            |named| vec![named],
        );
        let mut tried = String::new();
        for path in candidates {
            let name = path.display().to_string();
            // SAFETY: what NCCL runs when it is loaded is as sound as the NCCL that the user chose.
            let loaded = unsafe { Library::new(&path) }.and_then(|library| Nccl::of(library, &name));
            match loaded {
                Ok(nccl) => return Ok(nccl),
                Err(error) => tried += &format!("\n  {name}: {error}"),
            }
        }
        Err(Error::Ranks(format!("no NCCL, which connects GPUs: {REMEDY}; tried:{tried}")))
    }

    fn of(library: Library, name: &str) -> std::result::Result<Nccl, libloading::Error> {
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of `nccl.h`.
                *unsafe { library.get($name) }?
            };
        }
        let functions = Functions {
            unique_id: function!(b"ncclGetUniqueId\0"),
            init: function!(b"ncclCommInitRank\0"),
            destroy: function!(b"ncclCommDestroy\0"),
            abort: function!(b"ncclCommAbort\0"),
            async_error: function!(b"ncclCommGetAsyncError\0"),
            all_reduce: function!(b"ncclAllReduce\0"),
            all_gather: function!(b"ncclAllGather\0"),
            group_start: function!(b"ncclGroupStart\0"),
            group_end: function!(b"ncclGroupEnd\0"),
            error_string: function!(b"ncclGetErrorString\0"),
            last_error: function!(b"ncclGetLastError\0"),
        };
        let ask: unsafe extern "C" fn(*mut c_int) -> c_int = function!(b"ncclGetVersion\0");
        let mut version = 0;
        // SAFETY: a place for the number; a library that fails to give it keeps 0.
        unsafe { ask(&mut version) };
        Ok(Nccl { name: name.to_string(), version, functions, _library: library })
    }

    /// Version and file, for people.
    pub fn name(&self) -> String {
        let (major, minor, patch) = (self.version / 10_000, self.version / 100 % 100, self.version % 100);
        format!("NCCL {major}.{minor}.{patch} ({})", self.name)
    }

    /// What rank 0 tells the others.
    ///
    /// # Errors
    /// [`Error::Ranks`] as NCCL says.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: a place for the id.
        self.check("ncclGetUniqueId", unsafe { (self.functions.unique_id)(&mut id) }, std::ptr::null_mut())?;
        Ok(id)
    }

    /// Joins the others with the same id, and waits for them; the context of the GPU is current.
    pub(super) fn init(&self, id: UniqueId, rank: usize, ranks: usize) -> Result<Handle> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the communicator.
        let code = unsafe { (self.functions.init)(&mut handle, ranks as c_int, id, rank as c_int) };
        self.check("ncclCommInitRank", code, std::ptr::null_mut())?;
        Ok(handle)
    }

    /// Ends a communicator that nothing is sent to any more.
    pub(super) fn destroy(&self, handle: Handle) {
        // SAFETY: a live communicator. A failure leaves nothing to be done.
        unsafe { (self.functions.destroy)(handle) };
    }

    /// Ends a communicator, and lets what waits in it go.
    pub(super) fn abort(&self, handle: Handle) {
        // SAFETY: as above.
        unsafe { (self.functions.abort)(handle) };
    }

    /// What has happened to a communicator since.
    pub(super) fn async_error(&self, handle: Handle) -> Result<()> {
        let mut code = SUCCESS;
        // SAFETY: a live communicator and a place for the code.
        let asked = unsafe { (self.functions.async_error)(handle, &mut code) };
        self.check("ncclCommGetAsyncError", asked, handle)?;
        if code == IN_PROGRESS { Ok(()) } else { self.check("a rank cannot be reached", code, handle) }
    }

    /// Enqueues sums over ranks, in place, as one operation.
    ///
    /// # Safety
    /// The floats are there when the stream comes to it, and nothing else uses them meanwhile.
    pub(super) unsafe fn all_reduce(
        &self,
        handle: Handle,
        places: &[(u64, usize)],
        stream: CUstream,
    ) -> Result<()> {
        // SAFETY: groups nest, and this one is ended whatever comes of its parts.
        self.check("ncclGroupStart", unsafe { (self.functions.group_start)() }, handle)?;
        let enqueue = |&(place, count): &(u64, usize)| {
            // SAFETY: as the caller promises.
            let code =
                unsafe { (self.functions.all_reduce)(place, place, count, FLOAT32, SUM, handle, stream) };
            self.check("ncclAllReduce", code, handle)
        };
        let enqueued = places.iter().try_for_each(enqueue);
        // SAFETY: as above.
        let ended = self.check("ncclGroupEnd", unsafe { (self.functions.group_end)() }, handle);
        enqueued.and(ended)
    }

    /// Enqueues a gathering of `bytes` bytes of every rank.
    ///
    /// # Safety
    /// As [`Nccl::all_reduce`], with room for those of all ranks at `to`.
    pub(super) unsafe fn all_gather(
        &self,
        handle: Handle,
        from: u64,
        to: u64,
        bytes: usize,
        stream: CUstream,
    ) -> Result<()> {
        // SAFETY: as the caller promises.
        let code = unsafe { (self.functions.all_gather)(from, to, bytes, UINT8, handle, stream) };
        self.check("ncclAllGather", code, handle)
    }

    fn check(&self, what: &str, code: c_int, handle: Handle) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        let text = |text: *const c_char| {
            // SAFETY: the library gives static NUL-terminated strings, or null.
            let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
            text.map(|text| text.to_string_lossy().trim().to_string())
        };
        // SAFETY: any code has a text; the last error is that of a communicator or, for null, of the thread.
        let (reason, last) =
            unsafe { ((self.functions.error_string)(code), (self.functions.last_error)(handle)) };
        let last = text(last).filter(|text| !text.is_empty());
        let last = last.map_or(String::new(), |text| format!(" ({text})"));
        Err(Error::Ranks(format!("NCCL: {what}: {}{last}", text(reason).unwrap_or_default())))
    }
}
