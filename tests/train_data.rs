//! Data sets and loaders: what they read, in which order, and what they refuse.

#[path = "common/data.rs"]
mod data;
#[path = "train_data/formats.rs"]
mod formats;
#[path = "train_data/loading.rs"]
mod loading;
#[path = "train_data/malformed.rs"]
mod malformed;
#[path = "train_data/polygons.rs"]
mod polygons;
