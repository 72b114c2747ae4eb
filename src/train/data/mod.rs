//! From annotated photos to the arrays of a training step.
//!
//! ```text
//! JSON, PNG, photos -> Dataset (checked index) -> Mix -> Sampler (order of an epoch)
//!   -> worker threads: load (cached) -> augment -> Batch -> Loader::next
//! ```
//!
//! Every random choice comes from a stream keyed by (seed, epoch, place in the epoch): batches do not depend on the number of
//! threads nor on timing, and a [`Position`] is all there is to store for resuming.

pub mod augment;
pub mod batch;
pub(super) mod coco;
pub mod colour;
pub mod dataset;
mod frame;
mod json;
pub mod labels;
pub mod loader;
pub mod mask;
pub mod mix;
pub(super) mod panoptic;
pub(super) mod random;
pub mod sampler;
pub(super) mod semantic;
mod verify;
pub(super) mod warning;

pub use augment::Augment;
pub use batch::Batch;
pub use dataset::{DataConfig, Dataset, Object, Reading, Sample};
pub use json::{Catalogue, ImageRecord};
pub use loader::{Loader, LoaderConfig};
pub use mix::Mix;
pub use sampler::{Position, Sampling};
pub use warning::Warning;
