//! Training: data sets, losses, matching, optimizer, and evaluation.

pub mod matcher;
pub mod network;
pub mod optimizer;
pub mod schedule;
pub mod step;
