//! Tasks: what becomes of the network's results. Each is one file that says which results of the graph it
//! reads, how the CPU finishes them and what its result is; what a GPU launches for it into which buffers
//! is beside it in `gpu.rs`. Instances that a two-stage detector finds in boxes are in `boxes`.
//!
//! Another task is such a file and a line in the list below.

pub mod boxes;
pub mod instance;
mod masks;
pub mod panoptic;
pub mod semantic;

#[cfg(feature = "cuda")]
use crate::cuda::{self, gpu::Target, pipeline::Pipeline, post::PostProcess};
use crate::error::Result;
use crate::image::HeadOutput;
use crate::image::instance::InstanceFilter;
use crate::image::preprocess::Geometry;
use crate::model::{CLS_SCORE, Config, MASK_PREDS, Task};
use crate::tensor::Shape;

/// What a caller may ask of results, besides what the model's configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PostprocessOptions {
    /// Instances, and things of a panoptic map, that score lower are dropped. `None`: no instance, and
    /// things by the model's own threshold.
    pub min_score: Option<f64>,
    /// Which instances stay and what of their masks.
    pub filter: InstanceFilter,
    /// Semantic maps come with the probability of each pixel's class.
    pub confidence: bool,
}

/// Gives a result of the network by name, as floats on the host with their shape.
pub type HostOutputs<'a> = dyn Fn(&str) -> Result<(Shape, &'a [f32])> + 'a;

/// A task at photos of one size. It keeps tables and memory, so that a photo of the size of the one before
/// allocates nothing.
pub trait Postprocess: Sized + Send {
    /// The result for a photo.
    type Found: Default;

    /// The task for a model.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) if the model cannot do it.
    fn new(config: &Config, options: &PostprocessOptions) -> Result<Self>;

    /// Names of the network's results that it reads: operands of its launches, in this order.
    fn reads(&self) -> &'static [&'static str];

    /// Makes the result on the CPU, reusing the memory of the one that `found` holds.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if outputs and sizes do not fit each other;
    /// [`Error::Memory`](crate::Error::Memory) if there is too little for the result.
    fn on_host(
        &mut self,
        network: &HostOutputs<'_>,
        geometry: &Geometry,
        found: &mut Self::Found,
    ) -> Result<()>;
}

/// A task that a GPU finishes, too.
#[cfg(feature = "cuda")]
pub trait PostprocessOnGpu: Postprocess {
    /// What a run leaves in device memory.
    type OnDevice;

    /// What a GPU launches after the network, and the buffers of its results.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) for sizes that the kernels do not take.
    fn launches(&self, plan: &cuda::Plan, geometry: &Geometry, target: &Target) -> Result<PostProcess>;

    /// Makes the result of what a GPU has left in those buffers, as [`Postprocess::on_host`] does.
    ///
    /// # Errors
    /// As there.
    fn collect(&mut self, run: &Pipeline, geometry: &Geometry, found: &mut Self::Found) -> Result<()>;

    /// Where the results of a run lie if they stay on the device.
    fn on_device(&self, run: &Pipeline, geometry: &Geometry) -> Self::OnDevice;
}

/// Calls a method of the task with the result of its kind: another one that `found` holds is replaced.
macro_rules! with_found {
    ($name:ident, $found:expr, $call:expr) => {{
        *$found = match std::mem::take($found) {
            Found::$name(known) => Found::$name(known),
            _ => Found::$name(Default::default()),
        };
        match $found {
            Found::$name(found) => $call(found),
            _ => Ok(()),
        }
    }};
}

macro_rules! tasks {
    ($($name:ident: $post:ty;)*) => {
        /// All tasks.
        pub const TASKS: &[Task] = &[$(Task::$name),*];

        /// One of the tasks.
        pub enum AnyTask {
            $(#[doc = concat!("[`Task::", stringify!($name), "`].")] $name($post)),*
        }

        /// A result of one of the tasks.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Found {
            $(#[doc = concat!("Of [`Task::", stringify!($name), "`].")] $name(<$post as Postprocess>::Found)),*
        }

        /// What a run of one of the tasks leaves in device memory.
        #[cfg(feature = "cuda")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DeviceResults {
            $(#[doc = concat!("Of [`Task::", stringify!($name), "`].")] $name(<$post as PostprocessOnGpu>::OnDevice)),*
        }

        impl AnyTask {
            /// The task of this kind.
            ///
            /// # Errors
            /// As [`Postprocess::new`].
            pub fn of(task: Task, config: &Config, options: &PostprocessOptions) -> Result<Self> {
                match task {
                    $(Task::$name => Ok(AnyTask::$name(<$post>::new(config, options)?))),*
                }
            }
        }

        impl Found {
            /// Which task made it.
            pub fn task(&self) -> Task {
                match self { $(Found::$name(_) => Task::$name),* }
            }
        }

        impl Postprocess for AnyTask {
            type Found = Found;

            fn new(config: &Config, options: &PostprocessOptions) -> Result<Self> {
                AnyTask::of(config.task, config, options)
            }

            fn reads(&self) -> &'static [&'static str] {
                match self { $(AnyTask::$name(task) => task.reads()),* }
            }

            fn on_host(&mut self, network: &HostOutputs<'_>, geometry: &Geometry, found: &mut Found) -> Result<()> {
                match self {
                    $(AnyTask::$name(task) => {
                        with_found!($name, found, |found| task.on_host(network, geometry, found))
                    })*
                }
            }
        }

        #[cfg(feature = "cuda")]
        impl PostprocessOnGpu for AnyTask {
            type OnDevice = DeviceResults;

            fn launches(&self, plan: &cuda::Plan, geometry: &Geometry, target: &Target) -> Result<PostProcess> {
                match self { $(AnyTask::$name(task) => task.launches(plan, geometry, target)),* }
            }

            fn collect(&mut self, run: &Pipeline, geometry: &Geometry, found: &mut Found) -> Result<()> {
                match self {
                    $(AnyTask::$name(task) => {
                        with_found!($name, found, |found| task.collect(run, geometry, found))
                    })*
                }
            }

            fn on_device(&self, run: &Pipeline, geometry: &Geometry) -> DeviceResults {
                match self { $(AnyTask::$name(task) => DeviceResults::$name(task.on_device(run, geometry))),* }
            }
        }
    };
}

tasks! {
    Instance: instance::Instances;
    Panoptic: panoptic::Panoptic;
    Semantic: semantic::Semantic;
}

impl Found {
    /// How many objects it has, segments of a panoptic map, or classes present in a semantic one.
    pub fn count(&self) -> usize {
        match self {
            Found::Instance(instances) => instances.instances().len(),
            Found::Panoptic(map) => map.segments.len(),
            Found::Semantic(map) => map.areas.iter().filter(|&&area| area > 0).count(),
        }
    }
}

impl Default for Found {
    fn default() -> Self {
        Found::Instance(Default::default())
    }
}

/// Class and mask logits of the last stage on the host.
fn head_output<'a>(network: &HostOutputs<'a>) -> Result<HeadOutput<'a>> {
    let ((classes, class_logits), (masks, mask_logits)) = (network(CLS_SCORE)?, network(MASK_PREDS)?);
    Ok(HeadOutput {
        objects: classes[1],
        classes: classes[2],
        class_logits,
        mask_size: (masks[2], masks[3]),
        mask_logits,
    })
}
