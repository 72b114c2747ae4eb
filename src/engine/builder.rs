//! The settings of an engine.

#[cfg(feature = "cuda")]
use super::Tuning;
use super::{Device, Engine, InputSize, Model, ModelOptions, SessionOptions, WeightSource};
use crate::cpu::Arithmetic;
use crate::error::Result;
use crate::image::instance::InstanceFilter;
use crate::model::Task;
use crate::tensor::Precision;
use std::time::Duration;

/// Settings of an [`Engine`].
#[derive(Clone, Debug, Default)]
pub struct EngineBuilder {
    model: ModelOptions,
    session: SessionOptions,
}

impl EngineBuilder {
    /// Takes weights from here. The default is `seeded:0`.
    pub fn weights(mut self, source: impl Into<WeightSource>) -> Self {
        self.model.weights = source.into();
        self
    }

    /// Names the model, for weights that do not.
    pub fn model(mut self, name: &str) -> Self {
        self.model.name = Some(name.to_string());
        self
    }

    /// Asks for this kind of result. A panoptic model gives instances too; an instance model gives nothing
    /// else.
    pub fn task(mut self, task: Task) -> Self {
        self.session.task = Some(task);
        self
    }

    /// Uses this many threads; 0, the default, means one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.session.threads = threads;
        self
    }

    /// Lets the threads run on these CPUs alone. By default they run on any.
    pub fn cpus(mut self, cpus: &[usize]) -> Self {
        self.session.cpus = cpus.to_vec();
        self
    }

    /// Works in the thread that calls, without threads of its own: [`SessionOptions::on_caller`].
    pub fn on_caller(mut self) -> Self {
        self.session.on_caller = true;
        self
    }

    /// Resizes images to fit into (short side, long side) pixels instead of the model's own size; `None`
    /// leaves them as they are.
    pub fn size(mut self, size: Option<(usize, usize)>) -> Self {
        self.session.size = size.map_or(InputSize::AsTheyAre, |(short, long)| InputSize::Within(short, long));
        self
    }

    /// Drops instances, and things of a panoptic map, that score lower. By default an instance result holds
    /// the best 100 whatever their score, and a panoptic map follows the model's own threshold (0.3).
    pub fn min_score(mut self, score: f64) -> Self {
        self.session.results.min_score = Some(score);
        self
    }

    /// Decides which instances stay and what of their masks. By default all do, those without a pixel among
    /// them. Panoptic maps, whose segments all have pixels, are left as they are, and so are results in
    /// device memory.
    pub fn filter(mut self, filter: InstanceFilter) -> Self {
        self.session.results.filter = filter;
        self
    }

    /// Whether semantic maps come with the probability of each pixel's class. By default they do not.
    pub fn confidence(mut self, confidence: bool) -> Self {
        self.session.results.confidence = confidence;
        self
    }

    /// Runs so many stages of the network instead of all; see [`SessionOptions::stages`].
    pub fn stages(mut self, stages: usize) -> Self {
        self.session.stages = Some(stages);
        self
    }

    /// Runs as many stages of the network as there is time for; see
    /// [`Session::set_deadline`](super::Session::set_deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.session.deadline = Some(deadline);
        self
    }

    /// Computes here. The default is [`Device::Auto`].
    pub fn device(mut self, device: Device) -> Self {
        self.model.device = device;
        self
    }

    /// Stores and multiplies maps in this precision instead of the device's own: see
    /// [`ModelOptions::precision`].
    pub fn precision(mut self, precision: impl Into<Option<Precision>>) -> Self {
        self.model.precision = precision.into();
        self
    }

    /// Whether a CPU multiplies quantized weights as integers: see [`ModelOptions::int8`].
    pub fn int8(mut self, int8: impl Into<Option<bool>>) -> Self {
        self.model.int8 = int8.into();
        self
    }

    /// How coarsely kernels on the CPU may round. The default, [`Arithmetic::Fast`], is about a fifth faster;
    /// with [`Arithmetic::Exact`], as in training, masks agree with PyTorch's also where a logit lies close
    /// to the threshold. A GPU rounds by [`EngineBuilder::precision`].
    pub fn arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.model.arithmetic = arithmetic;
        self
    }

    /// Chooses a GPU's kernels by this table where it knows them. The default is [`Tuning::User`].
    #[cfg(feature = "cuda")]
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.model.tuning = tuning;
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`Model::load`] and [`Session::new`](super::Session::new).
    pub fn build(self) -> Result<Engine> {
        Engine::new(Model::load(&self.model)?, &self.session)
    }
}

impl Engine {
    /// Starts with seeded weights, the model's own size and one thread per core.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }
}
