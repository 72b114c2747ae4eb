//! Data sets and loaders: what they read, in which order, and what they refuse.

mod formats;
mod large;
mod loading;
mod malformed;
mod sheet;
