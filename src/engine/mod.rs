//! The public API: weights in, photos in, masks out.
//!
//! A [`Model`] is loaded once and shared; a [`Session`] works with it in one thread. [`Engine`] is one of
//! each, for programs that need no more.

mod backend;
mod builder;
pub mod bundle;
mod classes;
pub mod convert;
mod deadline;
#[cfg(feature = "train")]
pub mod forecast;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod kernels;
mod model;
mod network;
#[cfg(feature = "cuda")]
mod on_device;
pub mod quantized;
mod recent;
mod segmentation;
mod session;
pub mod source;
mod taps;
#[cfg(feature = "train")]
mod training;
#[cfg(feature = "cuda")]
mod tuning;

pub use backend::Device;
pub use builder::EngineBuilder;
pub use classes::{class_list, known_names, knows_ids};
pub use model::{Model, ModelOptions};
pub use segmentation::Segmentation;
pub use session::{InputSize, MaskSize, Session, SessionOptions, Timings};
pub use source::WeightSource;
#[cfg(feature = "train")]
pub use training::{Compute, TrainingPrecision, training_executor, validation_engine};
#[cfg(feature = "cuda")]
pub use tuning::Tuning;

use crate::error::Result;
use crate::image::classes::Class;
use crate::image::view::ImageView;
use crate::model::{Config, Task};
use std::sync::Arc;

/// A loaded model, ready to segment images: a [`Model`] with the one [`Session`] that uses it.
///
/// An engine is `Send`: move it to the thread that serves. For several cameras or threads, load a [`Model`]
/// and give each a session: they share its weights.
pub struct Engine(Session);

impl Engine {
    /// An engine for a model that is there.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Engine> {
        Ok(Engine(Session::new(model, options)?))
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.0.model()
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.0
    }

    /// The session, for what an engine does not do by itself.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.0
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        self.model().config()
    }

    /// As [`Model::classes`].
    pub fn classes(&self) -> Vec<Class> {
        self.model().classes()
    }

    /// As [`Model::device`].
    pub fn device(&self) -> String {
        self.model().device()
    }

    /// As [`Session::task`].
    pub fn task(&self) -> Task {
        self.0.task()
    }

    /// As [`Session::threads`].
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// As [`Session::timings`].
    pub fn timings(&self) -> Timings {
        self.0.timings()
    }

    /// As [`Session::warm_up`].
    ///
    /// # Errors
    /// As there.
    pub fn warm_up(&mut self, height: usize, width: usize) -> Result<()> {
        self.0.warm_up(height, width)
    }

    /// As [`Session::segment`].
    ///
    /// # Errors
    /// As there.
    pub fn segment<'a>(&mut self, image: impl Into<ImageView<'a>>) -> Result<Segmentation> {
        self.0.segment(image)
    }

    /// As [`Session::segment_into`].
    ///
    /// # Errors
    /// As there.
    pub fn segment_into<'a>(
        &mut self,
        image: impl Into<ImageView<'a>>,
        result: &mut Segmentation,
    ) -> Result<()> {
        self.0.segment_into(image, result)
    }
}
