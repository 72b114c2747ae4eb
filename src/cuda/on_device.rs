//! For programs that have images in device memory and a stream of their own: a run is enqueued there and not
//! waited for, and its results stay on the device.
//!
//! The image is copied into the pipeline's own memory on the caller's stream (a plane in microseconds), so
//! that any address, alignment and pitch will do and the captured graph never changes. Runs that share an
//! arena follow each other whatever streams they are on: each waits for the event that the one before left.

use super::device::{Device, fault};
use super::executor::Executor;
use super::pipeline::Pipeline;
use super::pre::PlacedPlane;
use super::recording::capture;
use crate::error::{Error, Result};
use crate::image::view::{ImageView, Memory, Plane, PlaneShape};
use cudarc::driver::{CudaEvent, CudaGraph, DriverError, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A stream of the caller's, and events of the caller's that the work on it is ordered by.
#[derive(Clone, Copy, Debug)]
pub struct ExternalStream {
    stream: sys::CUstream,
    /// Null: none.
    after: sys::CUevent,
    before: sys::CUevent,
}

// SAFETY: handles of the driver, which may be used from any thread.
unsafe impl Send for ExternalStream {}

impl ExternalStream {
    /// Takes a `CUstream` (`cudaStream_t`); null is the default stream.
    ///
    /// # Safety
    /// The stream must be one of the driver's, and live until what is enqueued on it through this is done.
    pub unsafe fn from_raw(stream: *mut c_void) -> Self {
        ExternalStream { stream: stream.cast(), after: std::ptr::null_mut(), before: std::ptr::null_mut() }
    }

    /// Lets what is enqueued wait for what a `CUevent` (`cudaEvent_t`) was last recorded after, such as the
    /// end of the image's copy on another stream; null: for nothing.
    ///
    /// # Safety
    /// The event must be one of the driver's, and live until what is enqueued is done.
    pub unsafe fn after(self, event: *mut c_void) -> Self {
        ExternalStream { after: event.cast(), ..self }
    }

    /// Records a `CUevent` (`cudaEvent_t`) of the stream's context after what is enqueued; null: none.
    ///
    /// # Safety
    /// As [`ExternalStream::after`].
    pub unsafe fn before(self, event: *mut c_void) -> Self {
        ExternalStream { before: event.cast(), ..self }
    }
}

/// Bytes of device memory that belong to a pipeline: valid once the run's work is done, until the pipeline
/// runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlice {
    /// Device address, a multiple of 256.
    pub address: u64,
    /// Length.
    pub bytes: usize,
}

/// What a pipeline needs to be run on the caller's stream.
pub(super) struct Enqueued {
    /// All between the copies in and out.
    graph: CudaGraph,
    /// Marks the end of the last run.
    done: Arc<CudaEvent>,
}

impl Drop for Enqueued {
    fn drop(&mut self) {
        // Memory that the run works in goes next. A failure (the context is gone) leaves nothing to wait for.
        let _ = self.done.synchronize();
    }
}

impl Pipeline {
    /// Enqueues a run over an image in device memory on the caller's stream; its results will lie where
    /// [`Pipeline::device`] says. The image must have the size and format that the pipeline was made for; any
    /// stride. Nothing is waited for.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image of another size or format, one on the host, and addresses that are not
    /// device memory or have too little of it behind them, as far as the driver tells (it may round
    /// allocations up, or take a memory pool for one); for a stream of another context, and events that the
    /// driver does not take: for the one after the run it finds out when the run is enqueued. [`Error::Cuda`]
    /// as the driver says.
    ///
    /// # Safety
    /// The image's memory must hold the image until the work is done, as far as the stream's order goes.
    pub unsafe fn enqueue(
        &mut self,
        executor: &mut Executor,
        image: &ImageView<'_>,
        stream: ExternalStream,
    ) -> Result<()> {
        let device = executor.device().clone();
        device.bind()?;
        let ExternalStream { stream, after, before } = stream;
        check_stream(&device, stream)?;
        self.check(image)?;
        for (plane, shape) in image.planes() {
            check_plane(&device, &plane, &shape)?;
        }
        if self.enqueued.is_none() {
            let graph = capture(&device, || self.record(executor))?;
            let event =
                device.stream().context().new_event(None).map_err(|e| fault("cannot make an event", e))?;
            self.enqueued = Some(Enqueued { graph, done: Arc::new(event) });
        }
        if !after.is_null() {
            // SAFETY: the caller vouches for the event.
            unsafe { sys::cuStreamWaitEvent(stream, after, 0) }
                .result()
                .map_err(|e| refused("wait for", "the event before the run", e))?;
        }
        executor.wait_on_last(stream)?;
        self.copy_planes(image, stream)?;
        let Some(Enqueued { graph, done }) = &self.enqueued else {
            return Err(Error::Cuda("no graph".into()));
        };
        // SAFETY: a live graph and a stream of its context.
        unsafe { sys::cuGraphLaunch(graph.cu_graph_exec(), stream) }
            .result()
            .map_err(|e| fault("cannot launch the graph", e))?;
        // SAFETY: a live event and a stream of its context.
        unsafe { sys::cuEventRecord(done.cu_event(), stream) }
            .result()
            .map_err(|e| fault("cannot record an event", e))?;
        executor.record_end(done.clone());
        if !before.is_null() {
            // SAFETY: the caller vouches for the event.
            unsafe { sys::cuEventRecord(before, stream) }
                .result()
                .map_err(|e| refused("record", "the event after the run", e))?;
        }
        Ok(())
    }
}

