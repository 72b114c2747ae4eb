//! Checkpoints and images: what is read, refused, converted and drawn.

mod bad_checkpoints;
mod bad_images;
mod bundle;
mod checkpoint;
mod convert;
mod image;
mod released;
