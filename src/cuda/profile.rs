//! How long the network of an [`Executor`] takes on the device, whole and step by step.
//!
//! Both are times of captured graphs ([`Stopwatch`]), as the network runs in use: a kernel follows the one
//! before it without the host. Inputs hold noise of the spread of a normalised photo, or what the network
//! is told of one, copied in before each time is taken and no part of it.

use super::executor::Executor;
use super::memory::DeviceBuffer;
use super::pack::pack;
use super::recording::{capture, copy_within};
use super::stopwatch::{Stopwatch, noise};
use super::told::Told;
use super::tune::REPEATS;
use crate::cuda::launch::Packing;
use crate::error::Result;
use crate::plan::Operand;
use cudarc::driver::{CudaGraph, sys};
use std::time::Duration;

/// What the inputs of an executor hold, as they are stored, and where it goes.
struct Inputs(Vec<(DeviceBuffer, sys::CUdeviceptr)>);

impl Inputs {
    fn new(executor: &Executor, told: Told<'_>) -> Result<Inputs> {
        let device = executor.device();
        let input = |input: &(String, Operand)| {
            let (name, operand) = input;
            let bytes = match told.of(input)? {
                Some(values) => bytemuck::cast_slice(values).to_vec(),
                None => pack(&noise(operand.ty, 2.0), Packing::plain(operand.ty.dtype)),
            };
            Ok((DeviceBuffer::of(device, &bytes, name)?, executor.address(operand)?))
        };
        executor.plan().inputs.iter().map(input).collect::<Result<_>>().map(Inputs)
    }

    /// Sends it to the inputs, whose memory later steps of a run may have used.
    fn fill(&self, executor: &Executor) -> Result<()> {
        self.0.iter().try_for_each(|(from, to)| copy_within(executor.device(), from, *to))
    }
}

impl Executor {
    /// The time of all steps as one graph, without copies from and to the host, in each of `runs` runs
    /// after one that is not counted.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) as the driver says.
    pub fn time_network(&mut self, runs: usize, told: Told<'_>) -> Result<Vec<Duration>> {
        self.join()?;
        let (inputs, stopwatch) = (Inputs::new(self, told)?, Stopwatch::new(self.device())?);
        let graph = capture(self.device(), || self.record())?;
        let time = || {
            inputs.fill(self)?;
            stopwatch.time(self.device(), &graph)
        };
        time()?;
        (0..runs).map(|_| time()).collect()
    }

    /// The time of each step in each of `runs` runs after one that is not counted, by its number.
    ///
    /// A step is repeated [`REPEATS`] times in a graph of its own and its time is a repeat's: a step takes
    /// microseconds, and so do the launch and the events of one that is timed by itself. Its operands,
    /// filters among them, are in L2 where they fit there beside its results; in the network filters are
    /// not, so the sum over the steps can be less than the network's time.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) as the driver says.
    pub fn time_steps(
        &mut self,
        runs: usize,
        told: Told<'_>,
        mut report: impl FnMut(usize, Duration),
    ) -> Result<()> {
        self.join()?;
        let (inputs, stopwatch) = (Inputs::new(self, told)?, Stopwatch::new(self.device())?);
        let repeated =
            |step: usize| capture(self.device(), || (0..REPEATS).try_for_each(|_| self.record_step(step)));
        let steps = self.plan().steps.len();
        let graphs: Vec<CudaGraph> = (0..steps).map(repeated).collect::<Result<_>>()?;
        for run in 0..=runs {
            inputs.fill(self)?;
            // In order: each step reads what the ones before it have just written.
            for (step, graph) in graphs.iter().enumerate() {
                let time = stopwatch.time(self.device(), graph)? / REPEATS as u32;
                if run > 0 {
                    report(step, time);
                }
            }
        }
        Ok(())
    }
}
