//! Modules and kernels: what runs, what is refused, and what a fault does.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult as Code};
use cudarc::driver::{CudaContext, DevicePtr, LaunchConfig, PushKernelArg, result};
use cudarc::nvrtc::Ptx;

use crate::nvrtc::{KERNELS, compile, compile_for, kernels};
use crate::process::{context, run};

fn shape(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

#[test]
fn kernels_reach_page_locked_memory() {
    run("launches::kernels_reach_page_locked_memory", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let axpy = kernels(&context).load_function("axpy").unwrap();
        let n = 100_i32;
        let x = stream.clone_htod(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        // SAFETY: n floats, initialised before they are read, reached by one side at a time.
        unsafe {
            let host = result::malloc_host(400, sys::CU_MEMHOSTALLOC_DEVICEMAP).unwrap().cast::<f32>();
            let values = std::slice::from_raw_parts_mut(host, n as usize);
            let mut y: sys::CUdeviceptr = 0;
            for (round, first) in [1.0, -3.0].into_iter().enumerate() {
                values.fill(first);
                sys::cuMemHostGetDevicePointer_v2(&mut y, host.cast(), 0).result().unwrap();
                let mut launch = stream.launch_builder(&axpy);
                launch.arg(&0.5_f32).arg(&x).arg(&y).arg(&n);
                launch.launch(LaunchConfig::for_num_elems(n as u32)).unwrap();
                stream.synchronize().unwrap();
                let expected: Vec<f32> = (0..n).map(|i| first + 0.5 * i as f32).collect();
                assert_eq!(values, expected, "round {round}");
            }
            let elsewhere = [0_u8; 8];
            let refused = sys::cuMemHostGetDevicePointer_v2(&mut y, elsewhere.as_ptr().cast_mut().cast(), 0);
            assert_eq!(refused, Code::CUDA_ERROR_INVALID_VALUE);
            result::free_host(host.cast()).unwrap();
        }
    });
}

#[test]
fn kernels_compute() {
    const NAME: &str = "launches::kernels_compute";
    for seed in ["0", "7"] {
        run(NAME, &[("PTXEMU_SEED", seed)], || {
            let context = context();
            let stream = context.new_stream().unwrap();
            let module = kernels(&context);
            let axpy = module.load_function("axpy").unwrap();
            let n = 1001_i32;
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let x = stream.clone_htod(&x).unwrap();
            let mut y = stream.clone_htod(&vec![1.0_f32; n as usize]).unwrap();
            let mut launch = stream.launch_builder(&axpy);
            launch.arg(&0.5_f32).arg(&x).arg(&mut y).arg(&n);
            // SAFETY: the kernel's parameters, and memory of n elements.
            unsafe { launch.launch(LaunchConfig::for_num_elems(n as u32)) }.unwrap();
            let expected: Vec<f32> = (0..n).map(|i| 1.0 + 0.5 * i as f32).collect();
            assert_eq!(stream.clone_dtoh(&y).unwrap(), expected);

            let reverse = module.load_function("reverse").unwrap();
            let mut numbers = stream.clone_htod(&(0..256).collect::<Vec<i32>>()).unwrap();
            // SAFETY: two blocks of 128 elements each.
            unsafe { stream.launch_builder(&reverse).arg(&mut numbers).launch(shape(2, 128, 512)) }.unwrap();
            let expected: Vec<i32> = (0..128).rev().chain((128..256).rev()).collect();
            assert_eq!(stream.clone_dtoh(&numbers).unwrap(), expected);

            let add = module.load_function("add_offset").unwrap();
            // SAFETY: 256 elements; a variable of one number.
            unsafe {
                stream.launch_builder(&add).arg(&mut numbers).launch(shape(1, 256, 0)).unwrap();
                let (mut address, mut bytes) = (0, 0);
                let handle = raw_module(&context);
                sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, handle, c"offset".as_ptr())
                    .result()
                    .unwrap();
                assert_eq!(bytes, 4);
                let mut value = [0_i32];
                result::memcpy_dtoh_sync(&mut value, address).unwrap();
                assert_eq!(value, [3]);
            }
            assert_eq!(stream.clone_dtoh(&numbers).unwrap()[0], 130);
        });
    }
}

/// [`KERNELS`] by the plain API, for what the safe one does not show.
fn raw_module(_context: &Arc<CudaContext>) -> sys::CUmodule {
    let ptx = std::ffi::CString::new(compile(KERNELS)).unwrap();
    // SAFETY: PTX text that ends in NUL.
    unsafe { result::module::load_data(ptx.as_ptr().cast()) }.unwrap()
}

