//! From the bytes of a photo to masks or a panoptic assignment in one captured graph: copy in, pre-processing, the network,
//! post-processing, copies out; one wait.

use super::executor::Executor;
use super::memory::{DeviceBuffer, Pinned};
use super::on_device::{DeviceResults, DeviceSlice, Enqueued};
use super::post::{self, Extent, MaskLogits, Ranking};
use super::pre::{PixelFormat, Preprocess};
use super::recording::{Bound, capture, copy_in, copy_out, replay};
use super::runtime::Runtime;
use crate::error::{Error, Result};
use crate::plan::launch::{Arg, Program, Target};
use cudarc::driver::CudaGraph;

/// What a pipeline does around the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends {
    /// From the photo to the network input.
    pub preprocess: Preprocess,
    /// Height and width of results: the photo's, or what it was before someone else resized it.
    pub original: (usize, usize),
    /// Results at the size of the photo.
    pub results: Results,
}

/// What comes out of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Results {
    /// The best instances and their bit masks.
    Instances(Ranking),
    /// An object for every pixel; of `proposals` things and one for each of `stuff` classes.
    Assignment {
        /// Objects that are things.
        proposals: usize,
        /// Thing classes.
        things: usize,
        /// Stuff classes.
        stuff: usize,
    },
}

/// The ends of an executor for photos of one size. Several may share one executor, as runs do not overlap.
pub struct Pipeline {
    image: Pinned,
    /// The results of post-processing, in the order of its program, but for those that stay on the device.
    results: Vec<Pinned>,
    logits: MaskLogits,
    graph: CudaGraph,
    pub(super) ends: Ends,
    /// Dropped before the memory that it works in.
    pub(super) enqueued: Option<Enqueued>,
    /// Results, then the image's pixels, then the workspace.
    memory: Vec<DeviceBuffer>,
    /// What follows the network, then what goes before it.
    bound: Vec<Bound>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound, as every method does.
unsafe impl Send for Pipeline {}

impl Pipeline {
    /// Binds pre- and post-processing around `executor`, whose results `cls_score` and `mask_preds` are those of these
    /// positions, and captures all of it.
    ///
    /// # Errors
    /// [`Error::Cuda`] for sizes that the kernels do not take, memory that does not suffice, and as the driver says.
    pub fn new(
        executor: &Executor,
        runtime: &Runtime,
        ends: &Ends,
        [cls_score, mask_preds]: [usize; 2],
    ) -> Result<Pipeline> {
        let device = executor.device();
        let plan = executor.plan();
        let (input, scores, masks) =
            (&plan.inputs[0].1, &plan.outputs[cls_score].1, &plan.outputs[mask_preds].1);
        let Ends { preprocess, original, results } = ends;
        let shape = masks.ty.shape;
        let logits = MaskLogits {
            objects: shape[1],
            size: (shape[2], shape[3]),
            dtype: masks.ty.dtype,
            padded: preprocess.padded,
            resized: preprocess.resized,
            original: *original,
        };
        let PostProcess { program, sizes, copied } = PostProcess::new(&logits, results, &runtime.target())?;
        let prepare = preprocess.launch(input.ty.dtype).map_err(Error::Cuda)?;
        runtime.load(&program.launches.iter().chain([&prepare]).collect::<Vec<_>>())?;

        let (rows, chroma_rows) = match preprocess.format {
            PixelFormat::Nv12(_) => (preprocess.source.0, preprocess.source.0.div_ceil(2)),
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => (preprocess.source.0, 0),
        };
        let image = Pinned::new(device, preprocess.pitch * (rows + chroma_rows))?;
        let pixels = DeviceBuffer::new(device, image.len(), "the photo")?;
        let chroma = pixels.pointer() + (preprocess.pitch * rows) as u64;
        let network_input = executor.address(input)?;
        let prepare = Bound::new(runtime, &prepare, |arg| {
            Ok(match arg {
                Arg::Input(0) => pixels.pointer(),
                Arg::Input(_) => chroma,
                _ => network_input,
            })
        })?;

        let workspace = DeviceBuffer::new(device, program.workspace, "post-processing")?;
        let on_device = sizes
            .iter()
            .map(|&bytes| DeviceBuffer::new(device, bytes, "results at the size of the photo"))
            .collect::<Result<Vec<_>>>()?;
        let on_host =
            sizes[..copied].iter().map(|&bytes| Pinned::new(device, bytes)).collect::<Result<Vec<_>>>()?;
        let (mask_logits, score_logits) = (executor.address(masks)?, executor.address(scores)?);
        let mut bound = Vec::new();
        for launch in &program.launches {
            bound.push(Bound::new(runtime, launch, |arg| {
                Ok(match arg {
                    Arg::Input(0) => mask_logits,
                    Arg::Input(_) => score_logits,
                    Arg::Output(i) => on_device[*i].pointer(),
                    Arg::Workspace(offset) => workspace.pointer() + *offset as u64,
                    Arg::Null | Arg::Struct(_) => 0,
                })
            })?);
        }
        let graph = capture(device, || {
            copy_in(device, &image, pixels.pointer())?;
            prepare.launch(device)?;
            executor.record()?;
            bound.iter().try_for_each(|launch| launch.launch(device))?;
            on_device.iter().zip(&on_host).try_for_each(|(from, to)| copy_out(device, from.pointer(), to))
        })?;
        bound.push(prepare);
        let mut memory = on_device;
        memory.extend([pixels, workspace]);
        Ok(Pipeline { image, results: on_host, logits, graph, ends: *ends, enqueued: None, memory, bound })
    }

