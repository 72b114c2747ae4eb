//! The public API: weights in, photos in, masks out.

pub mod source;

pub use source::WeightSource;

use crate::cpu::{Executor, Pool, Weights, select};
use crate::error::Result;
use crate::graph::passes::optimize;
use crate::image::preprocess::{PreprocessConfig, Preprocessor};
use crate::isa::Isa;
use crate::model::{Config, SIZE_DIVISOR, Tap, TapLayout, TapMode, build};
use crate::plan::Plan;
use crate::tensor::{Shape, Tensor};
use ::image::RgbImage;

/// Most input sizes an engine keeps plans for; the least recently used is dropped.
const MAX_PLANS: usize = 4;

/// A loaded model, ready to segment images.
pub struct Engine {
    config: Config,
    source: WeightSource,
    isa: Isa,
    pool: Pool,
    weights: Weights,
    preprocessor: Preprocessor,
    sessions: Vec<Session>,
}

/// The plan of one input size.
struct Session {
    size: [usize; 2],
    executor: Executor,
}

/// Settings of an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineBuilder {
    weights: WeightSource,
    model: Option<String>,
    threads: usize,
    size: Option<Option<(usize, usize)>>,
}

impl Engine {
    /// Starts with seeded weights and one thread per core.
    pub fn builder() -> EngineBuilder {
        EngineBuilder { weights: WeightSource::Seeded(0), model: None, threads: 0, size: None }
    }

    /// The model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Plans the network for one input size; both sides multiples of [`SIZE_DIVISOR`].
    ///
    /// # Errors
    /// As [`build`].
    pub fn plan(&self, size: [usize; 2], taps: TapMode) -> Result<(Plan, Vec<Tap>)> {
        let network = build(&self.config, 1, size, taps)?;
        let names: Vec<(String, TapLayout)> = network.taps.iter().map(|t| (t.name.clone(), t.layout)).collect();
        let _ = names;
        let graph = optimize(network.graph)?;
        Ok((Plan::build(&graph, select(self.isa, self.pool.threads()))?, network.taps))
    }

    /// Every intermediate value of one image, by the names, shapes and layouts of the reference data.
    ///
    /// # Errors
    /// As [`Engine::plan`], and whatever the weights say.
    pub fn taps(&mut self, image: &RgbImage) -> Result<Vec<(String, Tensor)>> {
        let geometry = self.preprocessor.geometry(image.height() as usize, image.width() as usize);
        let (plan, taps) = self.plan([geometry.padded.0, geometry.padded.1], TapMode::All)?;
        let mut executor = Executor::new(plan, &self.weights, self.isa, self.pool.threads())?;
        let preprocessor = &mut self.preprocessor;
        self.pool.run(|| -> Result<()> {
            preprocessor.run(image, executor.input_mut(0))?;
            executor.run();
            Ok(())
        })?;
        let upstream = |tap: &Tap| {
            let index = executor.output_index(&tap.name)?;
            let shape = executor.output_type(index).shape;
            let tensor = Tensor::new(shape, executor.output(index).to_vec());
            Some((tap.name.clone(), upstream_layout(tensor, tap.layout)))
        };
        Ok(taps.iter().filter_map(upstream).collect())
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

impl EngineBuilder {
    /// Takes weights from here.
    pub fn weights(mut self, source: impl Into<WeightSource>) -> Self {
        self.weights = source.into();
        self
    }

    /// Names the model, for weights that do not.
    pub fn model(mut self, name: &str) -> Self {
        self.model = Some(name.to_string());
        self
    }

    /// Uses this many threads; 0 means one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Resizes images to fit into (short, long) pixels instead of the model's own size; `None` leaves them as
    /// they are.
    pub fn size(mut self, size: Option<(usize, usize)>) -> Self {
        self.size = Some(size);
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`source::open`], and [`Error::Usage`](crate::Error::Usage) for a size that leaves no pixels.
    pub fn build(self) -> Result<Engine> {
        let (config, load) = source::open(&self.weights, self.model.as_deref())?;
        let size = self.size.unwrap_or(Some((config.size[0], config.size[1])));
        let preprocessor =
            Preprocessor::new(PreprocessConfig { size, divisor: SIZE_DIVISOR, ..PreprocessConfig::default() })?;
        Ok(Engine {
            config,
            source: self.weights,
            isa: Isa::detect(),
            pool: Pool::new(self.threads)?,
            weights: Weights::new(load),
            preprocessor,
            sessions: Vec::new(),
        })
    }
}
