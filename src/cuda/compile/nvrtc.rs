//! NVIDIA's run-time compiler, found at run time: CUDA C++ to PTX or to the device's own code. It needs no
//! driver and no GPU.
//!
//! The library is loaded by our own table of a dozen functions that have not changed since CUDA 11.3, so any
//! later NVRTC serves, whatever version number its file bears.

pub use super::{Code, Job};

use super::{find, sources};
use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The least that a library must compile to count as a compiler.
const EMPTY: &str = "extern \"C\" __global__ void empty() {}\n";

/// The loaded compiler.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    functions: Functions,
    /// Headers of its own that it looks for by name.
    _builtins: Option<Library>,
    /// Keeps the functions' code in place.
    _library: Library,
}

type Program = *mut c_void;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type GetText = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// Entry points, as `nvrtc.h` declares them.
struct Functions {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    log_size: GetSize,
    log: GetText,
    ptx_size: GetSize,
    ptx: GetText,
    cubin_size: GetSize,
    cubin: GetText,
}

/// Destroys the program when dropped.
struct OpenProgram<'a> {
    program: Program,
    functions: &'a Functions,
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was made by `create` and is destroyed once.
        unsafe { (self.functions.destroy)(&mut self.program) };
    }
}

impl Nvrtc {
    /// The process's compiler, looked for once, when first asked for: the file that `KNET_NVRTC` names and no
    /// other, else the first that works of those beside the executable, in a CUDA toolkit, in the active
    /// Python environment, on the loader's path. Nothing in the working directory is ever loaded.
    ///
    /// # Errors
    /// [`Error::NoDevice`] naming every file that was tried, why it does not serve, and what to do.
    pub fn get() -> Result<&'static Nvrtc> {
        static FOUND: OnceLock<std::result::Result<Nvrtc, String>> = OnceLock::new();
        FOUND.get_or_init(find::find).as_ref().map_err(|reason| Error::NoDevice(reason.clone()))
    }

    /// The compiler in the file `path`, if it compiles: an absolute path.
    ///
    /// # Errors
    /// [`Error::Cuda`] naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Nvrtc> {
        Nvrtc::load(path).map_err(|reason| Error::Cuda(format!("{}: {reason}", path.display())))
    }

    /// As [`Nvrtc::open`]; a bare file name is looked for on the loader's path.
    pub(super) fn load(path: &Path) -> std::result::Result<Nvrtc, String> {
        // A loader waits without end for a pipe's other side, and says little of a folder.
        let file =
            path.is_absolute().then(|| std::fs::metadata(path).map_err(|e| e.to_string())).transpose()?;
        if file.is_some_and(|file| !file.is_file()) {
            return Err("it is no regular file".into());
        }
        // SAFETY: loading runs the library's initialisers; it is NVIDIA's, or what the user put in its place.
        let library = unsafe { Library::new(path) }.map_err(|e| reason(&e))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of `nvrtc.h`.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|e| reason(&e))?
            };
        }
        let functions = Functions {
            create: function!("nvrtcCreateProgram"),
            compile: function!("nvrtcCompileProgram"),
            destroy: function!("nvrtcDestroyProgram"),
            error: function!("nvrtcGetErrorString"),
            log_size: function!("nvrtcGetProgramLogSize"),
            log: function!("nvrtcGetProgramLog"),
            ptx_size: function!("nvrtcGetPTXSize"),
            ptx: function!("nvrtcGetPTX"),
            cubin_size: function!("nvrtcGetCUBINSize"),
            cubin: function!("nvrtcGetCUBIN"),
        };
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!("nvrtcVersion");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two valid places for the two numbers.
        if unsafe { version(&mut major, &mut minor) } != 0 {
            return Err("it does not tell its version".into());
        }
        let version = (major as u32, minor as u32);
        let nvrtc = Nvrtc {
            path: path.to_path_buf(),
            version,
            functions,
            _builtins: builtins(path, version),
            _library: library,
        };
        let job = Job { source: "empty.cu", defines: Vec::new(), compute: (8, 0), code: Code::Cubin };
        match nvrtc.compile_text(EMPTY, &job) {
            Ok(_) => Ok(nvrtc),
            Err(Error::Cuda(reason)) => {
                Err(format!("NVRTC {major}.{minor}, which compiles nothing: {reason}"))
            }
            Err(other) => Err(other.to_string()),
        }
    }

    /// Version, such as (13, 5).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles a source: PTX text with a final NUL, or a cubin.
    ///
    /// # Errors
    /// [`Error::Cuda`] with file, defines and the compiler's own lines.
    pub fn compile(&self, job: &Job) -> Result<Vec<u8>> {
        let text = sources::text(job.source)
            .ok_or_else(|| Error::Cuda(format!("no kernel source `{}`", job.source)))?;
        self.compile_text(text, job)
    }

    /// As [`Nvrtc::compile`], of `text` in place of the file's.
    ///
    /// # Errors
    /// As there.
    pub fn compile_text(&self, text: &str, job: &Job) -> Result<Vec<u8>> {
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| Error::Cuda(format!("{}: the source holds a NUL", job.source)))
        };
        let headers = sources::headers(job.source);
        let names = headers.keys().map(|name| c_string(name)).collect::<Result<Vec<_>>>()?;
        let texts = headers.values().map(|text| c_string(text)).collect::<Result<Vec<_>>>()?;
        let options = job.options().iter().map(|option| c_string(option)).collect::<Result<Vec<_>>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (name, text) = (c_string(job.source)?, c_string(text)?);
        let mut program = std::ptr::null_mut();
        // SAFETY: NUL-terminated strings that outlive the call; as many headers as names.
        let code = unsafe {
            let (texts, names) = (pointers(&texts), pointers(&names));
            let count = names.len() as c_int;
            let create = self.functions.create;
            create(&mut program, text.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr())
        };
        self.check(code, job, "nvrtcCreateProgram")?;
        let open = OpenProgram { program, functions: &self.functions };
        // SAFETY: a live program and NUL-terminated options.
        let code =
            unsafe { (self.functions.compile)(program, options.len() as c_int, pointers(&options).as_ptr()) };
        if code != 0 {
            let log = self.result(&open, (self.functions.log_size, self.functions.log), job)?;
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
            let (major, minor) = self.version;
            return Err(Error::Cuda(format!(
                "{} does not compile by NVRTC {major}.{minor} of {}:\n{log}",
                job.title(),
                self.path.display()
            )));
        }
        let functions = match job.code {
            Code::Ptx => (self.functions.ptx_size, self.functions.ptx),
            Code::Cubin => (self.functions.cubin_size, self.functions.cubin),
        };
        self.result(&open, functions, job)
    }

    /// One of a program's byte strings.
    fn result(&self, open: &OpenProgram<'_>, (size, get): (GetSize, GetText), job: &Job) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: a live program and a place for the size.
        self.check(unsafe { size(open.program, &mut bytes) }, job, "size of the result")?;
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer is as long as the library asked for.
        self.check(unsafe { get(open.program, buffer.as_mut_ptr().cast()) }, job, "the result")?;
        Ok(buffer)
    }

    fn check(&self, code: c_int, job: &Job, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a static NUL-terminated string for any code.
        let reason = unsafe { CStr::from_ptr((self.functions.error)(code)) }.to_string_lossy();
        Err(Error::Cuda(format!("{}: {what}: {reason}", job.title())))
    }
}

/// The library of built-in declarations beside NVRTC. NVRTC opens it by name when it first compiles, and
/// where it has no RPATH, as in the wheels of 13.0, it does not look beside itself: what is loaded already is
/// what it finds then. `None` if there is none, as in NVRTC 11.1 and older, or if the loader has to find it.
fn builtins(nvrtc: &Path, (major, minor): (u32, u32)) -> Option<Library> {
    // Toolkits and package managers link to where the files are.
    let folder = std::fs::canonicalize(nvrtc).ok().filter(|_| nvrtc.is_absolute())?.parent()?.to_path_buf();
    let path = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
    // SAFETY: its initialisers are NVIDIA's, as are those of the library beside it.
    path.is_file().then(|| unsafe { Library::new(&path) }.ok()).flatten()
}

/// What the loader says.
fn reason(error: &libloading::Error) -> String {
    let said = std::error::Error::source(error).map(|source| source.to_string());
    said.unwrap_or_else(|| error.to_string())
}
