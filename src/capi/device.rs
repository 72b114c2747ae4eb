//! Frames and results in the memory of a GPU, on a stream of the caller's.

use super::frame::knet_frame;
use super::session::knet_session;
use super::status::{Fault, guarded, knet_status};
use super::structs::{Versioned, handle, read, read_or_default, write};
use std::ffi::c_void;

/// Where work on a GPU is enqueued, and what it is ordered by. All are of the device's primary context, as
/// the CUDA runtime uses it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_cuda_work {
    /// sizeof(knet_cuda_work).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// A CUstream (cudaStream_t); NULL: the default stream.
    pub stream: *mut c_void,
    /// A CUevent (cudaEvent_t) that the work waits for, such as the end of the frame's upload; NULL: none.
    pub wait_for: *mut c_void,
    /// A CUevent that is recorded when the work is done; NULL: none.
    pub signal: *mut c_void,
}

// SAFETY: plain numbers and pointers, which may be NULL.
unsafe impl Versioned for knet_cuda_work {
    const NAME: &'static str = "knet_cuda_work";
    const FIRST: usize = size_of::<knet_cuda_work>();
}

/// Where the results of a frame will lie in the memory of the GPU: addresses of the driver's, 0 for what a
/// result of this kind has not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct knet_device_result {
    /// sizeof(knet_device_result).
    pub struct_size: u32,
    /// A KNET_TASK_*.
    pub task: u32,
    /// Rows of masks and maps: the frame's, or what the session was told.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// Places for instances; objects that pixels of a panoptic map are given to, the things first; 0 for a
    /// semantic map.
    pub objects: u32,
    /// Zero.
    pub reserved: u32,
    /// The frame's.
    pub timestamp_ns: u64,
    /// Instances: bits of the masks by place, in the order of knet_result_mask_bits.
    pub masks: u64,
    /// Bytes from one mask to the next.
    pub mask_bytes: u64,
    /// f32, a score for each object, instances best first.
    pub scores: u64,
    /// Instances: i32, object * classes + class.
    pub pairs: u64,
    /// Instances: u32, the place of its mask. UINT32_MAX: there is none, nor any after it.
    pub places: u64,
    /// u16 for each pixel, row by row: its object in a panoptic map, its class in a semantic one.
    pub map: u64,
    /// Panoptic: u32, pixels that each object was given, then for each object those of its own mask.
    pub areas: u64,
    /// Panoptic: u32, the class of each object.
    pub classes: u64,
    /// Semantic: f32 for each pixel, the probability of its class, if it was asked for.
    pub confidence: u64,
}

// SAFETY: plain numbers.
unsafe impl Versioned for knet_device_result {
    const NAME: &'static str = "knet_device_result";
    const FIRST: usize = size_of::<knet_device_result>();
}

/// Segments a frame in the memory of the model's GPU: enqueues all work on the caller's stream and returns
/// without waiting. `work` may be NULL for the default stream. `result` says where the results will lie; they
/// are there once the work is done, until the session gets another frame of this size. Objects of a panoptic
/// map are as the network has them, whatever their score. The first frame of a size is planned for, which
/// takes time and waits.
///
/// Until the work is done the frame's pixels must stay as they are, as far as the stream's order goes, and
/// stream and events must live. One frame may follow the other, also on another stream: runs of a session
/// follow each other. knet_session_close waits for the work.
///
/// KNET_ERROR_USAGE: the model computes on the CPU; the frame is on the host; as far as the driver tells, the
/// planes are no memory of the GPU or too little of it; a stream of another context, or an event that is none
/// (if that is `signal`, the work has been enqueued). KNET_ERROR_NO_DEVICE: the library was built without the
/// code for GPUs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_segment_on_device(
    session: *const knet_session,
    frame: *const knet_frame,
    work: *const knet_cuda_work,
    result: *mut knet_device_result,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        unsafe {
            let (session, frame, work) = (handle(session, "session")?, read(frame)?, read_or_default(work)?);
            // A place that cannot be written to is refused before anything is enqueued.
            write(knet_device_result::default(), result)?;
            write(enqueue(session, &frame, &work)?, result)
        }
    })
}

/// # Safety
/// Frame and work are as the header asks.
#[cfg(feature = "cuda")]
unsafe fn enqueue(
    session: &knet_session,
    frame: &knet_frame,
    work: &knet_cuda_work,
) -> Result<knet_device_result, Fault> {
    use super::frame::view;
    use super::model::task_code;
    use knet::cuda::on_device::{DeviceSlice, ExternalStream};
    use knet::task::DeviceResults;

    // SAFETY: as the caller says.
    let (image, stream) = unsafe {
        let stream = ExternalStream::from_raw(work.stream).after(work.wait_for).before(work.signal);
        (view(frame)?, stream)
    };
    session.with(|session| {
        // SAFETY: as above.
        let results = unsafe { session.segment_on_device(&image, stream) }?;
        let floats = |slice: DeviceSlice| (slice.bytes / size_of::<f32>()) as u32;
        let all = knet_device_result {
            task: task_code(session.task()),
            height: frame.height,
            width: frame.width,
            timestamp_ns: frame.timestamp_ns,
            ..knet_device_result::default()
        };
        Ok(match results {
            DeviceResults::Instance(found) => knet_device_result {
                objects: floats(found.scores),
                masks: found.masks.address,
                mask_bytes: found.mask_bytes as u64,
                scores: found.scores.address,
                pairs: found.pairs.address,
                places: found.places.address,
                ..all
            },
            DeviceResults::Panoptic(found) => knet_device_result {
                objects: floats(found.scores),
                map: found.objects.address,
                scores: found.scores.address,
                areas: found.areas.address,
                classes: found.classes.address,
                ..all
            },
            DeviceResults::Semantic(found) => knet_device_result {
                map: found.classes.address,
                confidence: found.confidence.map_or(0, |slice| slice.address),
                ..all
            },
        })
    })
}

/// # Safety
/// Always.
#[cfg(not(feature = "cuda"))]
unsafe fn enqueue(_: &knet_session, _: &knet_frame, _: &knet_cuda_work) -> Result<knet_device_result, Fault> {
    let status = knet_status::KNET_ERROR_NO_DEVICE;
    Err(Fault { status, text: "the library was built without the code for GPUs".into() })
}
