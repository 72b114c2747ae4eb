//! The public API: weights in, photos in, masks out.

mod backend;
mod builder;
mod classes;
pub mod convert;
mod gpu;
mod kernels;
mod on_device;
mod segmentation;
pub mod source;
mod training;
mod tuning;

pub use backend::Device;
pub use builder::EngineBuilder;
pub use classes::{class_list, known_names, knows_ids};
pub use segmentation::Segmentation;
pub use source::WeightSource;
pub use training::{TRAINING_PRECISION, training_executor};
pub use tuning::Tuning;

use crate::cpu::Pool;
use crate::cuda::Runtime;
use crate::cuda::gpu::Target;
use crate::cuda::pipeline::Results;
use crate::cuda::post::Ranking;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::graph::passes::optimize;
use crate::image::HeadOutput;
use crate::image::classes::Class;
use crate::image::instance::{FilterMemory, InstanceConfig, InstanceFilter, InstancePostprocessor};
use crate::image::panoptic::{PanopticConfig, PanopticPostprocessor};
use crate::image::preprocess::{Geometry, Preprocessor};
use crate::model::{CLS_SCORE, Config, MASK_PREDS, Tap, TapLayout, TapMode, Task, build};
use crate::plan::Plan;
use crate::tensor::{Shape, Tensor};
use ::image::RgbImage;
use backend::{Backend, Executor};
use gpu::Setting;
use std::time::{Duration, Instant};

/// Most input sizes an engine keeps plans for, and most photo sizes it keeps tables for; what was unused for
/// longest is dropped.
const MAX_PLANS: usize = 4;

/// A loaded model, ready to segment images.
///
/// An engine is `Send`: move it to the thread that serves. It plans the network when it first sees an input
/// size and keeps the plans of the last few sizes; after that, [`Engine::segment_into`] allocates nothing.
/// What a program that uses the same GPU besides must not do while an engine plans: [`cuda`](crate::cuda).
pub struct Engine {
    config: Config,
    task: Task,
    pool: Pool,
    backend: Backend,
    device_note: Option<String>,
    tuning_note: Option<String>,
    preprocessor: Preprocessor,
    instance: InstanceConfig,
    panoptic: PanopticConfig,
    filter: InstanceFilter,
    filter_memory: FilterMemory,
    /// Most recently used last.
    sessions: Vec<Session>,
    /// Most recently used last.
    adapters: Vec<Adapter>,
    timings: Timings,
}

/// The network at one input size.
struct Session {
    size: (usize, usize),
    executor: Executor,
    cls_score: usize,
    mask_preds: usize,
}

/// What lies between photos of one size and the network. Photos of many sizes share an input size, so these
/// are not part of a [`Session`].
struct Adapter {
    geometry: Geometry,
    preprocessor: Preprocessor,
    instance: InstancePostprocessor,
    panoptic: PanopticPostprocessor,
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

impl Engine {
    /// Where it computes, for people: the GPU's name and the precision, or the CPU's instruction set.
    pub fn device(&self) -> String {
        self.backend.name()
    }

    /// Whether it computes on the PTX emulator's stand-in for a driver, where no time means anything.
    pub fn is_emulated(&self) -> bool {
        self.backend.is_emulated()
    }

    /// What its kernels are chosen for, if it computes on a GPU.
    pub fn target(&self) -> Option<Target> {
        self.backend.target()
    }

    /// Why [`Device::Auto`] took the CPU; `None` if it did not, or if a device was named.
    pub fn device_note(&self) -> Option<&str> {
        self.device_note.as_deref()
    }

    /// The model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The classes, in the order of the class indices in results; see [`class_list`].
    pub fn classes(&self) -> Vec<Class> {
        class_list(&self.config)
    }

    /// The kind of result this engine gives.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Segments one image.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image without pixels; as [`Engine::plan`] and the weights at a new size.
    pub fn segment(&mut self, image: &RgbImage) -> Result<Segmentation> {
        let mut result = Segmentation::default();
        self.segment_into(image, &mut result)?;
        Ok(result)
    }

    /// Segments one image into an existing result, reusing its memory: from the second image of a size on,
    /// nothing is allocated, also if up to four sizes take turns.
    ///
    /// # Errors
    /// As [`Engine::segment`]. The result then holds nothing of use.
    pub fn segment_into(&mut self, image: &RgbImage, result: &mut Segmentation) -> Result<()> {
        let geometry = self.geometry(image)?;
        self.run(image, &geometry, result)
    }

    /// As [`Engine::segment`], as if the image had been resized from one of `original` (height, width): masks
    /// come out at that size. For comparison with reference data that starts after the resize.
    ///
    /// # Errors
    /// As [`Engine::segment`].
    pub fn segment_resized(&mut self, image: &RgbImage, original: (usize, usize)) -> Result<Segmentation> {
        let geometry = Geometry { original, ..self.geometry(image)? };
        let mut result = Segmentation::default();
        self.run(image, &geometry, &mut result)?;
        Ok(result)
    }

