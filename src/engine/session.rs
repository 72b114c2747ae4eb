//! A thread's way through a model: plans, memory, a stream and threads of its own.

use super::backend::Backend;
use super::deadline::{Frame, Limit, Pace};
use super::network::Network;
use super::recent::Recent;
use super::{Model, Segmentation};
use crate::cpu::Pool;
use crate::error::{Error, Result};
use crate::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use crate::image::view::ImageView;
use crate::model::{Normalization, Tap, TapMode, Task};
use crate::plan::Plan;
use crate::task::{AnyTask, PostprocessOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most input sizes a session keeps plans for, and most photo sizes it keeps tables for; what was unused for
/// longest is dropped.
pub(super) const MAX_PLANS: usize = 4;

/// What size photos have in the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputSize {
    /// Resized to fit into the model's own size.
    #[default]
    OfModel,
    /// Resized to fit into (short side, long side) pixels.
    Within(usize, usize),
    /// As they are.
    AsTheyAre,
}

/// What size masks and maps have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskSize {
    /// That of the photo.
    #[default]
    OfPhoto,
    /// That which the photo has in the network, after the resize and without its padding: what comes out if
    /// the photo is resized beforehand. Less work where the photo is larger.
    OfNetwork,
}

/// What a session gives, and with what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionOptions {
    /// The kind of result; by default the model's own. A panoptic model gives instances too; an instance
    /// model gives nothing else.
    pub task: Option<Task>,
    /// Number of worker threads; 0, the default, means one per core, or one for each of `cpus`.
    pub threads: usize,
    /// The only CPUs that those threads run on, by the system's numbers; empty, the default: any. On Linux
    /// alone.
    pub cpus: Vec<usize>,
    /// No worker threads: the thread that calls the session works, alone ([`Pool::on_caller`] says what
    /// remains of that). It may be another one each time.
    pub on_caller: bool,
    /// What size photos have in the network.
    pub size: InputSize,
    /// What size masks and maps have, boxes and areas with them.
    pub masks: MaskSize,
    /// What results are to hold.
    pub results: PostprocessOptions,
    /// Stages of the network that are run; `None`, the default, is all that the model has. Every stage gives
    /// finished masks, and a later one better ones.
    pub stages: Option<usize>,
    /// See [`Session::set_deadline`].
    pub deadline: Option<Duration>,
}

/// A model at work: it belongs to one camera or thread. It plans the network when it first sees an input size
/// and keeps the plans of the last few sizes; after that, [`Session::segment_into`] allocates nothing.
///
/// A session is `Send`: move it to the thread that serves. Sessions of one [`Model`] may work at once, and
/// give the bits that each would give alone. What a program that uses the same GPU besides must not do while
/// a session plans: [`cuda`](crate::cuda).
pub struct Session {
    model: Arc<Model>,
    pub(super) backend: Backend,
    task: Task,
    masks: MaskSize,
    options: PostprocessOptions,
    pub(super) pool: Pool,
    pub(super) preprocessor: Preprocessor,
    networks: Recent<Extent, Network>,
    adapters: Recent<((usize, usize), Geometry), Adapter<AnyTask>>,
    timings: Timings,
    /// Most stages that are run.
    stages: usize,
    deadline: Option<Duration>,
    paces: Recent<(usize, usize), Pace>,
}

/// What a network is planned for.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Extent {
    pub size: (usize, usize),
    pub stages: usize,
    /// Whether a run may end after any stage.
    pub cut: bool,
}

/// What a frame goes through.
pub(super) struct Ready<'a> {
    pub network: &'a mut Network,
    pub adapter: &'a mut Adapter<AnyTask>,
    pub pool: &'a Pool,
    extent: Extent,
    limit: Option<Limit<'a>>,
}

/// What lies between photos of one size and the network. Photos of many sizes share an input size, so these
/// are not part of a [`Network`].
pub(super) struct Adapter<P> {
    pub geometry: Geometry,
    pub preprocessor: Preprocessor,
    pub task: P,
}

/// Wall-clock time of the parts of one call. A GPU does all of it in one go: there `network` is the whole of
/// its work, `pre` and `post` are the host's before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Resize, normalise, pad.
    pub pre: Duration,
    /// The network.
    pub network: Duration,
    /// Masks or map at the size of the photo.
    pub post: Duration,
}

impl Timings {
    /// Sum of the parts.
    pub fn total(&self) -> Duration {
        self.pre + self.network + self.post
    }
}

