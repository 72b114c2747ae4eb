//! The settings of an engine.

use super::backend::{Backend, Device};
use super::source::{self, WeightSource};
use super::{Engine, Timings, Tuning};
use crate::cpu::{Arithmetic, Pool, Selection};
use crate::cuda::gpu::Precision;
use crate::error::{Error, Result};
use crate::image::instance::{FilterMemory, InstanceConfig, InstanceFilter};
use crate::image::panoptic::PanopticConfig;
use crate::image::preprocess::{PreprocessConfig, Preprocessor};
use crate::isa::Isa;
use crate::model::{Normalization, SIZE_DIVISOR, Task};

/// Settings of an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineBuilder {
    weights: WeightSource,
    model: Option<String>,
    task: Option<Task>,
    threads: usize,
    size: Option<Option<(usize, usize)>>,
    min_score: Option<f64>,
    filter: InstanceFilter,
    device: Device,
    precision: Precision,
    arithmetic: Arithmetic,
    tuning: Tuning,
}

impl EngineBuilder {
    /// Takes weights from here. The default is `seeded:0`.
    pub fn weights(mut self, source: impl Into<WeightSource>) -> Self {
        self.weights = source.into();
        self
    }

    /// Names the model, for weights that do not.
    pub fn model(mut self, name: &str) -> Self {
        self.model = Some(name.to_string());
        self
    }

    /// Asks for this kind of result. A panoptic model gives instances too; an instance model gives nothing
    /// else.
    pub fn task(mut self, task: Task) -> Self {
        self.task = Some(task);
        self
    }

    /// Uses this many threads; 0, the default, means one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Resizes images to fit into (short side, long side) pixels instead of the model's own size; `None`
    /// leaves them as they are.
    pub fn size(mut self, size: Option<(usize, usize)>) -> Self {
        self.size = Some(size);
        self
    }

    /// Drops instances, and things of a panoptic map, that score lower. By default an instance result holds
    /// the best 100 whatever their score, and a panoptic map follows the model's own threshold (0.3).
    pub fn min_score(mut self, score: f64) -> Self {
        self.min_score = Some(score);
        self
    }

    /// Decides which instances stay and what of their masks. By default all do, those without a pixel among
    /// them. Panoptic maps, whose segments all have pixels, are left as they are, and so are results in
    /// device memory.
    pub fn filter(mut self, filter: InstanceFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Computes here. The default is [`Device::Auto`].
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Stores and multiplies in this precision on a GPU. The CPU computes in f32 whatever is set here.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// How coarsely kernels on the CPU may round. The default, [`Arithmetic::Fast`], is about a fifth faster;
    /// with [`Arithmetic::Exact`], as in training, masks agree with PyTorch's also where a logit lies close
    /// to the threshold. A GPU rounds by [`EngineBuilder::precision`].
    pub fn arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.arithmetic = arithmetic;
        self
    }

    /// Chooses a GPU's kernels by this table where it knows them. The default is [`Tuning::User`].
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// [`Error::Cuda`] if a GPU was named and cannot be used; as [`source::open`]; [`Error::Usage`] for a
    /// size without pixels, a filter's share beyond 0 to 1, a task the model cannot do or a damaged tuning
    /// table that was named, [`Error::Io`] for one that cannot be read.
    pub fn build(self) -> Result<Engine> {
        self.filter.check()?;
        let (config, load) = source::open(&self.weights, self.model.as_deref())?;
        let task = self.task.unwrap_or(config.task);
        if task == Task::Panoptic && config.task != Task::Panoptic {
            return Err(Error::usage(format!(
                "model `{}` gives instances only, no panoptic map",
                config.name
            )));
        }
        let size = self.size.unwrap_or(Some((config.size[0], config.size[1])));
        let Normalization { mean, std } = config.normalization;
        let preprocess = PreprocessConfig { size, mean, std, divisor: SIZE_DIVISOR };
        let instance = InstanceConfig {
            max_per_image: config.max_per_image,
            min_score: self.min_score.unwrap_or(0.0) as f32,
            proposals: config.proposals,
            things: config.thing_classes,
            mask_score: config.mask_score,
        };
        let panoptic = PanopticConfig {
            proposals: config.proposals,
            things: config.thing_classes,
            stuff: config.stuff_classes,
            score_threshold: self.min_score.unwrap_or(config.instance_score_threshold),
            overlap_threshold: config.overlap_threshold,
        };
        let pool = Pool::new(self.threads)?;
        let selection =
            Selection { arithmetic: self.arithmetic, ..Selection::new(Isa::detect(), pool.threads()) };
        let (backend, notes) = Backend::new(self.device, self.precision, selection, &self.tuning, load)?;
        Ok(Engine {
            task,
            pool,
            backend,
            device_note: notes.device,
            tuning_note: notes.tuning,
            preprocessor: Preprocessor::new(preprocess)?,
            instance,
            panoptic,
            filter: self.filter,
            filter_memory: FilterMemory::default(),
            sessions: Vec::new(),
            adapters: Vec::new(),
            timings: Timings::default(),
            config,
        })
    }
}

impl Engine {
    /// Starts with seeded weights, the model's own size and one thread per core.
    pub fn builder() -> EngineBuilder {
        EngineBuilder {
            weights: WeightSource::Seeded(0),
            model: None,
            task: None,
            threads: 0,
            size: None,
            min_score: None,
            filter: InstanceFilter::default(),
            device: Device::default(),
            precision: Precision::default(),
            arithmetic: Arithmetic::default(),
            tuning: Tuning::default(),
        }
    }
}
