//! Data sets and loaders: what they read, in which order, and what they refuse.

#[path = "../common/data.rs"]
mod data;
mod formats;
mod loading;
mod malformed;
mod sheet;
