//! CUDA C++ to PTX with the NVRTC that `tools/setup-cuda` installs.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaModule};
use cudarc::nvrtc::Ptx;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

type Program = *mut c_void;
type Strings = *const *const c_char;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/cuda/nvidia/cu13/lib/libnvrtc.so.13");
        // SAFETY: NVIDIA's library, whose initialisers need nothing.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        library.unwrap_or_else(|error| panic!("no NVRTC ({error}): run tools/setup-cuda"))
    })
}

/// PTX of `source` for `compute_80`.
pub fn compile(source: &str) -> String {
    compile_for(source, "compute_80")
}

/// PTX of `source` for an architecture.
pub fn compile_for(source: &str, architecture: &str) -> String {
    let source = CString::new(source).expect("a source without NUL");
    let option = CString::new(format!("--gpu-architecture={architecture}")).expect("an option without NUL");
    let options = [option.as_ptr(), c"--generate-line-info".as_ptr()];
    let mut program: Program = std::ptr::null_mut();
    // SAFETY: the functions' signatures as `nvrtc.h` declares them; all pointers outlive the calls; the
    // buffers have the sizes that NVRTC asks for.
    unsafe {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            Strings,
            Strings,
        ) -> c_int;
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let create = library().get::<Create>(b"nvrtcCreateProgram").expect("nvrtcCreateProgram");
        let none = std::ptr::null();
        assert_eq!(create(&mut program, source.as_ptr(), c"test.cu".as_ptr(), 0, none, none), 0);
        let compile =
            library().get::<unsafe extern "C" fn(Program, c_int, Strings) -> c_int>(b"nvrtcCompileProgram");
        let failed = compile.expect("nvrtcCompileProgram")(program, 2, options.as_ptr()) != 0;
        let (size, text): (&[u8], &[u8]) = match failed {
            true => (b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog"),
            false => (b"nvrtcGetPTXSize", b"nvrtcGetPTX"),
        };
        let mut bytes = 0;
        assert_eq!(library().get::<Size>(size).expect("a size")(program, &mut bytes), 0);
        let mut result = vec![0_u8; bytes];
        assert_eq!(library().get::<Text>(text).expect("a text")(program, result.as_mut_ptr().cast()), 0);
        let destroy = library().get::<unsafe extern "C" fn(*mut Program) -> c_int>(b"nvrtcDestroyProgram");
        destroy.expect("nvrtcDestroyProgram")(&mut program);
        let result = String::from_utf8_lossy(&result).trim_end_matches('\0').to_owned();
        assert!(!failed, "{result}");
        result
    }
}

/// Kernels that the programs launch.
pub const KERNELS: &str = r#"
extern "C" __global__ void axpy(float a, const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
extern "C" __global__ void reverse(int* x) {
    extern __shared__ int tile[];
    int i = threadIdx.x, n = blockDim.x;
    tile[i] = x[blockIdx.x * n + i];
    __syncthreads();
    x[blockIdx.x * n + i] = tile[n - 1 - i];
}
extern "C" __global__ void past_the_end(int* x, int n) {
    x[n + threadIdx.x] = 1;
}
extern "C" __global__ void __launch_bounds__(64) narrow(int* x) {
    x[threadIdx.x] = 1;
}
__device__ int offset = 3;
extern "C" __global__ void add_offset(int* x) {
    x[threadIdx.x] += offset;
}
extern "C" __global__ void endless(volatile int* x) {
    while (x[threadIdx.x] == 0) {}
}
"#;

/// [`KERNELS`], loaded.
pub fn kernels(context: &Arc<CudaContext>) -> Arc<CudaModule> {
    context.load_module(Ptx::from_src(compile(KERNELS))).expect("the kernels load")
}