    /// The photo's bytes, to be filled before every [`Pipeline::run`]: as many as rows and pitch say.
    pub fn image_mut(&mut self) -> &mut [u8] {
        self.image.as_mut_slice()
    }

    /// Runs everything: one graph launch, one wait.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says.
    pub fn run(&mut self, executor: &mut Executor) -> Result<()> {
        executor.settle()?;
        replay(executor.device(), &self.graph)
    }

    /// Sends all between the copies in and out to the device's stream.
    pub(super) fn record(&self, executor: &Executor) -> Result<()> {
        let device = executor.device();
        let (prepare, post) =
            self.bound.split_last().ok_or_else(|| Error::Cuda("an empty pipeline".into()))?;
        prepare.launch(device)?;
        executor.record()?;
        post.iter().try_for_each(|launch| launch.launch(device))
    }

    /// Where the image goes on the device.
    pub(super) fn pixels(&self) -> u64 {
        self.memory[self.memory.len() - 2].pointer()
    }

    /// Where the results lie on the device.
    pub(super) fn on_device(&self) -> DeviceResults {
        let slice = |index: usize| {
            let buffer = &self.memory[index];
            DeviceSlice { address: buffer.pointer(), bytes: buffer.len() }
        };
        match self.ends.results {
            Results::Instances(_) => {
                let [masks, scores, pairs, places] = [0, 2, 3, 4].map(slice);
                DeviceResults::Instances {
                    masks,
                    mask_bytes: self.logits.mask_bytes(),
                    scores,
                    pairs,
                    places,
                }
            }
            Results::Assignment { .. } => {
                let [objects, areas, scores, classes] = [0, 1, 2, 3].map(slice);
                DeviceResults::Assignment { objects, areas, scores, classes }
            }
        }
    }

    /// Of [`Results::Instances`]: by descending score, the scores, `object * C + class` and the place of the mask
    /// ([`u32::MAX`]: dropped, as are all after it).
    pub fn ranking(&self) -> (&[f32], &[i32], &[u32]) {
        (self.results[2].as_slice(), self.results[3].as_slice(), self.results[4].as_slice())
    }

    /// Of [`Results::Instances`]: the bit masks by place, and the bytes from one to the next.
    pub fn masks(&self) -> (&[u8], usize) {
        (self.results[0].as_slice(), self.logits.mask_bytes())
    }

    /// Of [`Results::Instances`]: what each band of the mask at each place covers, `[places, bands]`; the parts of a mask are
    /// put together by [`Extent::join`].
    pub fn extents(&self) -> &[Extent] {
        self.results[1].as_slice()
    }

    /// Of [`Results::Assignment`]: the object of each pixel.
    pub fn assignment(&self) -> &[u16] {
        self.results[0].as_slice()
    }

    /// Of [`Results::Assignment`]: the pixels that each object wins, and those of its own mask.
    pub fn areas(&self) -> (&[u32], &[u32]) {
        self.results[1].as_slice().split_at(self.logits.objects)
    }

    /// Of [`Results::Assignment`]: score and class of each object.
    pub fn classified(&self) -> (&[f32], &[u32]) {
        (self.results[2].as_slice(), self.results[3].as_slice())
    }
}

/// What follows the network.
struct PostProcess {
    program: Program,
    /// Bytes of each result.
    sizes: Vec<usize>,
    /// The first so many results go to the host; the others are between its launches.
    copied: usize,
}

impl PostProcess {
    fn new(logits: &MaskLogits, results: &Results, target: &Target) -> Result<Self> {
        let (n, pixels) = (logits.objects, logits.original.0 * logits.original.1);
        let (program, sizes, copied) = match results {
            Results::Instances(ranking) => {
                let k = ranking.instances.min(n * ranking.classes);
                let extents = logits.bands() * size_of::<Extent>();
                let sizes = vec![k * logits.mask_bytes(), k * extents, 4 * k, 4 * k, 4 * k, 4 * k];
                // The last: the object of each place, which the launch of the masks reads.
                (post::instances(logits, ranking, target), sizes, 5)
            }
            &Results::Assignment { proposals, things, stuff } => {
                (post::panoptic(logits, proposals, things, stuff), vec![2 * pixels, 8 * n, 4 * n, 4 * n], 4)
            }
        };
        Ok(PostProcess { program: program.map_err(Error::Cuda)?, sizes, copied })
    }
}