    /// Times of the last call.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Plans the network for an image size and loads its weights, so that the first image is as fast as the
    /// others. `height` and `width` are the image's, before any resize.
    ///
    /// # Errors
    /// As [`Engine::segment`].
    pub fn warm_up(&mut self, height: usize, width: usize) -> Result<()> {
        let geometry = self.preprocessor.geometry(height, width);
        self.session(geometry.padded).map(|_| ())
    }

    /// Plans the network for one input size; both sides multiples of
    /// [`SIZE_DIVISOR`](crate::model::SIZE_DIVISOR).
    ///
    /// # Errors
    /// As [`build`].
    pub fn plan(&self, size: (usize, usize), taps: TapMode) -> Result<(Plan, Vec<Tap>)> {
        let (graph, taps) = self.graph(size, taps)?;
        Ok((self.backend.plan(&graph)?, taps))
    }

    fn graph(&self, size: (usize, usize), taps: TapMode) -> Result<(Graph, Vec<Tap>)> {
        let network = build(&self.config, 1, [size.0, size.1], taps)?;
        Ok((optimize(network.graph)?, network.taps))
    }

    /// Runs the network alone `runs` times at an input size, and gives for each step of the plan its time in
    /// every run; on a GPU that of one of many repeats in a graph of its own
    /// ([`cuda::Executor::time_steps`](crate::cuda::Executor::time_steps)).
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn profile(&mut self, size: (usize, usize), runs: usize) -> Result<(Plan, Vec<Vec<Duration>>)> {
        let session = self.session(size)?;
        let executor = &mut self.sessions[session].executor;
        let plan = executor.plan();
        let mut times = vec![Vec::with_capacity(runs); plan.steps.len()];
        self.pool.run(|| executor.time_steps(runs, |step, time| times[step].push(time)))?;
        Ok((plan, times))
    }

    /// The time of the network alone in each of `runs` runs at an input size: on a GPU the device's time of
    /// one graph, without copies and without pre- and post-processing; on the CPU wall-clock time.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn time_network(&mut self, size: (usize, usize), runs: usize) -> Result<Vec<Duration>> {
        let session = self.session(size)?;
        let executor = &mut self.sessions[session].executor;
        self.pool.run(|| executor.time_network(runs))
    }

    /// Every intermediate value of one image, by the names, shapes and layouts of the reference data.
    ///
    /// # Errors
    /// As [`Engine::plan`], and whatever the weights say.
    pub fn taps(&mut self, image: &RgbImage) -> Result<Vec<(String, Tensor)>> {
        let geometry = self.geometry(image)?;
        let (graph, taps) = self.graph(geometry.padded, TapMode::All)?;
        let mut executor = self.backend.executor(&graph, &self.pool)?;
        let preprocessor = &mut self.preprocessor;
        self.pool.run(|| -> Result<()> {
            preprocessor.run(image, executor.input_mut(0))?;
            executor.run()
        })?;
        let upstream = |tap: &Tap| {
            let index = executor.output_index(&tap.name)?;
            let shape = executor.output_type(index).shape;
            let tensor = Tensor::new(shape, executor.output(index).to_vec());
            Some((tap.name.clone(), upstream_layout(tensor, tap.layout)))
        };
        Ok(taps.iter().filter_map(upstream).collect())
    }

    fn geometry(&self, image: &RgbImage) -> Result<Geometry> {
        let (height, width) = (image.height() as usize, image.width() as usize);
        if height * width == 0 {
            return Err(Error::usage(format!("a {height}x{width} image has no pixels")));
        }
        Ok(self.preprocessor.geometry(height, width))
    }

    fn run(&mut self, image: &RgbImage, geometry: &Geometry, result: &mut Segmentation) -> Result<()> {
        let session = self.session(geometry.padded)?;
        let adapter = self.adapter(geometry)?;
        let results = self.results(self.task);
        let Engine { pool, sessions, adapters, timings, backend, filter, filter_memory, .. } = self;
        let (session, adapter) = (&mut sessions[session], &mut adapters[adapter]);
        (result.task, result.size) = (self.task, geometry.original);
        pool.run(|| {
            let start = Instant::now();
            session.prepare(adapter, backend.runtime(), results, image)?;
            let prepared = Instant::now();
            session.executor.run()?;
            let computed = Instant::now();
            let outcome = session.finish(adapter, result);
            if result.task == Task::Instance && outcome.is_ok() {
                result.instances.filter(filter, filter_memory);
            }
            *timings =
                Timings { pre: prepared - start, network: computed - prepared, post: computed.elapsed() };
            outcome
        })
    }

