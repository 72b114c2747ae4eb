//! From the bytes of a photo to what a task makes of it in one captured graph: copy in, pre-processing, the
//! network, post-processing, copies out; one wait. What post-processing writes to the host by itself (bit
//! masks: what they have of pixels) is not copied.

use super::executor::Executor;
use super::memory::{DeviceBuffer, Pinned};
use super::on_device::{DeviceSlice, Enqueued};
use super::post::{PostProcess, Residence};
use super::pre::{FORMATS, Preprocess};
use super::recording::{Bound, capture, copy_in, copy_out, copy_within, replay};
use super::runtime::Runtime;
use super::told::Told;
use crate::cuda::launch::{Arg, Launch};
use crate::error::{Error, Result};
use crate::image::preprocess::{Geometry, PreprocessConfig};
use crate::image::view::{ImageView, Memory};
use crate::plan::Operand;
use crate::tensor::DType;
use cudarc::driver::CudaGraph;
use rayon::prelude::*;

/// The ends of an executor for photos of one size and format. Several may share one executor, as runs do
/// not overlap.
pub struct Pipeline {
    image: Pinned,
    /// Results on the host; those that stay on the device are empty.
    on_host: Vec<Pinned>,
    graph: CudaGraph,
    /// The same without the copy in, for images on the device; made when there is one.
    pub(super) graph_after_copy: Option<CudaGraph>,
    /// Whether the image is on the device already.
    pub(super) is_copied: bool,
    pub(super) preprocess: Preprocess,
    /// Dropped before the memory that it works in.
    pub(super) enqueued: Option<Enqueued>,
    /// Results on the device; those that are written to the host are empty.
    on_device: Vec<DeviceBuffer>,
    pixels: DeviceBuffer,
    _workspace: DeviceBuffer,
    prepare: Bound,
    /// What the network is told beside the pixels, and where it reads that. It may lie under other values
    /// later in a run, so that each begins with a copy.
    told: Vec<(DeviceBuffer, u64)>,
    /// What follows the network where results stay on the device.
    post: Vec<Bound>,
    /// What follows it where they go to the host.
    post_to_host: Vec<Bound>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound, as every
// method does.
unsafe impl Send for Pipeline {}

impl Pipeline {
    /// Binds pre- and post-processing around `executor`, whose results of the names `reads` are the
    /// operands of `post`, and captures all of it. Its first input is the photo; the others, if there are
    /// any, hold what it is `told` in every run.
    ///
    /// # Errors
    /// [`Error::Memory`] if device or host have too little; [`Error::Cuda`] for sizes that the kernels do
    /// not take, and as the driver says; [`Error::Graph`] if the network has no such result, or another
    /// input that it is told nothing of.
    pub fn new(
        executor: &Executor,
        runtime: &Runtime,
        preprocess: &Preprocess,
        told: Told<'_>,
        post: &PostProcess,
        reads: &[&str],
    ) -> Result<Pipeline> {
        let (device, plan) = (executor.device(), executor.plan());
        let PostProcess { program, buffers } = post;
        let input = &plan.inputs[0].1;
        let prepare = preprocess.launch(input.ty.dtype).map_err(Error::Cuda)?;
        runtime.load(&program.launches.iter().chain([&prepare]).collect::<Vec<_>>())?;

        let image = Pinned::new(device, preprocess.bytes())?;
        let pixels = DeviceBuffer::new(device, image.len(), "the photo")?;
        let network_input = executor.address(input)?;
        let prepare = Bound::new(runtime, &prepare, |arg| {
            Ok(match arg {
                Arg::Input(0) => pixels.pointer(),
                Arg::Input(_) => pixels.pointer() + preprocess.chroma() as u64,
                _ => network_input,
            })
        })?;

        let told = plan.inputs[1..].iter().map(|input| {
            let unknown = || Error::Graph(format!("the network's input `{}` is told nothing", input.0));
            let values = bytemuck::cast_slice(told.of(input)?.ok_or_else(unknown)?);
            let buffer = DeviceBuffer::of(device, values, "what the network is told")?;
            Ok((buffer, executor.address(&input.1)?))
        });
        let told = told.collect::<Result<Vec<_>>>()?;

        let workspace = DeviceBuffer::new(device, program.workspace, "post-processing")?;
        let (mut on_device, mut on_host) = (Vec::new(), Vec::new());
        for buffer in buffers {
            let sizes = match buffer.residence {
                Residence::Copied => [buffer.bytes, buffer.bytes],
                Residence::Device => [buffer.bytes, 0],
                Residence::Host => [0, buffer.bytes],
            };
            on_device.push(DeviceBuffer::new(device, sizes[0], "results at the size of the photo")?);
            on_host.push(Pinned::new(device, sizes[1])?);
        }
        let read = |name: &&str| -> Result<u64> {
            let missing = || Error::Graph(format!("the plan has no output `{name}`"));
            let operand: &Operand = plan.output(name).ok_or_else(missing)?;
            executor.address(operand)
        };
        let operands = reads.iter().map(read).collect::<Result<Vec<u64>>>()?;
        let bind = |to_host: bool| -> Result<Vec<Bound>> {
            let address = |arg: &Arg| match arg {
                Arg::Input(i) => Ok(operands[*i]),
                Arg::Output(i) if buffers[*i].residence != Residence::Host => Ok(on_device[*i].pointer()),
                Arg::Output(i) if to_host => on_host[*i].on_device(),
                Arg::Workspace(offset) => Ok(workspace.pointer() + *offset as u64),
                Arg::Output(_) | Arg::Null | Arg::Struct(_) | Arg::Table(_) => Ok(0),
            };
            program.launches.iter().map(|launch| Bound::new(runtime, launch, address)).collect()
        };
        let (post, post_to_host) = (bind(false)?, bind(true)?);
        let graph = capture(device, || {
            copy_in(device, &image, pixels.pointer())?;
            record_before(executor, &prepare, &told)?;
            record_to_host(executor, &post_to_host, &on_device, &on_host)
        })?;
        Ok(Pipeline {
            image,
            on_host,
            graph,
            graph_after_copy: None,
            is_copied: false,
            preprocess: *preprocess,
            enqueued: None,
            on_device,
            pixels,
            _workspace: workspace,
            prepare,
            told,
            post,
            post_to_host,
        })
    }

