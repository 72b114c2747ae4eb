//! Training, and what belongs to it.

pub mod evaluate;
