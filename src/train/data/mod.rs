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
mod coco;
pub mod colour;
pub mod dataset;
mod frame;
mod json;
pub mod loader;
pub mod mask;
mod panoptic;
mod polygon;
pub(super) mod random;
pub mod sampler;
mod semantic;

pub use augment::Augment;
pub use batch::Batch;
pub use dataset::{DataConfig, Dataset, Mix, Object, Sample};
pub use loader::{Loader, LoaderConfig};
pub use sampler::{Position, Sampling};
pub(super) use semantic::read_stems;