    /// Copies a photo of the host to where [`Pipeline::run`] fetches it from, on the threads of the pool
    /// that it is called in.
    ///
    /// # Errors
    /// [`Error::Usage`] for another size or format than the pipeline's, and for an image in device memory.
    pub fn write(&mut self, image: &ImageView<'_>) -> Result<()> {
        self.check(image)?;
        self.is_copied = false;
        let pitch = self.preprocess.pitch;
        let bytes = self.image.as_mut_slice::<u8>();
        for ((plane, _), placed) in image.planes().zip(self.preprocess.planes()) {
            let Memory::Host(from) = plane.memory else {
                return Err(Error::usage("the image is in the memory of a GPU: its results stay there too"));
            };
            let to = &mut bytes[placed.offset..];
            copy_rows((from, plane.stride), (to, pitch), placed.rows, placed.row_bytes);
        }
        Ok(())
    }

    /// Refuses an image that the pipeline was not made for.
    pub(super) fn check(&self, image: &ImageView<'_>) -> Result<()> {
        let Preprocess { format, source, .. } = self.preprocess;
        if (image.size(), image.format()) == (source, format) {
            return Ok(());
        }
        let (found, other) = (image.size(), image.format());
        Err(Error::usage(format!(
            "the pipeline is for {format:?} images of {source:?}, this is {other:?} of {found:?}"
        )))
    }

    /// Runs everything: one graph launch, one wait.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says.
    pub fn run(&mut self, executor: &mut Executor) -> Result<()> {
        executor.join()?;
        let graph = self.graph_after_copy.as_ref().filter(|_| self.is_copied);
        replay(executor.device(), graph.unwrap_or(&self.graph))
    }

