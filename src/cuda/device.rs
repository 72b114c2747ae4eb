//! A GPU: its context, its stream and what it can do.

use crate::cuda::gpu::Caps;
use crate::error::{Error, Result};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::sys::CUresult::*;
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};
use std::sync::Arc;

/// Oldest driver, by the CUDA version it is for, that has all functions the program calls.
const OLDEST_DRIVER: (u32, u32) = (11, 4);

/// The version of CUDA that the driver is for, such as (13, 0); `None` if there is no driver.
///
/// # Errors
/// [`Error::Cuda`] as the driver says.
pub fn driver() -> Result<Option<(u32, u32)>> {
    // SAFETY: this only tries to load the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Ok(None);
    }
    let mut version = 0;
    // SAFETY: a place for the number.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| fault("cannot ask the driver for its version", e))?;
    let version = version.max(0) as u32;
    Ok(Some((version / 1000, version % 1000 / 10)))
}

/// Number of devices that the driver has.
///
/// # Errors
/// [`Error::NoDevice`] without a driver; [`Error::Cuda`] as it says.
pub fn count() -> Result<usize> {
    driver()?.ok_or_else(no_driver)?;
    match CudaContext::device_count() {
        Ok(count) => Ok(count.max(0) as usize),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(error) => Err(fault("cannot count the devices", error)),
    }
}

fn no_driver() -> Error {
    Error::NoDevice("no NVIDIA driver: libcuda is not on the loader's path".into())
}

/// An open device with one stream. All work of a session goes to that stream, in order.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    caps: Caps,
    driver: (u32, u32),
}

impl Device {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: no driver or one for CUDA 11.3 or older, a driver without a device, no such
    /// device, or one older than compute capability 8.0. [`Error::Cuda`] as the driver says.
    pub fn open(ordinal: usize) -> Result<Device> {
        let driver = driver()?.ok_or_else(no_driver)?;
        if driver < OLDEST_DRIVER {
            let ((major, minor), (least_major, least_minor)) = (driver, OLDEST_DRIVER);
            return Err(Error::NoDevice(format!(
                "the NVIDIA driver is for CUDA {major}.{minor}; update it to one for CUDA {least_major}.{least_minor} or later"
            )));
        }
        let open = || -> std::result::Result<Device, DriverError> {
            let context = CudaContext::new(ordinal)?;
            // Each stream is ordered by itself: no events are wanted around every use of a buffer.
            // SAFETY: all work on a buffer goes to one stream; constants are whole before another reads them.
            unsafe { context.disable_event_tracking() };
            let stream = context.new_stream()?;
            let number = |attribute| context.attribute(attribute).map(|value| value.max(0) as u32);
            let (major, minor) = context.compute_capability()?;
            // Transfers of double data rate, in bits: twice the clock times the width of the bus.
            let memory_khz = u64::from(number(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?);
            let bus_bits = u64::from(number(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?);
            let caps = Caps {
                compute: (major as u32, minor as u32),
                multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                shared_per_block: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                shared_per_multiprocessor: number(
                    Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
                )?,
                l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
                clock_mhz: number(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? / 1000,
                bandwidth_gbs: (2 * memory_khz * bus_bits / 8 / 1_000_000) as u32,
            };
            Ok(Device { name: context.name()?, context, stream, caps, driver })
        };
        let device = open().map_err(|e| fault(&format!("cannot open device {ordinal}"), e))?;
        if device.caps.compute < (8, 0) {
            let (major, minor) = device.caps.compute;
            return Err(Error::NoDevice(format!(
                "{} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later",
                device.name
            )));
        }
        Ok(device)
    }

    /// The same device with another stream, whose work goes on beside this one's.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says.
    pub(super) fn with_new_stream(&self) -> Result<Device> {
        let stream = self.context.new_stream().map_err(|e| fault("cannot make a stream", e))?;
        let Device { context, name, caps, driver, .. } = self;
        Ok(Device { context: context.clone(), stream, name: name.clone(), caps: *caps, driver: *driver })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number among the driver's devices.
    pub(crate) fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// Whether this is the PTX emulator's stand-in driver: it computes rightly, and no time it takes means
    /// anything.
    pub fn is_emulated(&self) -> bool {
        self.name.starts_with("ptxemu")
    }

    /// What it can do.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// The version of CUDA that its driver is for, such as (13, 0).
    pub fn driver(&self) -> (u32, u32) {
        self.driver
    }

    /// Free and total device memory, in bytes.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|e| fault("cannot ask for free memory", e))
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Makes the device's context this thread's: calls of the driver act on the current one.
    pub(crate) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| fault("cannot make the context current", e))
    }

    /// Waits until all work is done.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| fault("a kernel or copy failed", e))
    }
}

/// An error of the driver in context.
pub(crate) fn fault(what: &str, error: DriverError) -> Error {
    let text = |found: std::result::Result<&std::ffi::CStr, _>| {
        found
            .map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_else(|_: DriverError| "unknown".into())
    };
    let message = format!("{what}: {} ({})", text(error.error_string()), text(error.error_name()));
    classify(error.0, message)
}

/// The error of a code of the driver's.
fn classify(code: sys::CUresult, message: String) -> Error {
    match code {
        code if LOST.contains(&code) => Error::DeviceLost(message),
        CUDA_ERROR_NO_DEVICE | CUDA_ERROR_INVALID_DEVICE => Error::NoDevice(message),
        _ => Error::Cuda(message),
    }
}

/// Errors after which the context answers every call with the same error.
const LOST: [sys::CUresult; 15] = [
    CUDA_ERROR_DEINITIALIZED,
    CUDA_ERROR_ECC_UNCORRECTABLE,
    CUDA_ERROR_NVLINK_UNCORRECTABLE,
    CUDA_ERROR_ILLEGAL_ADDRESS,
    CUDA_ERROR_LAUNCH_TIMEOUT,
    CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUDA_ERROR_ASSERT,
    CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUDA_ERROR_MISALIGNED_ADDRESS,
    CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUDA_ERROR_INVALID_PC,
    CUDA_ERROR_LAUNCH_FAILED,
    CUDA_ERROR_SYSTEM_NOT_READY,
    CUDA_ERROR_UNKNOWN,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn errors_of_the_driver_have_a_kind_to_act_on() {
        // Without a driver the texts of errors are unknown, and their kinds are not.
        let kind = |code| classify(code, String::new()).kind();
        assert_eq!(kind(CUDA_ERROR_ILLEGAL_ADDRESS), ErrorKind::DeviceLost);
        assert_eq!(kind(CUDA_ERROR_INVALID_DEVICE), ErrorKind::NoDevice);
        assert_eq!(kind(CUDA_ERROR_INVALID_VALUE), ErrorKind::Cuda);
    }
}
