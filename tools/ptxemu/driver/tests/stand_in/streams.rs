//! Order: what a missing wait looks like, and that a wait mends it.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent_flags, CUresult as Code};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};

use crate::process::{context, run};

const SEEDS: [&str; 6] = ["0", "1", "2", "3", "4", "5"];

fn pinned(context: &Arc<CudaContext>, value: u32) -> PinnedHostSlice<u32> {
    // SAFETY: filled at once.
    let mut memory = unsafe { context.alloc_pinned_with_flags::<u32>(64, 0) }.unwrap();
    memory.as_mut_slice().unwrap().fill(value);
    memory
}

/// Queues a copy that leaves the host free at once, without the waits that cudarc adds for page-locked
/// memory.
fn queue_to_device(stream: &CudaStream, to: &CudaSlice<u32>, from: *const u32) {
    let (address, _guard) = to.device_ptr(stream);
    // SAFETY: `from` is page-locked memory as long as the slice.
    unsafe { sys::cuMemcpyHtoDAsync_v2(address, from.cast(), to.num_bytes(), stream.cu_stream()) }
        .result()
        .unwrap();
}

fn queue_to_host(stream: &CudaStream, to: *mut u32, from: &CudaSlice<u32>) {
    let (address, _guard) = from.device_ptr(stream);
    // SAFETY: `to` is page-locked memory as long as the slice.
    unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), address, from.num_bytes(), stream.cu_stream()) }
        .result()
        .unwrap();
}

#[test]
fn results_are_stale_until_somebody_waits() {
    run("streams::results_are_stale_until_somebody_waits", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let device = stream.clone_htod(&[7_u32; 64]).unwrap();
        let mut host = pinned(&context, 0);
        let address = host.as_mut_ptr().unwrap();
        queue_to_host(&stream, address, &device);
        // SAFETY: nothing runs before the wait.
        assert_eq!(unsafe { address.read() }, 0, "nobody has waited");
        stream.synchronize().unwrap();
        // SAFETY: nothing is queued any more.
        assert_eq!(unsafe { address.read() }, 7);
    });
}

#[test]
fn a_pinned_source_reused_too_early_shows() {
    run("streams::a_pinned_source_reused_too_early_shows", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let device = stream.alloc_zeros::<u32>(64).unwrap();
        let mut host = pinned(&context, 1);
        let address = host.as_mut_ptr().unwrap();
        queue_to_device(&stream, &device, address);
        // SAFETY: nothing runs before the wait; that the copy has not is the point.
        unsafe { address.write(2) };
        let read = stream.clone_dtoh(&device).unwrap();
        assert_eq!((read[0], read[1]), (2, 1), "the copy reads its source when it runs");
        // Pageable memory is read at the call.
        let mut pageable = vec![3_u32; 64];
        queue_to_device(&stream, &device, pageable.as_ptr());
        pageable.fill(4);
        assert_eq!(stream.clone_dtoh(&device).unwrap()[0], 3);
    });
}

/// Writes on one stream and reads on another, with or without an event between.
fn across_streams(ordered: bool) -> u32 {
    let context = context();
    let (writer, reader) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut device = writer.clone_htod(&[1_u32; 64]).unwrap();
    writer.synchronize().unwrap();
    writer.memset_zeros(&mut device).unwrap();
    if ordered {
        reader.wait(&writer.record_event(None).unwrap()).unwrap();
    }
    reader.clone_dtoh(&device).unwrap()[0]
}

#[test]
fn streams_order_by_events_alone() {
    run("streams::streams_order_by_events_alone", &[], || {
        assert_eq!(across_streams(false), 1, "the reader waited for nothing");
        assert_eq!(across_streams(true), 0);
    });
}

#[test]
fn seeds_run_other_streams_ahead() {
    const NAME: &str = "streams::seeds_run_other_streams_ahead";
    let mut stale = 0;
    for seed in SEEDS {
        let run = run(NAME, &[("PTXEMU_SEED", seed)], || {
            println!("unordered: {}", across_streams(false));
            eprintln!("unordered: {}", across_streams(false));
            assert_eq!(across_streams(true), 0, "an ordered program does not depend on the seed");
        });
        let Some(run) = run else { return };
        stale += usize::from(run.says("unordered: 1"));
    }
    assert!((1..SEEDS.len()).contains(&stale), "{stale} of {} seeds read too early", SEEDS.len());
}

#[test]
fn the_default_stream_orders_blocking_streams() {
    run("streams::the_default_stream_orders_blocking_streams", &[], || {
        let context = context();
        let default = context.default_stream();
        let mut device = default.clone_htod(&[1_u32; 64]).unwrap();
        let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
        // SAFETY: made here, and used while it lives.
        let blocking = unsafe { context.wrap_borrowed_stream(blocking) };
        blocking.memset_zeros(&mut device).unwrap();
        assert_eq!(
            default.clone_dtoh(&device).unwrap()[0],
            0,
            "the default stream waits for blocking streams"
        );
        default.memcpy_htod(&[5_u32; 64], &mut device).unwrap();
        assert_eq!(
            blocking.clone_dtoh(&device).unwrap()[0],
            5,
            "blocking streams wait for the default stream"
        );

        let other = context.new_stream().unwrap();
        other.memset_zeros(&mut device).unwrap();
        assert_eq!(default.clone_dtoh(&device).unwrap()[0], 5, "other streams do not take part");
    });
}