    /// Sends all between the copies in and out to the device's stream.
    pub(super) fn record(&self, executor: &Executor) -> Result<()> {
        let device = executor.device();
        record_before(executor, &self.prepare, &self.told)?;
        executor.record()?;
        self.post.iter().try_for_each(|launch| launch.launch(device))
    }

    /// Sends all after the copy in to the device's stream, with results that go to the host.
    pub(super) fn record_to_host(&self, executor: &Executor) -> Result<()> {
        let Pipeline { prepare, told, post_to_host, on_device, on_host, .. } = self;
        record_before(executor, prepare, told)?;
        record_to_host(executor, post_to_host, on_device, on_host)
    }

    /// Where the image goes on the device.
    pub(super) fn pixels(&self) -> u64 {
        self.pixels.pointer()
    }

    /// What the last run left in a buffer on the host; nothing if the buffer stays on the device.
    pub fn host<T: bytemuck::Pod>(&self, buffer: usize) -> &[T] {
        self.on_host[buffer].as_slice()
    }

    /// Where a buffer lies on the device; nowhere if it is written to the host.
    pub fn device(&self, buffer: usize) -> DeviceSlice {
        let buffer = &self.on_device[buffer];
        DeviceSlice { address: buffer.pointer(), bytes: buffer.len() }
    }
}

/// What makes the network's inputs.
fn record_before(executor: &Executor, prepare: &Bound, told: &[(DeviceBuffer, u64)]) -> Result<()> {
    let device = executor.device();
    prepare.launch(device)?;
    told.iter().try_for_each(|(from, to)| copy_within(device, from, *to))
}

fn record_to_host(
    executor: &Executor,
    post: &[Bound],
    on_device: &[DeviceBuffer],
    on_host: &[Pinned],
) -> Result<()> {
    let device = executor.device();
    executor.record()?;
    post.iter().try_for_each(|launch| launch.launch(device))?;
    // What has both ends is copied from one to the other.
    let mut both = on_device.iter().zip(on_host).filter(|(from, to)| from.len() > 0 && to.len() > 0);
    both.try_for_each(|(from, to)| copy_out(device, from.pointer(), to))
}

/// Pre-processing of photos of every format into a network's input of element type `input`. Which kernels
/// these are does not depend on the sizes of photos.
///
/// # Errors
/// As [`Pipeline::new`] for sizes that the kernels do not take.
pub fn preprocessing(input: DType, geometry: &Geometry, config: &PreprocessConfig) -> Result<Vec<Launch>> {
    let launch = |format| {
        let preprocess = Preprocess::new(format, geometry.original, geometry, config);
        preprocess.launch(input).map_err(Error::Cuda)
    };
    FORMATS.into_iter().map(launch).collect()
}

/// Copies rows, each so many bytes after the one before at either end, on the threads of the pool that it
/// is called in: one thread copies a large photo more slowly than the bus takes it.
pub fn copy_rows(
    (from, from_stride): (&[u8], usize),
    (to, to_stride): (&mut [u8], usize),
    rows: usize,
    row_bytes: usize,
) {
    const AT_ONCE: usize = 256 << 10;
    if from_stride == row_bytes && to_stride == row_bytes {
        let bytes = rows * row_bytes;
        let parts = to[..bytes].par_chunks_mut(AT_ONCE).zip(from[..bytes].par_chunks(AT_ONCE));
        return parts.for_each(|(to, from)| to.copy_from_slice(from));
    }
    let at_once = (AT_ONCE / to_stride.max(1)).max(1);
    let bytes = to.len().min(rows * to_stride);
    to[..bytes].par_chunks_mut(at_once * to_stride).enumerate().for_each(|(part, to)| {
        for (row, to) in (part * at_once..rows).zip(to.chunks_mut(to_stride)) {
            to[..row_bytes].copy_from_slice(&from[row * from_stride..][..row_bytes]);
        }
    });
}
