//! Training: from annotated photos to a checkpoint.
//!
//! | module | holds |
//! |---|---|
//! | [`data`] | data sets, augmentation, sampling order, loader threads: annotated photos to batches of arrays |

pub mod data;