#[test]
fn synchronous_copies_reach_other_streams_only_by_a_wait() {
    run("streams::synchronous_copies_reach_other_streams_only_by_a_wait", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let device = stream.alloc_zeros::<u32>(64).unwrap();
        let (address, _guard) = device.device_ptr(&stream);
        // SAFETY: as many elements as the slice holds.
        unsafe { result::memcpy_htod_sync(address, &[9_u32; 64]) }.unwrap();
        assert_eq!(stream.clone_dtoh(&device).unwrap()[0], 0, "staged, not arrived");
        context.synchronize().unwrap();
        assert_eq!(stream.clone_dtoh(&device).unwrap()[0], 9);
        let mut read = [0_u32; 64];
        // SAFETY: as many elements as the slice holds.
        unsafe { result::memcpy_dtoh_sync(&mut read, address) }.unwrap();
        assert_eq!(read[0], 9);
    });
}

#[test]
fn events_tell_time_and_asking_in_a_loop_ends() {
    run("streams::events_tell_time_and_asking_in_a_loop_ends", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        let mut device = stream.alloc_zeros::<u8>(1 << 20).unwrap();
        stream.memset_zeros(&mut device).unwrap();
        let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        assert!(!end.is_complete(), "nobody has waited");
        let asked = (0..100).take_while(|_| !end.try_is_complete().unwrap()).count();
        assert!((1..100).contains(&asked), "asked {asked} times");
        let time = start.elapsed_ms(&end).unwrap();
        assert!(time > 0.0 && time < 60_000.0, "{time} ms");
        assert!(end.elapsed_ms(&start).unwrap() < 0.0);

        let untimed = stream.record_event(None).unwrap();
        assert_eq!(start.elapsed_ms(&untimed).unwrap_err().0, Code::CUDA_ERROR_INVALID_HANDLE);
        // SAFETY: the stream lives.
        let query = || unsafe { sys::cuStreamQuery(stream.cu_stream()) };
        stream.memset_zeros(&mut device).unwrap();
        assert_eq!(query(), Code::CUDA_ERROR_NOT_READY);
        assert!((0..100).any(|_| query() == Code::CUDA_SUCCESS));
    });
}

#[test]
fn host_functions_run_in_order_and_may_not_call_the_driver() {
    extern "C" fn note(data: *mut std::ffi::c_void) {
        // SAFETY: the test passes a number that outlives the stream's work.
        let seen = unsafe { &mut *data.cast::<u32>() };
        let mut version = 0;
        // SAFETY: a place for the number.
        let refused = unsafe { sys::cuDriverGetVersion(&mut version) };
        *seen += if refused == Code::CUDA_ERROR_NOT_PERMITTED { 1 } else { 100 };
    }
    run("streams::host_functions_run_in_order_and_may_not_call_the_driver", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let mut seen = 0_u32;
        let data = (&raw mut seen).cast();
        // SAFETY: `seen` outlives the wait below.
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(note), data) }.result().unwrap();
        // SAFETY: nothing runs before the wait.
        assert_eq!(unsafe { data.cast::<u32>().read() }, 0);
        stream.synchronize().unwrap();
        assert_eq!(seen, 1);
    });
}

#[test]
fn stale_handles_are_refused() {
    run("streams::stale_handles_are_refused", &[], || {
        let context = context();
        let mut device = context.default_stream().alloc_zeros::<u8>(16).unwrap();
        let stream = context.new_stream().unwrap();
        stream.memset_zeros(&mut device).unwrap();
        let handle = stream.cu_stream();
        drop(stream);
        // SAFETY: the handle is stale, which the stand-in notices.
        assert_eq!(unsafe { sys::cuStreamSynchronize(handle) }, Code::CUDA_ERROR_INVALID_HANDLE);
        context.synchronize().unwrap();
    });
}

#[test]
fn cudarcs_own_tracking_orders_streams() {
    const NAME: &str = "streams::cudarcs_own_tracking_orders_streams";
    for seed in SEEDS {
        run(NAME, &[("PTXEMU_SEED", seed)], || {
            // With its event tracking on, as it is by default.
            let context = CudaContext::new(0).unwrap();
            let streams: Vec<_> = (0..3).map(|_| context.new_stream().unwrap()).collect();
            let mut device = streams[0].clone_htod(&[1_u32; 64]).unwrap();
            for round in 2..20_u32 {
                let stream = &streams[round as usize % 3];
                assert_eq!(stream.clone_dtoh(&device).unwrap(), [round - 1; 64]);
                stream.memcpy_htod(&[round; 64], &mut device).unwrap();
            }
        });
    }
}

#[test]
fn threads_use_the_device_at_once() {
    run("streams::threads_use_the_device_at_once", &[("PTXEMU_SEED", "3")], || {
        let context = context();
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let context = &context;
                scope.spawn(move || {
                    context.bind_to_thread().unwrap();
                    let own = context.per_thread_stream();
                    let stream = context.new_stream().unwrap();
                    for round in 0..50 {
                        let value = 100 * thread + round;
                        let device = stream.clone_htod(&[value; 64]).unwrap();
                        assert_eq!(stream.clone_dtoh(&device).unwrap(), [value; 64]);
                        let device = own.clone_htod(&[value; 64]).unwrap();
                        assert_eq!(own.clone_dtoh(&device).unwrap(), [value; 64]);
                    }
                });
            }
        });
    });
}