impl Session {
    /// A session of `model`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a size without pixels, a filter's share beyond 0 to 1, a
    /// task the model cannot do, stages it does not have or CPUs that are not there;
    /// [`Error::Cuda`] as the driver says.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Session> {
        let config = model.config();
        let task = options.task.unwrap_or(config.task);
        // Whatever the task cannot do is told now, not at the first photo.
        AnyTask::of(task, config, &options.results)?;
        let size = match options.size {
            InputSize::OfModel => Some((config.input.size[0], config.input.size[1])),
            InputSize::Within(short, long) => Some((short, long)),
            InputSize::AsTheyAre => None,
        };
        let Normalization { mean, std } = config.input.normalization;
        let preprocessor =
            Preprocessor::new(PreprocessConfig { size, mean, std, divisor: config.size_divisor() })?;
        let has = config.head.stages;
        let stages = options.stages.unwrap_or(has);
        if options.stages.is_some() && !(1..=has).contains(&stages) {
            return Err(Error::usage(format!("stages is {stages}, and {} has {has}", config.name)));
        }
        let pool = match (options.on_caller, &*options.cpus) {
            (true, []) if options.threads <= 1 => Pool::on_caller(),
            (true, _) => {
                let reason =
                    "a session that works in the calling thread has neither threads nor CPUs of its own";
                return Err(Error::usage(reason));
            }
            (false, []) => Pool::new(options.threads)?,
            (false, cpus) => Pool::on_cpus(options.threads, cpus)?,
        };
        let backend = model.backend.fork(pool.threads())?;
        Ok(Session {
            model,
            backend,
            task,
            masks: options.masks,
            options: options.results,
            pool,
            preprocessor,
            // Of a size, every number of stages may be planned.
            networks: Recent::new(MAX_PLANS * stages.max(1)),
            adapters: Recent::new(MAX_PLANS),
            timings: Timings::default(),
            stages,
            deadline: options.deadline,
            paces: Recent::new(MAX_PLANS),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The kind of result this session gives.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Segments one image: an [`RgbImage`](crate::image::RgbImage), or a view of pixels in any
    /// [format](crate::image::view::PixelFormat) on the host, or in the memory of the GPU that computes.
    /// There it must be whole already: no stream of others is waited for.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image without pixels, and for one in device memory on the
    /// CPU or that is not the GPU's as far as the driver tells; as [`Session::plan`] and the weights at a new
    /// size.
    pub fn segment<'a>(&mut self, image: impl Into<ImageView<'a>>) -> Result<Segmentation> {
        let mut result = Segmentation::default();
        self.segment_into(image, &mut result)?;
        Ok(result)
    }

    /// Segments one image into an existing result, reusing its memory: from the second image of a size on,
    /// nothing is allocated, also if up to four sizes take turns.
    ///
    /// # Errors
    /// As [`Session::segment`]. The result then holds nothing of use.
    pub fn segment_into<'a>(
        &mut self,
        image: impl Into<ImageView<'a>>,
        result: &mut Segmentation,
    ) -> Result<()> {
        let image = image.into();
        let geometry = self.geometry(&image)?;
        self.run(&image, &geometry, result)
    }