impl Pipeline {
    /// Copies an image in device memory to where [`Pipeline::run`] takes it from, whose results go to the
    /// host. The image must be whole: only the device's own stream is waited for.
    ///
    /// # Errors
    /// As [`Pipeline::enqueue`].
    pub fn fetch(&mut self, executor: &mut Executor, image: &ImageView<'_>) -> Result<()> {
        let device = executor.device().clone();
        device.bind()?;
        self.check(image)?;
        for (plane, shape) in image.planes() {
            check_plane(&device, &plane, &shape)?;
        }
        if self.graph_after_copy.is_none() {
            self.graph_after_copy = Some(capture(&device, || self.record_to_host(executor))?);
        }
        // A run on another stream may be at work on the last image.
        executor.join()?;
        self.copy_planes(image, device.stream().cu_stream())?;
        self.is_copied = true;
        Ok(())
    }

    /// Enqueues copies of the planes, which were checked, to where the image goes on the device.
    fn copy_planes(&self, image: &ImageView<'_>, stream: sys::CUstream) -> Result<()> {
        image.planes().zip(self.preprocess.planes()).try_for_each(|((plane, _), placed)| {
            let target = self.pixels() + placed.offset as u64;
            copy_rows(&plane, (target, self.preprocess.pitch), &placed, stream)
        })
    }
}

/// An event of the caller's that the driver does not take.
fn refused(what: &str, which: &str, reason: DriverError) -> Error {
    if reason.0 == sys::CUresult::CUDA_ERROR_INVALID_HANDLE {
        return Error::usage(format!("cannot {what} {which}: it is none of the stream's context"));
    }
    fault(&format!("cannot {what} {which}"), reason)
}

/// Whether a stream is of the device's context.
fn check_stream(device: &Device, stream: sys::CUstream) -> Result<()> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the caller of `ExternalStream::from_raw` vouches for the stream.
    unsafe { sys::cuStreamGetCtx(stream, &mut context) }
        .result()
        .map_err(|e| fault("the stream cannot be used", e))?;
    if context != device.stream().context().cu_ctx() {
        return Err(Error::usage("the stream belongs to another context than the engine's device"));
    }
    Ok(())
}

/// What the driver knows of an address; all zeros if it is none of its own.
#[derive(Default)]
struct Pointed {
    memory_type: u32,
    ordinal: i32,
    /// The allocation.
    start: u64,
    bytes: u64,
}

impl Pointed {
    /// Asks in the form of the question that takes any address: to `cuPointerGetAttribute` one of the host is
    /// an error, of which compute-sanitizer would report each.
    fn at(address: u64) -> Result<Pointed> {
        use sys::CUpointer_attribute_enum as Attribute;
        let mut found = Pointed::default();
        let mut attributes = [
            Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
        ];
        let mut values: [*mut c_void; 4] = [
            (&raw mut found.memory_type).cast(),
            (&raw mut found.ordinal).cast(),
            (&raw mut found.start).cast(),
            (&raw mut found.bytes).cast(),
        ];
        let count = attributes.len() as u32;
        // SAFETY: as many attributes as places, each of its attribute's type; any address may be asked about.
        unsafe { sys::cuPointerGetAttributes(count, attributes.as_mut_ptr(), values.as_mut_ptr(), address) }
            .result()
            .map_err(|e| fault(&format!("the driver does not know {address:#x}"), e))?;
        Ok(found)
    }
}

/// Refuses a plane that does not lie in one allocation of the device, as far as the driver tells: what it
/// calls an allocation may be rounded up, or be the whole of a memory pool, so a plane that ends a little
/// late may pass.
fn check_plane(device: &Device, plane: &Plane<'_>, shape: &PlaneShape) -> Result<()> {
    let PlaneShape { name: what, rows, row_bytes: row } = *shape;
    let (address, pitch) = (address(plane)?, plane.stride);
    let Pointed { memory_type, ordinal, start, bytes } = Pointed::at(address)?;
    let of_device = sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32;
    if memory_type != of_device || ordinal as usize != device.ordinal() {
        return Err(Error::usage(format!("{what}: {address:#x} is no memory of {}", device.name())));
    }
    let needed = pitch.checked_mul(rows - 1).and_then(|bytes| bytes.checked_add(row));
    let behind = start.saturating_add(bytes).saturating_sub(address);
    if needed.is_none_or(|needed| needed as u64 > behind) {
        let needed = needed.map_or("more than memory has".into(), |bytes| format!("{bytes} bytes"));
        return Err(Error::usage(format!(
            "{what}: {rows} rows of {row} bytes at a pitch of {pitch} take {needed}; behind {address:#x} are {behind}"
        )));
    }
    Ok(())
}

fn address(plane: &Plane<'_>) -> Result<u64> {
    match plane.memory {
        Memory::Device(address) => Ok(address),
        Memory::Host(_) => Err(Error::usage("the image is on the host, not in the memory of a GPU")),
    }
}

/// Enqueues a copy of rows within the device.
fn copy_rows(
    from: &Plane<'_>,
    (to, to_pitch): (u64, usize),
    placed: &PlacedPlane,
    stream: sys::CUstream,
) -> Result<()> {
    let copy = sys::CUDA_MEMCPY2D_st {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: address(from)?,
        srcArray: std::ptr::null_mut(),
        srcPitch: from.stride,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstPitch: to_pitch,
        WidthInBytes: placed.row_bytes,
        Height: placed.rows,
    };
    // SAFETY: both ends were checked or made for as many rows.
    unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream) }.result().map_err(|e| fault("cannot copy the image", e))
}
