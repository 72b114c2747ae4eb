//! From annotated photos to the arrays of a training step.
//!
//! ```text
//! JSON, PNG, photos -> Dataset (checked index) -> Mix -> Sampler (order of an epoch)
//!   -> worker threads: load (cached) -> augment -> Batch -> Loader::next
//! ```
//!
//! A [`Dataset`] is the one reader of each format: training, validation and evaluation see the same objects.
//!
//! | found | done |
//! |---|---|
//! | a byte order mark; `NaN` in a field that nothing needs; `4.0` for 4, `true` for 1; a box or area that is none; ids of annotations that repeat | read |
//! | texts as image ids (Cityscapes) | read; results carry them |
//! | polygons of one or two points | dropped and counted ([`Reading::strict`] refuses them) |
//! | crowds; annotations and segments without a pixel; files that are no pictures; panoptic images without an annotation | left out and counted |
//! | classes without an object or a pixel; pixels that are void or ignored | counted |
//! | photos that cannot be decoded | refused, or left out and counted ([`Reading::skip_damaged`]) |
//! | photos annotated as they are stored, though their EXIF orientation turns them | refused by their size, with the reason: there is no switch, as nothing would tell when a half turn or a mirror image is meant. Store such photos upright |
//! | anything else | an error that names file, record, field, value and what is accepted |
//!
//! Every random choice comes from a stream keyed by (seed, epoch, place in the epoch): batches do not depend
//! on the number of threads nor on timing, and a [`Position`] is all there is to store for resuming.

pub mod augment;
pub mod batch;
mod bilinear;
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
pub(super) mod shape;
mod text;
mod verify;
pub(super) mod warning;

pub use augment::Augment;
pub use batch::{Batch, Targets};
pub use dataset::{DataConfig, Dataset, Object, Reading, Sample};
pub use json::{Catalogue, ImageRecord};
pub use loader::{Loader, LoaderConfig};
pub use mix::Mix;
pub use sampler::{Position, Sampling};
pub use warning::Warning;
