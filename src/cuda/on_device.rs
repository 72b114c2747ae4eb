//! For programs that have images in device memory and a stream of their own: a run is enqueued there and not
//! waited for, and its results stay on the device.
//!
//! The image is copied into the pipeline's own memory on the caller's stream (a plane in microseconds), so
//! that any address, alignment and pitch will do and the captured graph never changes. Runs that share an
//! arena follow each other whatever streams they are on: each waits for the event that the one before left.

use super::device::{Device, fault};
use super::executor::Executor;
use super::pipeline::Pipeline;
use super::pre::PixelFormat;
use super::recording::capture;
use crate::error::{Error, Result};
use cudarc::driver::{CudaEvent, CudaGraph, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A stream of the caller's.
#[derive(Clone, Copy, Debug)]
pub struct ExternalStream(sys::CUstream);

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for ExternalStream {}

impl ExternalStream {
    /// Takes a `CUstream` (`cudaStream_t`); null is the default stream.
    ///
    /// # Safety
    /// The stream must be one of the driver's, and live until what is enqueued on it through this is done.
    pub unsafe fn from_raw(stream: *mut c_void) -> Self {
        ExternalStream(stream.cast())
    }
}

/// Rows of bytes in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlane {
    /// Device address of the first row.
    pub address: u64,
    /// Bytes from one row to the next.
    pub pitch: usize,
}

/// An 8-bit image in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceImage {
    /// How pixels lie.
    pub format: PixelFormat,
    /// Height and width.
    pub size: (usize, usize),
    /// The pixels, or of NV12 the luma.
    pub pixels: DevicePlane,
    /// Of NV12 the plane of U and V, half as many rows.
    pub chroma: Option<DevicePlane>,
}

impl DeviceImage {
    /// Bytes of a row of either plane.
    pub(crate) fn row_bytes(&self) -> usize {
        match self.format {
            PixelFormat::Nv12(_) => self.size.1,
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => 3 * self.size.1,
        }
    }

    /// The planes with their rows.
    fn planes(&self) -> Result<Vec<(&'static str, DevicePlane, usize)>> {
        let rows = self.size.0;
        let fault = |what: &str| Err(Error::usage(format!("a {:?} image {what}", self.format)));
        match (self.format, self.chroma) {
            (PixelFormat::Nv12(_), None) => fault("needs a plane of chroma"),
            (PixelFormat::Nv12(_), Some(chroma)) => {
                Ok(vec![("luma", self.pixels, rows), ("chroma", chroma, rows.div_ceil(2))])
            }
            (_, Some(_)) => fault("has no plane of chroma"),
            (_, None) => Ok(vec![("image", self.pixels, rows)]),
        }
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

/// What a run leaves in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceResults {
    /// Instances by descending score; all arrays but the masks have one entry an instance.
    Instances {
        /// Bit masks by place, each so many bytes after the one before; pixel `i` of the image, row by row,
        /// is bit `7 - i % 8` of byte `i / 8` of a mask.
        masks: DeviceSlice,
        /// Bytes from one mask to the next.
        mask_bytes: usize,
        /// f32 scores.
        scores: DeviceSlice,
        /// i32 `object * classes + class`.
        pairs: DeviceSlice,
        /// u32 places of the masks; `u32::MAX`: dropped, as are all after it.
        places: DeviceSlice,
    },
    /// An object for each pixel; N objects, the things first.
    Assignment {
        /// u16 object of each pixel, row by row.
        objects: DeviceSlice,
        /// u32 pixels that each object wins `[N]`, then those of its own mask `[N]`.
        areas: DeviceSlice,
        /// f32 score of each object.
        scores: DeviceSlice,
        /// u32 class of each object.
        classes: DeviceSlice,
    },
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
    /// Enqueues a run over an image in device memory on the caller's stream, and gives where its results will
    /// lie. The image must have the size and format that the pipeline was made for; any pitch. Nothing is
    /// waited for.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image of another size or format, rows that overlap, and addresses that are not
    /// device memory or have too little of it behind them, as far as the driver tells (it may round
    /// allocations up, or take a memory pool for one); for a stream of another context. [`Error::Cuda`] as
    /// the driver says.
    ///
    /// # Safety
    /// The image's memory must hold the image until the work is done, as far as the stream's order goes.
    pub unsafe fn enqueue(
        &mut self,
        executor: &mut Executor,
        image: &DeviceImage,
        stream: ExternalStream,
    ) -> Result<DeviceResults> {
        let device = executor.device().clone();
        device.bind()?;
        let ExternalStream(stream) = stream;
        check_stream(&device, stream)?;
        let row = image.row_bytes();
        if (image.size, image.format) != (self.ends.preprocess.source, self.ends.preprocess.format) {
            let (size, format) = (self.ends.preprocess.source, self.ends.preprocess.format);
            let (found, other) = (image.size, image.format);
            return Err(Error::usage(format!(
                "the pipeline is for {format:?} images of {size:?}, this is {other:?} of {found:?}"
            )));
        }
        let planes = image.planes()?;
        for (what, plane, rows) in &planes {
            check_plane(&device, what, plane, row, *rows)?;
        }
        if self.enqueued.is_none() {
            let graph = capture(&device, || self.record(executor))?;
            let event =
                device.stream().context().new_event(None).map_err(|e| fault("cannot make an event", e))?;
            self.enqueued = Some(Enqueued { graph, done: Arc::new(event) });
        }
        executor.wait_on_last(stream)?;
        let mut target = self.pixels();
        for (_, plane, rows) in planes {
            copy_rows(plane, (target, self.ends.preprocess.pitch), row, rows, stream)?;
            target += (self.ends.preprocess.pitch * rows) as u64;
        }
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
        Ok(self.on_device())
    }
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
fn check_plane(device: &Device, what: &str, plane: &DevicePlane, row: usize, rows: usize) -> Result<()> {
    let DevicePlane { address, pitch } = *plane;
    if pitch < row {
        return Err(Error::usage(format!("{what}: rows of {row} bytes overlap at a pitch of {pitch}")));
    }
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

/// Enqueues a copy of rows within the device.
fn copy_rows(
    from: DevicePlane,
    (to, to_pitch): (u64, usize),
    row: usize,
    rows: usize,
    stream: sys::CUstream,
) -> Result<()> {
    let copy = sys::CUDA_MEMCPY2D_st {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: from.address,
        srcArray: std::ptr::null_mut(),
        srcPitch: from.pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstPitch: to_pitch,
        WidthInBytes: row,
        Height: rows,
    };
    // SAFETY: both ends were checked or made for as many rows.
    unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream) }.result().map_err(|e| fault("cannot copy the image", e))
}