    /// As [`Session::segment`], as if the image had been resized from one of `original` (height, width):
    /// masks come out at that size. For comparison with reference data that starts after the resize.
    ///
    /// # Errors
    /// As [`Session::segment`].
    pub fn segment_resized<'a>(
        &mut self,
        image: impl Into<ImageView<'a>>,
        original: (usize, usize),
    ) -> Result<Segmentation> {
        let image = image.into();
        let geometry = Geometry { original, ..self.geometry(&image)? };
        let mut result = Segmentation::default();
        self.run(&image, &geometry, &mut result)?;
        Ok(result)
    }

    /// Times of the last call.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// From the next image on, runs as many stages of the network as there is time for, so that masks are in
    /// the caller's memory so long after the call; [`Segmentation::stages`] says how many these were. `None`
    /// runs all.
    ///
    /// The first stage is always run, however long it takes: a deadline that it does not meet is missed. On
    /// the CPU another stage is begun if it and the masks, by the times of the last frames, will be done in
    /// time; on a GPU the number is chosen before the launch, and each has a graph and memory of its own. The
    /// first frames of a size, of which no time is known, may be late, and so may a frame in some hundreds
    /// that tries whether a stage that was too slow fits by now. Frames on a device
    /// ([`Session::segment_on_device`]) wait for nothing, and run all stages.
    ///
    /// The network is planned anew where a deadline is set for the first time, or taken back.
    pub fn set_deadline(&mut self, deadline: Option<Duration>) {
        self.deadline = deadline;
    }

    /// Plans the network for an image size and loads its weights, so that the first image is as fast as the
    /// others. `height` and `width` are the image's, before any resize.
    ///
    /// # Errors
    /// As [`Session::segment`].
    pub fn warm_up(&mut self, height: usize, width: usize) -> Result<()> {
        let geometry = self.preprocessor.geometry(height, width);
        for extent in self.extents(geometry.padded) {
            self.network(extent)?;
        }
        Ok(())
    }

    /// Plans the network for one input size; both sides multiples of
    /// [`Config::size_divisor`](crate::model::Config::size_divisor).
    ///
    /// # Errors
    /// As [`build`](crate::model::build).
    pub fn plan(&self, size: (usize, usize), taps: TapMode) -> Result<(Plan, Vec<Tap>)> {
        let (graph, taps) = self.model.graph(size, taps, self.stages)?;
        Ok((self.backend.plan(&graph)?, taps))
    }

    /// Runs the network alone `runs` times at an input size, and gives for each step of the plan its time in
    /// every run; on a GPU that of one of many repeats in a graph of its own
    /// ([`cuda::Executor::time_steps`](crate::cuda::Executor::time_steps)).
    ///
    /// # Errors
    /// As [`Session::plan`].
    pub fn profile(&mut self, size: (usize, usize), runs: usize) -> Result<(Plan, Vec<Vec<Duration>>)> {
        let extent = Extent { size, stages: self.stages, cut: false };
        let (network, pool) = self.network(extent)?;
        let plan = network.plan();
        let mut times = vec![Vec::with_capacity(runs); plan.steps.len()];
        pool.run(|| network.time_steps(runs, |step, time| times[step].push(time)))?;
        Ok((plan, times))
    }

    /// The time of the network alone in each of `runs` runs at an input size: on a GPU the device's time of
    /// one graph, without copies and without pre- and post-processing; on the CPU wall-clock time.
    ///
    /// # Errors
    /// As [`Session::plan`].
    pub fn time_network(&mut self, size: (usize, usize), runs: usize) -> Result<Vec<Duration>> {
        let extent = Extent { size, stages: self.stages, cut: false };
        let (network, pool) = self.network(extent)?;
        pool.run(|| network.time(runs))
    }

    pub(super) fn geometry(&self, image: &ImageView<'_>) -> Result<Geometry> {
        let (height, width) = image.size();
        image.format().check((height, width))?;
        let geometry = self.preprocessor.geometry(height, width);
        Ok(match self.masks {
            MaskSize::OfPhoto => geometry,
            MaskSize::OfNetwork => Geometry { original: geometry.resized, ..geometry },
        })
    }

    fn run(&mut self, image: &ImageView<'_>, geometry: &Geometry, result: &mut Segmentation) -> Result<()> {
        let start = Instant::now();
        let Ready { network, adapter, pool, extent, limit } = self.ready(image, geometry, self.deadline)?;
        result.size = geometry.original;
        let mut frame = Frame::begin(start, limit);
        pool.run(|| -> Result<()> {
            network.prepare(adapter, image)?;
            frame.prepared();
            let runs = network.run(&mut frame)?;
            result.stages = if extent.cut { runs } else { extent.stages };
            let early = (result.stages < extent.stages).then_some(result.stages);
            network.finish(adapter, &mut result.found, early)?;
            frame.finished();
            Ok(())
        })?;
        self.timings = frame.timings;
        Ok(())
    }

    /// The networks that frames of a size may run in.
    fn extents(&self, size: (usize, usize)) -> Vec<Extent> {
        let all = Extent { size, stages: self.stages, cut: false };
        match (self.deadline, self.backend.is_gpu()) {
            (None, _) => vec![all],
            (Some(_), false) => vec![Extent { cut: self.stages > 1, ..all }],
            (Some(_), true) => (1..=self.stages.max(1))
                .map(|stages| Extent { stages: stages.min(self.stages), ..all })
                .collect(),
        }
    }

    fn network(&mut self, extent: Extent) -> Result<(&mut Network, &Pool)> {
        self.pool.admit()?;
        let Session { model, backend, networks, pool, .. } = self;
        Ok((networks.get(extent, || network(model, backend, pool, extent))?, pool))
    }

    /// What photos of one size go through, made where it is not there: as many stages as a deadline leaves
    /// time for, else all.
    pub(super) fn ready(
        &mut self,
        image: &ImageView<'_>,
        geometry: &Geometry,
        deadline: Option<Duration>,
    ) -> Result<Ready<'_>> {
        self.pool.admit()?;
        let Session { model, backend, pool, networks, adapters, preprocessor, task, options, .. } = self;
        let mut extent = Extent { size: geometry.padded, stages: self.stages, cut: false };
        let mut limit = None;
        if let Some(deadline) = deadline {
            let pace = self.paces.get(geometry.padded, || Ok(Pace::new(extent.stages)))?;
            #[cfg(feature = "cuda")]
            if backend.is_gpu() {
                extent.stages = pace.affordable(deadline).min(extent.stages);
            }
            extent.cut = !backend.is_gpu() && extent.stages > 1;
            let first = if backend.is_gpu() { extent.stages.saturating_sub(1) } else { 0 };
            limit = Some(Limit { deadline, pace, first });
        }
        let network = networks.get(extent, || network(model, backend, pool, extent))?;
        let adapter = adapters.get((image.size(), *geometry), || {
            Ok(Adapter {
                geometry: *geometry,
                preprocessor: Preprocessor::new(*preprocessor.config())?,
                task: AnyTask::of(*task, model.config(), options)?,
            })
        })?;
        Ok(Ready { network, adapter, pool, extent, limit })
    }
}

/// The network of a model at an input size.
fn network(model: &Model, backend: &Backend, pool: &Pool, extent: Extent) -> Result<Network> {
    let start = Instant::now();
    model.check_size(extent.size)?;
    let taps = if extent.cut { TapMode::Stages } else { TapMode::Off };
    let (graph, _) = model.graph(extent.size, taps, extent.stages)?;
    let network = Network::new(backend, &graph, pool)?;
    let (height, width) = extent.size;
    log::debug!("planned {} for {height}x{width} in {:.1?}", model.config().name, start.elapsed());
    Ok(network)
}
