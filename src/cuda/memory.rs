//! Device memory and page-locked host memory, freed when dropped.

use super::device::{Device, fault};
use crate::error::{Error, Result};
use crate::memory;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// Bytes of device memory. The driver aligns them to 256 at least.
pub(crate) struct DeviceBuffer {
    device: Arc<Device>,
    pointer: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Uninitialised memory for `what`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has less; [`Error::Cuda`] as the driver says.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Self> {
        device.bind()?;
        if bytes == 0 {
            return Ok(DeviceBuffer { device: device.clone(), pointer: 0, bytes });
        }
        // SAFETY: the context is current; the memory is freed once, when dropped.
        let pointer = unsafe { result::malloc_sync(bytes) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(device, bytes, what),
            _ => fault(&format!("cannot allocate {bytes} bytes for {what}"), e),
        })?;
        Ok(DeviceBuffer { device: device.clone(), pointer, bytes })
    }

    /// Memory that holds a copy of `data`.
    ///
    /// # Errors
    /// As [`DeviceBuffer::new`].
    pub(crate) fn of(device: &Arc<Device>, data: &[u8], what: &str) -> Result<Self> {
        let buffer = DeviceBuffer::new(device, data.len(), what)?;
        write(device, buffer.pointer, data)?;
        Ok(buffer)
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Its address on the device.
    pub(crate) fn pointer(&self) -> sys::CUdeviceptr {
        self.pointer
    }
}

/// Copies `data` to where there are as many bytes, and waits.
///
/// # Errors
/// [`Error::Cuda`] as the driver says.
pub(super) fn write(device: &Device, to: sys::CUdeviceptr, data: &[u8]) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    device.bind()?;
    // On the device's own stream, which does not wait for the default one, so that kernels come after the
    // copy. SAFETY: as many bytes as are there; `data` outlives the wait.
    unsafe { result::memcpy_htod_async(to, data, device.stream().cu_stream()) }
        .map_err(|e| fault("cannot copy to the device", e))?;
    device.synchronize()
}

/// Makes bytes on the device zero, before all that is sent to its stream later.
///
/// # Errors
/// [`Error::Cuda`] as the driver says.
pub(super) fn clear(device: &Device, place: sys::CUdeviceptr, bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    device.bind()?;
    // SAFETY: as many bytes are there, and outlive the stream's work, for which whoever runs a plan waits.
    unsafe { result::memset_d8_async(place, 0, bytes, device.stream().cu_stream()) }
        .map_err(|e| fault("cannot clear memory of the device", e))
}

/// Copies as many bytes as `data` has from the device, after all that was sent to its stream, and waits.
///
/// # Errors
/// [`Error::Cuda`] as the driver says.
pub(super) fn read(device: &Device, from: sys::CUdeviceptr, data: &mut [u8]) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    device.bind()?;
    // SAFETY: as above.
    unsafe { result::memcpy_dtoh_async(data, from, device.stream().cu_stream()) }
        .map_err(|e| fault("cannot copy from the device", e))?;
    device.synchronize()
}

/// Refuses what the device has no memory for, before anything is compiled or copied for it.
///
/// # Errors
/// [`Error::Memory`] with both numbers; [`Error::Cuda`] as the driver says.
pub(super) fn check(device: &Device, bytes: usize, what: &str) -> Result<()> {
    let (free, _) = device.memory()?;
    if bytes > free { Err(out_of_memory(device, bytes, what)) } else { Ok(()) }
}

fn out_of_memory(device: &Device, bytes: usize, what: &str) -> Error {
    let available = device.memory().ok().map(|(free, _)| free as u64);
    Error::Memory { what: format!("out of device memory: {what}"), needed: bytes as u64, available }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.bytes > 0 && self.device.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once. A failure (the context is gone) leaves nothing to free.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Page-locked bytes: the device copies from and to them by itself.
pub(crate) struct Pinned {
    device: Arc<Device>,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone and may be reached from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeros.
    ///
    /// # Errors
    /// [`Error::Memory`] if the host has less; [`Error::Cuda`] as the driver says.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        memory::check("a photo with its results in page-locked memory", bytes)?;
        device.bind()?;
        let mut pointer = std::ptr::NonNull::<u64>::dangling().as_ptr().cast::<u8>();
        if bytes > 0 {
            // SAFETY: the context is current; the memory is freed once, when dropped, and zeroed before any
            // use.
            unsafe {
                pointer = result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP)
                    .map_err(|e| match e.0 {
                        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory {
                            what: "page-locked host memory".into(),
                            needed: bytes as u64,
                            available: None,
                        },
                        _ => fault(&format!("cannot lock {bytes} bytes of host memory"), e),
                    })?
                    .cast::<u8>();
                pointer.write_bytes(0, bytes);
            }
        }
        Ok(Pinned { device: device.clone(), pointer, bytes })
    }

    /// Its address for kernels.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the device cannot reach the host's memory.
    pub(crate) fn on_device(&self) -> Result<sys::CUdeviceptr> {
        self.device.bind()?;
        let mut address = 0;
        // SAFETY: page-locked memory of this value, and a place for the address.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.pointer.cast(), 0) }
            .result()
            .map_err(|e| fault("kernels cannot reach page-locked memory", e))?;
        Ok(address)
    }

    /// Its address on the host, for copies by the device.
    pub(crate) fn address(&self) -> *mut std::ffi::c_void {
        self.pointer.cast()
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The memory as elements of a plain type; the driver aligns it to a page.
    pub(crate) fn as_slice<T: bytemuck::Pod>(&self) -> &[T] {
        // SAFETY: initialised bytes of this length; no one writes while they are borrowed, as runs end
        // synchronised.
        bytemuck::cast_slice(unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) })
    }

    /// As [`Pinned::as_slice`], for writing.
    pub(crate) fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        // SAFETY: as above, borrowed exclusively.
        bytemuck::cast_slice_mut(unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.bytes > 0 && self.device.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { result::free_host(self.pointer.cast()) };
        }
    }
}
