//! What the tests share: NVRTC through dlopen, and a small bench of memory and launches.
#![allow(dead_code)] // every test binary uses its part

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use libloading::Library;
use ptxemu::{Config, Fault, Instance, Launch, Memory, Module, Options, Report, launch};

/// NVRTC's functions.
struct Nvrtc {
    library: Library,
}

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

fn nvrtc() -> &'static Nvrtc {
    static NVRTC: OnceLock<Nvrtc> = OnceLock::new();
    NVRTC.get_or_init(|| {
        let root = std::env::var_os("KNET_CUDA").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/cuda"),
            PathBuf::from,
        );
        let path = root.join("nvidia/cu13/lib/libnvrtc.so.13");
        // SAFETY: NVRTC's initialisers have no requirements.
        let library = unsafe { Library::new(&path) };
        let library = library.unwrap_or_else(|e| {
            panic!(
                "NVRTC is needed to test the emulator: run tools/setup-cuda, or set KNET_CUDA ({}: {e})",
                path.display()
            )
        });
        Nvrtc { library }
    })
}

impl Nvrtc {
    fn text(&self, size: &[u8], get: &[u8], program: Program) -> String {
        // SAFETY: the symbols have these signatures in every NVRTC; the buffer has the size NVRTC asks for.
        unsafe {
            let size = self.library.get::<Size>(size).expect("symbol");
            let get = self.library.get::<Get>(get).expect("symbol");
            let mut len = 0;
            assert_eq!(size(program, &mut len), 0);
            let mut bytes = vec![0_u8; len + 1];
            assert_eq!(get(program, bytes.as_mut_ptr().cast()), 0);
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(len);
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        }
    }
}

/// PTX of `tests/cuda/NAME.cu` for `arch` (such as `compute_80`) with extra options (such as `-DBUG_1`).
pub fn ptx_for(name: &str, arch: &str, options: &[&str]) -> String {
    let file = format!("{name}.cu");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(&file);
    // Tests of one binary share what is compiled: NVRTC takes longer than most of them.
    static COMPILED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let key = format!("{file} {arch} {options:?}");
    let mut compiled = COMPILED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(ptx) = compiled.get(&key) {
        return ptx.clone();
    }
    let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let ptx = compile(&source, &file, arch, options);
    compiled.insert(key, ptx.clone());
    ptx
}

/// PTX of a source text.
pub fn compile(source: &str, file: &str, arch: &str, options: &[&str]) -> String {
    let nvrtc = nvrtc();
    let source = CString::new(source).expect("no NUL in sources");
    let file = CString::new(file).expect("no NUL in names");
    let mut all = vec![format!("--gpu-architecture={arch}")];
    all.extend(["-default-device", "-std=c++17", "-lineinfo"].map(str::to_owned));
    all.extend(options.iter().map(|o| (*o).to_owned()));
    let all: Vec<CString> = all.into_iter().map(|o| CString::new(o).expect("no NUL in options")).collect();
    let pointers: Vec<*const c_char> = all.iter().map(|o| o.as_ptr()).collect();
    // SAFETY: the symbols have these signatures in every NVRTC; all pointers outlive the calls.
    unsafe {
        let create = nvrtc.library.get::<Create>(b"nvrtcCreateProgram").expect("symbol");
        let run = nvrtc.library.get::<Compile>(b"nvrtcCompileProgram").expect("symbol");
        let destroy = nvrtc.library.get::<Destroy>(b"nvrtcDestroyProgram").expect("symbol");
        let mut program: Program = std::ptr::null_mut();
        let null = std::ptr::null();
        assert_eq!(create(&mut program, source.as_ptr(), file.as_ptr(), 0, null, null), 0);
        let status = run(program, pointers.len() as c_int, pointers.as_ptr());
        let log = nvrtc.text(b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog", program);
        assert_eq!(status, 0, "NVRTC: {log}");
        let ptx = nvrtc.text(b"nvrtcGetPTXSize", b"nvrtcGetPTX", program);
        destroy(&mut program);
        ptx
    }
}

/// A module in a memory of its own.
pub struct Bench {
    pub memory: Memory,
    pub instance: Instance,
}

impl Bench {
    /// Loads PTX text.
    pub fn new(ptx: &str) -> Bench {
        Bench::of(Module::parse(ptx).unwrap_or_else(|e| panic!("{e}")))
    }

    /// Puts a module into a memory.
    pub fn of(module: Module) -> Bench {
        let memory = Memory::new(Options { address_space: 4 << 30, limit: 2 << 30, ..Options::default() })
            .expect("address space");
        let instance = Instance::new(Arc::new(module), &memory).expect("module variables");
        Bench { memory, instance }
    }

    /// Compiles and loads `tests/cuda/NAME.cu` for sm_80.
    pub fn cuda(name: &str, options: &[&str]) -> Bench {
        Bench::new(&ptx_for(name, "compute_80", options))
    }

    /// A buffer with contents.
    pub fn put<T: Copy>(&self, label: &str, values: &[T]) -> u64 {
        let address = self.memory.alloc(size_of_val(values) as u64, label).expect("memory");
        self.memory.write(address, bytes(values)).expect("in bounds");
        address
    }

    /// A buffer nobody has written.
    pub fn room<T>(&self, label: &str, count: usize) -> u64 {
        self.memory.alloc((count * size_of::<T>()) as u64, label).expect("memory")
    }

    /// Reads a buffer back.
    pub fn get<T: Copy + Default>(&self, address: u64, count: usize) -> Vec<T> {
        let mut out = vec![T::default(); count];
        // SAFETY: the tests read plain numbers, for which every bit pattern is valid.
        let view =
            unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), count * size_of::<T>()) };
        self.memory.read(address, view).unwrap_or_else(|e| panic!("{e}"));
        out
    }

    /// Launches an entry.
    pub fn run(
        &self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: &Params,
    ) -> Result<Report, Fault> {
        self.run_with(entry, (grid, block, 0), params, &Config::default())
    }

    /// Launches an entry with dynamic shared memory and a configuration.
    pub fn run_with(
        &self,
        entry: &str,
        (grid, block, dynamic_shared): ([u32; 3], [u32; 3], u32),
        params: &Params,
        config: &Config,
    ) -> Result<Report, Fault> {
        launch(
            &self.instance,
            entry,
            &Launch { grid, block, dynamic_shared, params: &params.0 },
            &self.memory,
            config,
        )
    }
}

/// Kernel parameters, packed in order.
#[derive(Clone, Default)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn new() -> Params {
        Params::default()
    }

    /// Appends a value at its natural alignment.
    pub fn arg<T: Copy>(mut self, value: T) -> Params {
        self.0.resize(self.0.len().next_multiple_of(align_of::<T>()), 0);
        self.0.extend(bytes(&[value]));
        self
    }
}

/// Plain numbers as bytes.
pub fn bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: the tests pass plain numbers, which have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Pseudo-random numbers in [-1, 1).
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
