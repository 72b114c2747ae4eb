//! The device, its memory, and copies.

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult as Code};
use cudarc::driver::{DevicePtr, result};

use crate::process::{context, run};

#[test]
fn the_device_names_itself() {
    run("memory::the_device_names_itself", &[("PTXEMU_GPU", "h100")], || {
        let context = context();
        assert_eq!(context.name().unwrap(), "ptxemu (PTX emulator, no GPU)");
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        let attribute = |attribute| context.attribute(attribute).unwrap();
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), 227 << 10);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK), 48 << 10);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 1024);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 132);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE), 1_980_000);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE), 32);
        assert_eq!(context.uuid().unwrap().bytes.map(|byte| byte as u8), *b"ptxemu-not-a-gpu");
        assert_eq!(cudarc::driver::CudaContext::device_count().unwrap(), 1);
        assert_eq!(cudarc::driver::CudaContext::new(1).unwrap_err().0, Code::CUDA_ERROR_INVALID_DEVICE);
    });
}

#[test]
fn bad_settings_are_said() {
    let run = run("memory::bad_settings_are_said", &[("PTXEMU_CC", "eight")], || {
        assert_eq!(result::init().unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
    });
    assert!(run.is_none_or(|run| run.says("PTXEMU_CC=eight: a compute capability")));
}

#[test]
fn copies_round_trip() {
    run("memory::copies_round_trip", &[], || {
        let context = context();
        let stream = context.default_stream();
        let data: Vec<u32> = (0..100).collect();
        let first = stream.clone_htod(&data).unwrap();
        let mut second = stream.alloc_zeros::<u32>(100).unwrap();
        assert_eq!(stream.clone_dtoh(&second).unwrap(), vec![0; 100]);
        stream.memcpy_dtod(&first.slice(0..50), &mut second.slice_mut(50..)).unwrap();
        let copied = stream.clone_dtoh(&second).unwrap();
        assert_eq!((&copied[..50], &copied[50..]), (&vec![0; 50][..], &data[..50]));

        // SAFETY: read only after it was written.
        let mut pinned = unsafe { context.alloc_pinned_with_flags::<u32>(100, 0) }.unwrap();
        stream.memcpy_dtoh(&first, &mut pinned).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(pinned.as_slice().unwrap(), data);
    });
}

#[test]
fn rows_are_copied_with_their_pitch() {
    run("memory::rows_are_copied_with_their_pitch", &[], || {
        let context = context();
        let stream = context.default_stream();
        let source: Vec<u8> = (0..48).collect();
        let device = stream.alloc_zeros::<u8>(64).unwrap();
        let (address, _guard) = device.device_ptr(&stream);
        // Three rows of 10 of 16 bytes, to rows of 20 bytes.
        let description = sys::CUDA_MEMCPY2D {
            srcXInBytes: 2,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: source.as_ptr().cast(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: 16,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: address,
            dstArray: std::ptr::null_mut(),
            dstPitch: 20,
            WidthInBytes: 10,
            Height: 3,
        };
        // SAFETY: both ends hold three rows.
        unsafe { sys::cuMemcpy2DAsync_v2(&description, stream.cu_stream()) }.result().unwrap();
        let expected: Vec<u8> = (0..64)
            .map(|at| if at % 20 < 10 && at < 60 { (at / 20 * 16 + 2 + at % 20) as u8 } else { 0 })
            .collect();
        assert_eq!(stream.clone_dtoh(&device).unwrap(), expected);
    });
}

#[test]
fn memory_runs_out_and_comes_back() {
    let run = run("memory::memory_runs_out_and_comes_back", &[("PTXEMU_FREE_MEMORY", "1048576")], || {
        let context = context();
        let stream = context.default_stream();
        assert_eq!(context.mem_get_info().unwrap(), (1 << 20, 1 << 20));
        let most = stream.alloc_zeros::<u8>(800_000).unwrap();
        assert_eq!(context.mem_get_info().unwrap().0, (1 << 20) - 800_000);
        assert_eq!(stream.alloc_zeros::<u8>(300_000).unwrap_err().0, Code::CUDA_ERROR_OUT_OF_MEMORY);
        // Freed in the stream's order: the driver waits for that before it gives up.
        drop(most);
        stream.alloc_zeros::<u8>(1_000_000).unwrap();
    });
    assert!(run.is_none_or(|run| run.says("needs 300000 bytes")));
}

#[test]
fn addresses_are_checked_at_the_call() {
    let run = run("memory::addresses_are_checked_at_the_call", &[], || {
        let context = context();
        let stream = context.default_stream();
        let device = stream.alloc_zeros::<u8>(100).unwrap();
        let (address, guard) = device.device_ptr(&stream);
        // SAFETY: the calls below are refused, or touch what is there.
        unsafe {
            let refused = result::memcpy_htod_async(address + 90, &[0_u8; 11], stream.cu_stream());
            assert_eq!(refused.unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(result::free_sync(address + 1).unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
            let (mut start, mut bytes) = (0, 0);
            sys::cuMemGetAddressRange_v2(&mut start, &mut bytes, address + 99).result().unwrap();
            assert_eq!((start, bytes), (address, 100));
            let beyond = sys::cuMemGetAddressRange_v2(&mut start, &mut bytes, address + 100);
            assert_eq!(beyond, Code::CUDA_ERROR_NOT_FOUND);
        }
        drop(guard);
        drop(device);
        // SAFETY: refused, as the freeing is queued.
        let refused = unsafe { result::memcpy_htod_async(address, &[0_u8; 1], stream.cu_stream()) };
        assert_eq!(refused.unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
    });
    assert!(run.is_none_or(|run| run.says("11 bytes of device memory")));
}

#[test]
fn unknown_entry_points_are_not_supported() {
    let run = run("memory::unknown_entry_points_are_not_supported", &[], || {
        let _context = context();
        // SAFETY: refused before anything is touched.
        let refused = unsafe { sys::cuTexObjectDestroy(0) };
        assert_eq!(refused, Code::CUDA_ERROR_NOT_SUPPORTED);
        let mut address = std::ptr::null_mut();
        let find = |name: &std::ffi::CStr, address: &mut *mut std::ffi::c_void| {
            // SAFETY: a name that ends in NUL and a place for the address.
            unsafe { sys::cuGetProcAddress(name.as_ptr(), address, 11040, 0) }
        };
        find(c"cuMemAlloc", &mut address).result().unwrap();
        assert!(!address.is_null());
        assert_eq!(find(c"cuNoSuchThing", &mut address), Code::CUDA_ERROR_NOT_FOUND);
        assert!(address.is_null());
    });
    assert!(run.is_none_or(|run| run.says("cuTexObjectDestroy: not part of this stand-in")));
}
