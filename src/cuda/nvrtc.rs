//! NVIDIA's run-time compiler, found at run time: CUDA C++ to PTX or to the device's own code. It needs no driver and no GPU.
//!
//! The library is loaded by our own table of a dozen functions that have not changed since CUDA 11.3, so any later NVRTC
//! serves, whatever version number its file bears.

use super::sources;
use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What to compile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// File under `kernels/`.
    pub source: &'static str,
    /// Macros that specialise it.
    pub defines: Vec<(&'static str, i64)>,
    /// Compute capability, such as (9, 0).
    pub compute: (u32, u32),
    /// Form of the result.
    pub code: Code,
}

/// Form of compiled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The device's own code: loads on drivers older than this NVRTC.
    Cubin,
    /// Text that the driver compiles: loads on later devices, and on no driver older than this NVRTC.
    Ptx,
}

impl Job {
    /// Options for the compiler, which together with the sources decide the result.
    pub fn options(&self) -> Vec<String> {
        let kind = match self.code {
            Code::Cubin => "sm",
            Code::Ptx => "compute",
        };
        let (major, minor) = self.compute;
        let mut options = vec![
            format!("--gpu-architecture={kind}_{major}{minor}"),
            "--std=c++17".into(),
            "-default-device".into(),
            "--generate-line-info".into(),
        ];
        options.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }
}

/// The loaded compiler.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    functions: Functions,
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
    /// The process's compiler, found once: the file named by `KNET_NVRTC`, else `tools/setup-cuda`'s folder of the working
    /// directory or of the source tree, else the CUDA toolkit, else the loader's path.
    ///
    /// # Errors
    /// [`Error::Cuda`] naming every place that was tried.
    pub fn get() -> Result<&'static Nvrtc> {
        static FOUND: OnceLock<std::result::Result<Nvrtc, String>> = OnceLock::new();
        FOUND.get_or_init(Nvrtc::find).as_ref().map_err(|reason| Error::Cuda(reason.clone()))
    }

    fn find() -> std::result::Result<Nvrtc, String> {
        let mut tried = Vec::new();
        for path in candidates() {
            match Nvrtc::load(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(reason) => tried.push(format!("  {}: {reason}", path.display())),
            }
        }
        Err(format!(
            "NVRTC, the compiler of CUDA kernels, was not found (tools/setup-cuda installs it; KNET_NVRTC names the \
             file); tried:\n{}",
            tried.join("\n")
        ))
    }

    fn load(path: &Path) -> std::result::Result<Nvrtc, String> {
        // SAFETY: loading runs the library's initialisers; it is NVIDIA's, or what the user put in its place.
        let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of `nvrtc.h`.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|e| e.to_string())?
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
        Ok(Nvrtc { path: path.to_path_buf(), version, functions, _library: library })
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
            return Err(Error::Cuda(format!(
                "kernels/{} does not compile ({}):\n{log}",
                job.source,
                job.defined()
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
        Err(Error::Cuda(format!("kernels/{} ({}): {what}: {reason}", job.source, job.defined())))
    }
}

impl Job {
    fn defined(&self) -> String {
        let defines: Vec<String> =
            self.defines.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
        format!("{} for sm_{}{}", defines.join(" "), self.compute.0, self.compute.1)
    }
}

/// Where NVRTC may be, best first.
fn candidates() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("KNET_NVRTC") {
        return vec![path.into()];
    }
    let names: &[&str] = if cfg!(windows) {
        &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
    } else {
        &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"]
    };
    let mut folders: Vec<PathBuf> = vec![
        "target/cuda/nvidia/cu13/lib".into(),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda/nvidia/cu13/lib"),
    ];
    for variable in ["CUDA_PATH", "CUDA_HOME"] {
        if let Some(root) = std::env::var_os(variable) {
            folders.extend(["lib64", "lib", "bin"].map(|folder| Path::new(&root).join(folder)));
        }
    }
    folders.push("/usr/local/cuda/lib64".into());
    let there = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    there.filter(|path| path.exists()).chain(names.iter().map(PathBuf::from)).collect()
}