    /// What a GPU is to make of the network's results.
    fn results(&self, task: Task) -> Results {
        let Engine { config, instance, .. } = self;
        match task {
            Task::Instance => Results::Instances(Ranking {
                classes: config.classes(),
                instances: instance.max_per_image,
                min_score: instance.min_score,
                proposals: instance.proposals,
                things: instance.things,
                mask_score: instance.mask_score,
            }),
            Task::Panoptic => Results::Assignment {
                proposals: config.proposals,
                things: config.thing_classes,
                stuff: config.stuff_classes,
            },
        }
    }

    /// Position of the session of an input size, made if there is none. It becomes the most recent.
    fn session(&mut self, size: (usize, usize)) -> Result<usize> {
        if let Some(found) = self.sessions.iter().position(|s| s.size == size) {
            self.sessions[found..].rotate_left(1);
        } else {
            let (graph, _) = self.graph(size, TapMode::Off)?;
            let executor = self.backend.pipelined(&graph, &self.pool)?;
            let output = |name: &str| {
                executor.output_index(name).ok_or_else(|| Error::Graph(format!("no output `{name}`")))
            };
            let (cls_score, mask_preds) = (output(CLS_SCORE)?, output(MASK_PREDS)?);
            if self.sessions.len() == MAX_PLANS {
                self.sessions.remove(0);
            }
            self.sessions.push(Session { size, executor, cls_score, mask_preds });
        }
        Ok(self.sessions.len() - 1)
    }

    /// Position of the adapter of a photo size, made if there is none. It becomes the most recent.
    fn adapter(&mut self, geometry: &Geometry) -> Result<usize> {
        if let Some(found) = self.adapters.iter().position(|a| a.geometry == *geometry) {
            self.adapters[found..].rotate_left(1);
        } else {
            if self.adapters.len() == MAX_PLANS {
                self.adapters.remove(0);
            }
            self.adapters.push(Adapter {
                geometry: *geometry,
                preprocessor: Preprocessor::new(*self.preprocessor.config())?,
                instance: InstancePostprocessor::new(self.instance),
                panoptic: PanopticPostprocessor::new(self.panoptic),
            });
        }
        Ok(self.adapters.len() - 1)
    }
}

impl Session {
    /// Brings a photo to where [`Executor::run`] finds it.
    fn prepare(
        &mut self,
        adapter: &mut Adapter,
        runtime: Option<&Runtime>,
        results: Results,
        image: &RgbImage,
    ) -> Result<()> {
        match (&mut self.executor, runtime) {
            (Executor::Gpu(gpu), Some(runtime)) => {
                let preprocess = adapter.preprocessor.config();
                let outputs = [self.cls_score, self.mask_preds];
                gpu.prepare(&Setting { runtime, preprocess, results, outputs }, image, &adapter.geometry)
            }
            (executor, _) => adapter.preprocessor.run(image, executor.input_mut(0)).map(|_| ()),
        }
    }

    /// Makes the result of the last [`Executor::run`], of the kind that `result` says.
    fn finish(&mut self, adapter: &mut Adapter, result: &mut Segmentation) -> Result<()> {
        let Adapter { geometry, panoptic, instance, .. } = adapter;
        let classes = self.executor.output_type(self.cls_score).shape[2];
        match (&mut self.executor, result.task) {
            (Executor::Gpu(gpu), Task::Panoptic) => gpu.panoptic(panoptic, geometry, &mut result.panoptic),
            (Executor::Gpu(gpu), Task::Instance) => gpu.instances(classes, geometry, &mut result.instances),
            (_, Task::Panoptic) => panoptic.run(&self.head_output(), geometry, &mut result.panoptic),
            (_, Task::Instance) => instance.run(&self.head_output(), geometry, &mut result.instances),
        }
    }

    fn head_output(&self) -> HeadOutput<'_> {
        let scores = self.executor.output_type(self.cls_score).shape;
        let masks = self.executor.output_type(self.mask_preds).shape;
        HeadOutput {
            objects: scores[1],
            classes: scores[2],
            class_logits: self.executor.output(self.cls_score),
            mask_size: (masks[2], masks[3]),
            mask_logits: self.executor.output(self.mask_preds),
        }
    }
}

/// A tap as PyTorch lays it out.
fn upstream_layout(tensor: Tensor, layout: TapLayout) -> Tensor {
    let shape = tensor.shape();
    match (layout, shape.dims()) {
        (TapLayout::Features, _) => tensor.permute(&[0, 3, 1, 2]),
        (TapLayout::Objects, &[b, n, c]) => tensor.reshape(Shape::new(&[b, n, c, 1, 1])),
        (TapLayout::ObjectRows, &[b, n, c]) => tensor.reshape(Shape::new(&[b * n, 1, c])),
        _ => tensor,
    }
}