#[test]
fn parameters_come_packed_too() {
    run("launches::parameters_come_packed_too", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        // SAFETY: a kernel of the module.
        let function =
            unsafe { result::module::get_function(raw_module(&context), c"narrow".to_owned()) }.unwrap();
        let device = stream.alloc_zeros::<i32>(64).unwrap();
        let (mut address, _guard) = device.device_ptr(&stream);
        let launch = |mut bytes: usize, address: &mut u64| {
            let mut extra = [
                std::ptr::without_provenance_mut(1),
                (&raw mut *address).cast(),
                std::ptr::without_provenance_mut(2),
                (&raw mut bytes).cast(),
                std::ptr::null_mut(),
            ];
            let none = std::ptr::null_mut();
            // SAFETY: packed parameters of one pointer, or a size that is refused.
            unsafe {
                sys::cuLaunchKernel(
                    function,
                    1,
                    1,
                    1,
                    64,
                    1,
                    1,
                    0,
                    stream.cu_stream(),
                    none,
                    extra.as_mut_ptr(),
                )
            }
        };
        launch(8, &mut address).result().unwrap();
        assert_eq!(launch(12, &mut address), Code::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(stream.clone_dtoh(&device).unwrap(), [1; 64]);
    });
}

#[test]
fn impossible_launches_are_refused() {
    let run = run("launches::impossible_launches_are_refused", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let module = kernels(&context);
        let (reverse, narrow) =
            (module.load_function("reverse").unwrap(), module.load_function("narrow").unwrap());
        let mut numbers = stream.alloc_zeros::<i32>(4096).unwrap();
        let mut launch = |function, config| {
            // SAFETY: refused, or within the memory.
            unsafe { stream.launch_builder(function).arg(&mut numbers).launch(config) }
                .map_err(|error| error.0)
        };
        let refused = Err(Code::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(launch(&reverse, shape(1, 1025, 0)).map(|_| ()), refused);
        assert_eq!(launch(&reverse, shape(0, 32, 0)).map(|_| ()), refused);
        assert_eq!(launch(&narrow, shape(1, 65, 0)).map(|_| ()), refused, "more than __launch_bounds__");
        let deep = LaunchConfig { grid_dim: (1, 65536, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        assert_eq!(launch(&reverse, deep).map(|_| ()), refused);
        assert_eq!(
            launch(&reverse, shape(1, 128, (48 << 10) + 4)).map(|_| ()),
            refused,
            "shared memory without the opt-in"
        );
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        reverse.set_attribute(attribute, 100 << 10).unwrap();
        launch(&reverse, shape(1, 128, 100 << 10)).unwrap();
        let refused = reverse.set_attribute(attribute, 164 << 10).unwrap_err();
        assert_eq!(refused.0, Code::CUDA_ERROR_INVALID_VALUE);
        let mut each = [std::ptr::null_mut(); 1];
        let (nobody, stream) = (std::ptr::null_mut(), stream.cu_stream());
        // SAFETY: refused.
        unsafe {
            let refused = result::launch_kernel(nobody, (1, 1, 1), (1, 1, 1), 0, stream, &mut []);
            assert_eq!(refused.unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
            let function = result::module::get_function(raw_module(&context), c"narrow".to_owned()).unwrap();
            let refused = result::launch_kernel(function, (1, 1, 1), (1, 1, 1), 0, stream, &mut each);
            assert_eq!(refused.unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
        }
        context.synchronize().unwrap();
        assert_eq!(reverse.occupancy_max_active_blocks_per_multiprocessor(128, 0, None).unwrap(), 16);
        assert_eq!(reverse.occupancy_max_active_blocks_per_multiprocessor(128, 80 << 10, None).unwrap(), 2);
        assert_eq!(module.load_function("nobody").unwrap_err().0, Code::CUDA_ERROR_NOT_FOUND);
    });
    let Some(run) = run else { return };
    for text in [
        "reverse: 1025 threads along x, not 1 to 1024",
        "narrow: 65 threads in a block, 64 at most",
        "reverse: 65536 blocks along y, not 1 to 65535",
        "reverse: 49156 bytes of dynamic shared memory, 49152 allowed",
        "167936 bytes of shared memory; a block has 166912 at most",
        "narrow: parameter 0 is null",
    ] {
        assert!(run.says(text), "{text}:\n{}", run.stderr);
    }
}

#[test]
fn a_fault_shows_at_the_next_wait_and_stays() {
    let run = run("launches::a_fault_shows_at_the_next_wait_and_stays", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let fault = kernels(&context).load_function("past_the_end").unwrap();
        let mut numbers = stream.alloc_zeros::<i32>(64).unwrap();
        // SAFETY: the kernel writes past the end, which the emulator stops.
        unsafe { stream.launch_builder(&fault).arg(&mut numbers).arg(&64_i32).launch(shape(1, 32, 0)) }
            .unwrap();
        stream.memset_zeros(&mut numbers).unwrap();
        let illegal = Code::CUDA_ERROR_ILLEGAL_ADDRESS;
        assert_eq!(stream.synchronize().unwrap_err().0, illegal);
        assert_eq!(stream.memset_zeros(&mut numbers).unwrap_err().0, illegal, "the context is lost");
        assert_eq!(stream.synchronize().unwrap_err().0, illegal);
        assert_eq!(stream.alloc_zeros::<u8>(1).unwrap_err().0, illegal);
        // The name of the device is no matter of the context.
        assert!(context.name().is_ok());
        drop((numbers, fault, stream, context));
        let context = crate::process::context();
        let stream = context.new_stream().unwrap();
        let numbers = stream.clone_htod(&[1_i32; 64]).unwrap();
        assert_eq!(stream.clone_dtoh(&numbers).unwrap(), [1; 64], "a new context starts afresh");
    });
    let Some(run) = run else { return };
    assert!(run.says("OutOfBounds in past_the_end") && run.says("test.cu:14"), "{}", run.stderr);
}

#[test]
fn only_fitting_ptx_is_loaded() {
    let run = run("launches::only_fitting_ptx_is_loaded", &[("PTXEMU_CC", "8.6")], || {
        let context = context();
        let load = |ptx: String| context.load_module(Ptx::from_src(ptx)).map(|_| ()).map_err(|error| error.0);
        load(compile_for(KERNELS, "compute_86")).unwrap();
        assert_eq!(load(compile_for(KERNELS, "compute_90")), Err(Code::CUDA_ERROR_NO_BINARY_FOR_GPU));
        assert_eq!(load("nonsense".into()), Err(Code::CUDA_ERROR_INVALID_PTX));
        let newer = compile(KERNELS).replacen(".version 9.", ".version 10.", 1);
        assert_eq!(load(newer), Err(Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
        let broken = compile(KERNELS).replacen("ld.param", "ld.parma", 1);
        assert_eq!(load(broken), Err(Code::CUDA_ERROR_INVALID_PTX));
        let cubin = Ptx::from_binary(b"\x7fELF\x02\x01\x01\0".to_vec());
        assert_eq!(context.load_module(cubin).unwrap_err().0, Code::CUDA_ERROR_NO_BINARY_FOR_GPU);
    });
    let Some(run) = run else { return };
    for text in ["does not run on sm_86", "is newer than this driver's 9.5", "only PTX runs here", "PTX line"]
    {
        assert!(run.says(text), "{text}:\n{}", run.stderr);
    }
}

#[test]
fn an_old_driver_refuses_new_ptx() {
    run("launches::an_old_driver_refuses_new_ptx", &[("PTXEMU_DRIVER_VERSION", "12040")], || {
        let context = context();
        let loaded = context.load_module(Ptx::from_src(compile(KERNELS)));
        assert_eq!(loaded.unwrap_err().0, Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    });
}

#[test]
fn an_endless_kernel_ends_in_an_error() {
    let run = run(
        "launches::an_endless_kernel_ends_in_an_error",
        &[("PTXEMU_MAX_INSTRUCTIONS", "1000000")],
        || {
            let context = context();
            let stream = context.new_stream().unwrap();
            let endless = kernels(&context).load_function("endless").unwrap();
            let mut numbers = stream.alloc_zeros::<i32>(32).unwrap();
            // SAFETY: the kernel reads what is there.
            unsafe { stream.launch_builder(&endless).arg(&mut numbers).launch(shape(1, 32, 0)) }.unwrap();
            assert_eq!(stream.synchronize().unwrap_err().0, Code::CUDA_ERROR_LAUNCH_TIMEOUT);
        },
    );
    let Some(run) = run else { return };
    assert!(run.says("InstructionLimit in endless"), "{}", run.stderr);
}
