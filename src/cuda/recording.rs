//! Launches and copies bound to memory, and their capture as a graph.

use super::device::{Device, fault};
use super::memory::{DeviceBuffer, Pinned};
use super::runtime::{Function, Runtime};
use crate::cuda::launch::{Arg, Launch};
use crate::error::{Error, Result};
use cudarc::driver::{CudaGraph, result, sys};
use std::ffi::c_void;

/// Most parameters of a kernel of ours.
const MAX_ARGUMENTS: usize = 32;

/// A launch with its arguments in place.
pub(super) struct Bound {
    function: Function,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    /// Values of the kernel's parameters, each at the place that `arguments` says.
    values: Vec<u64>,
    arguments: Vec<usize>,
    /// What some of the arguments point to.
    _tables: Vec<DeviceBuffer>,
    /// What it is, for errors.
    what: String,
}

impl Bound {
    /// Binds `launch`; `address` gives the device address of each pointer argument.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the kernel is not loaded, the device cannot run it, or `address` fails.
    pub(super) fn new(
        runtime: &Runtime,
        launch: &Launch,
        mut address: impl FnMut(&Arg) -> Result<sys::CUdeviceptr>,
    ) -> Result<Bound> {
        let count = launch.args.len();
        if count > MAX_ARGUMENTS {
            return Err(Error::Cuda(format!("{launch}: {count} arguments, at most {MAX_ARGUMENTS}")));
        }
        let (mut values, mut arguments, mut tables) = (Vec::new(), Vec::new(), Vec::new());
        for arg in &launch.args {
            arguments.push(values.len());
            let Arg::Table(args) = arg else {
                values.extend(arg.words(&mut address)?);
                continue;
            };
            let mut words = Vec::new();
            for arg in args {
                words.extend(arg.words(&mut address)?);
            }
            let bytes = bytemuck::cast_slice(&words);
            let table = DeviceBuffer::of(runtime.device(), bytes, "a table of operands")?;
            values.push(table.pointer());
            tables.push(table);
        }
        Ok(Bound {
            function: runtime.function(launch)?,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            values,
            arguments,
            _tables: tables,
            what: launch.to_string(),
        })
    }

    /// Sends the launch to the device's stream.
    pub(super) fn launch(&self, device: &Device) -> Result<()> {
        let mut arguments = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for (argument, &offset) in arguments.iter_mut().zip(&self.arguments) {
            *argument = self.values[offset..].as_ptr().cast_mut().cast();
        }
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        // SAFETY: a loaded kernel; its program gave as many arguments as it has parameters, of their sizes,
        // with pointers into memory that outlives the plan's use of it.
        unsafe {
            result::launch_kernel(
                self.function.handle(),
                (gx, gy, gz),
                (bx, by, bz),
                self.shared,
                device.stream().cu_stream(),
                &mut arguments[..self.arguments.len()],
            )
        }
        .map_err(|e| fault(&format!("cannot launch {}", self.what), e))
    }
}

/// Sends a copy from page-locked memory to the device's stream.
pub(super) fn copy_in(device: &Device, from: &Pinned, to: sys::CUdeviceptr) -> Result<()> {
    if from.len() == 0 {
        return Ok(());
    }
    let stream = device.stream().cu_stream();
    // SAFETY: page-locked memory that lives as long as what was captured; the target holds as many bytes.
    unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.address(), from.len(), stream) }
        .result()
        .map_err(|e| fault("cannot copy an input", e))
}

/// Sends a copy to page-locked memory to the device's stream.
pub(super) fn copy_out(device: &Device, from: sys::CUdeviceptr, to: &Pinned) -> Result<()> {
    if to.len() == 0 {
        return Ok(());
    }
    let stream = device.stream().cu_stream();
    // SAFETY: as above; the memory is read only after the stream was waited for.
    unsafe { sys::cuMemcpyDtoHAsync_v2(to.address(), from, to.len(), stream) }
        .result()
        .map_err(|e| fault("cannot copy a result", e))
}

/// Sends a copy of all of `from` to the device's stream.
pub(super) fn copy_within(device: &Device, from: &DeviceBuffer, to: sys::CUdeviceptr) -> Result<()> {
    copy_between(device, from.pointer(), to, from.len())
}

/// Sends a copy from one place on the device to another to the device's stream.
pub(super) fn copy_between(
    device: &Device,
    from: sys::CUdeviceptr,
    to: sys::CUdeviceptr,
    bytes: usize,
) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: as many bytes at both ends, which outlive the stream's work: whoever sends waits for it.
    unsafe { result::memcpy_dtod_async(to, from, bytes, device.stream().cu_stream()) }
        .map_err(|e| fault("cannot copy on the device", e))
}

/// Records what `work` sends to the stream as a graph, ready to launch. Other threads may call the driver
/// meanwhile, but must not wait for the whole context (`super` says more).
pub(super) fn capture(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    device.bind()?;
    let stream = device.stream();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .map_err(|e| fault("cannot capture a graph", e))?;
    let outcome = work();
    // The capture ends whatever came of the work, so that the stream can be used again.
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => fault(
            "the capture of a graph was broken: nothing may wait for the context (cudaDeviceSynchronize) while an engine plans",
            e,
        ),
        _ => fault("cannot instantiate the graph", e),
    });
    outcome?;
    let graph = graph?.ok_or_else(|| Error::Cuda("the captured graph is empty".into()))?;
    graph.upload().map_err(|e| fault("cannot upload the graph", e))?;
    device.synchronize()?;
    Ok(graph)
}

/// Launches a captured graph.
pub(super) fn launch(graph: &CudaGraph) -> Result<()> {
    graph.launch().map_err(|e| fault("cannot launch the graph", e))
}

/// Launches a captured graph and waits for it.
pub(super) fn replay(device: &Device, graph: &CudaGraph) -> Result<()> {
    launch(graph)?;
    device.synchronize()
}
