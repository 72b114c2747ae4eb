//! The device's own time of a captured graph.

use super::device::{Device, fault};
use crate::error::Result;
use crate::ops::ValueType;
use crate::tensor::Tensor;
use cudarc::driver::{CudaEvent, CudaGraph, sys};
use std::time::Duration;

/// Two marks on the device's stream. What lies between them is the graph alone: neither its launch by the
/// host nor an event between its kernels is part of the time. The marks themselves cost about a microsecond,
/// so short work is repeated in the graph.
pub(super) struct Stopwatch {
    marks: [CudaEvent; 2],
}

impl Stopwatch {
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) as the driver says.
    pub(super) fn new(device: &Device) -> Result<Stopwatch> {
        device.bind()?;
        let context = device.stream().context();
        let event = || {
            let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            context.new_event(timing).map_err(|e| fault("cannot make an event", e))
        };
        Ok(Stopwatch { marks: [event()?, event()?] })
    }

    /// Launches `graph` and gives its time, once it is done. What was sent to the device's stream before is
    /// not part of it.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) as the driver says.
    pub(super) fn time(&self, device: &Device, graph: &CudaGraph) -> Result<Duration> {
        device.bind()?;
        let record =
            |event: &CudaEvent| event.record(device.stream()).map_err(|e| fault("cannot record an event", e));
        let [start, end] = &self.marks;
        record(start)?;
        graph.launch().map_err(|e| fault("cannot launch the graph", e))?;
        record(end)?;
        device.synchronize()?;
        let ms = start.elapsed_ms(end).map_err(|e| fault("cannot read a time", e))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

/// Reproducible values between `-scale` and `scale`: what operands hold decides what a device draws and how
/// fast it clocks.
pub(super) fn noise(ty: ValueType, scale: f32) -> Tensor {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 2.0 * scale
    };
    Tensor::new(ty.shape, (0..ty.shape.len()).map(|_| next()).collect())
}
