//! What every run asks of a device, a part at a time, so that a fault is found by name before a model meets
//! it: one of our kernels over a few numbers, whose results are known.

use super::memory::{DeviceBuffer, Pinned};
use super::ops;
use super::recording::{Bound, capture, copy_in, copy_out, replay};
use super::runtime::Runtime;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch};
use crate::error::{Error, Result};
use crate::ops::activation::Activation;
use crate::ops::{Activate, Op, ValueType};
use crate::plan::Site;
use cudarc::driver::sys;

/// Numbers of a run.
const COUNT: usize = 4096;

/// A kernel, loaded, with its operands in device memory: `y = max(x, 0)`.
pub struct Probe<'a> {
    runtime: &'a Runtime,
    launch: Launch,
    x: DeviceBuffer,
    y: DeviceBuffer,
}

/// Element `i` of the operand of run `run`.
fn number(run: usize, i: usize) -> f32 {
    (i * (run + 7) % 1000) as f32 - 500.0
}

/// The kernel of every probe of devices like this one, which does not depend on the precision.
///
/// # Errors
/// [`Error::Cuda`] if the device cannot run it.
pub fn launch(target: &Target) -> Result<Launch> {
    let op = Op::from(Activate { activation: Activation::Relu });
    let types = [ValueType::rows([1, COUNT])];
    let site = Site { op: &op, inputs: &types, constant: &[false], outputs: &types };
    let program = ops::program(&site, target).map_err(Error::Cuda)?;
    let [launch] = <[Launch; 1]>::try_from(program.launches)
        .map_err(|launches| Error::Graph(format!("{} launches of an activation", launches.len())))?;
    Ok(launch)
}

impl<'a> Probe<'a> {
    /// Compiles the kernel, unless the cache has it, and loads it.
    ///
    /// # Errors
    /// [`Error::Cuda`] if it does not compile, is not loaded, or there is no memory.
    pub fn new(runtime: &'a Runtime) -> Result<Probe<'a>> {
        let launch = launch(&runtime.target())?;
        runtime.load(&[&launch])?;
        let device = runtime.device();
        let buffer = || DeviceBuffer::new(device, 4 * COUNT, "4096 numbers");
        Ok(Probe { runtime, launch, x: buffer()?, y: buffer()? })
    }

    /// The kernel between these addresses.
    fn bound(&self, x: sys::CUdeviceptr, y: sys::CUdeviceptr) -> Result<Bound> {
        Bound::new(self.runtime, &self.launch, |arg| Ok(if matches!(arg, Arg::Input(_)) { x } else { y }))
    }

    fn pinned(&self, run: usize) -> Result<Pinned> {
        let mut pinned = Pinned::new(self.runtime.device(), 4 * COUNT)?;
        let numbers = pinned.as_mut_slice::<f32>();
        (0..COUNT).for_each(|i| numbers[i] = number(run, i));
        Ok(pinned)
    }

    fn check(&self, found: &[f32], run: usize) -> Result<()> {
        let wrong = (0..COUNT).find(|&i| found[i] != number(run, i).max(0.0));
        match wrong {
            None => Ok(()),
            Some(i) => Err(Error::Cuda(format!(
                "{} computes wrongly: result {i} is {}, not {}",
                self.runtime.device().name(),
                found[i],
                number(run, i).max(0.0)
            ))),
        }
    }

    /// One launch from device memory to device memory, with copies in and out.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says, or for a wrong result.
    pub fn launch(&self) -> Result<()> {
        let device = self.runtime.device();
        let pinned = self.pinned(0)?;
        device.bind()?;
        copy_in(device, &pinned, self.x.pointer())?;
        self.bound(self.x.pointer(), self.y.pointer())?.launch(device)?;
        copy_out(device, self.y.pointer(), &pinned)?;
        device.synchronize()?;
        self.check(pinned.as_slice(), 0)
    }

    /// One launch whose kernel writes to page-locked memory of the host, as post-processing writes masks.
    ///
    /// # Errors
    /// As [`Probe::launch`].
    pub fn pinned_write(&self) -> Result<()> {
        let device = self.runtime.device();
        let (from, to) = (self.pinned(1)?, Pinned::new(device, 4 * COUNT)?);
        device.bind()?;
        copy_in(device, &from, self.x.pointer())?;
        self.bound(self.x.pointer(), to.on_device()?)?.launch(device)?;
        device.synchronize()?;
        self.check(to.as_slice(), 1)
    }

    /// Copies and launch captured as a graph, which is run twice over different numbers.
    ///
    /// # Errors
    /// As [`Probe::launch`].
    pub fn graph(&self) -> Result<()> {
        let device = self.runtime.device();
        let (mut from, to) = (self.pinned(2)?, Pinned::new(device, 4 * COUNT)?);
        let bound = self.bound(self.x.pointer(), self.y.pointer())?;
        let graph = capture(device, || {
            copy_in(device, &from, self.x.pointer())?;
            bound.launch(device)?;
            copy_out(device, self.y.pointer(), &to)
        })?;
        for run in [2, 3] {
            from.as_mut_slice::<f32>().copy_from_slice(self.pinned(run)?.as_slice());
            replay(device, &graph)?;
            self.check(to.as_slice(), run)?;
        }
        Ok(())
    }
}
