//! Training: from annotated photos to a checkpoint.
//!
//! | module | holds |
//! |---|---|
//! | [`data`] | data sets, augmentation, sampling order, loader threads: annotated photos to batches of arrays |
//! | [`evaluate`] | COCO AP, panoptic quality, mIoU |
//! | [`network`] | the training graph: network, matching costs, losses, gradients, updates |
//! | [`matcher`] | exact bipartite assignment of proposals to annotated objects |
//! | [`step`] | one training step: segments of a plan around the assignment |
//! | [`optimizer`], [`schedule`] | AdamW as nodes of the graph; learning-rate schedules |
//! | [`loss_scale`] | the factor on losses that keeps gradients in f16's range |
//! | [`run`] | whole runs: configuration, initial weights, saved state, logs |

pub mod data;
pub mod evaluate;
pub mod loss_scale;
pub mod matcher;
pub mod network;
pub mod optimizer;
pub mod run;
pub mod schedule;
pub mod step;
