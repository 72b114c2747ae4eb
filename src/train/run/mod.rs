//! Whole training runs: a configuration in, checkpoints and logs out.
//!
//! ```text
//! RunConfig -> Mix -> Config -> initial values or State -> TrainStep, AdamW, Loader
//!   -> [ batches -> losses and gradients -> update -> log ]* -> save
//! ```
//!
//! The folder of a run holds `last.state` (everything that resuming needs), `last.safetensors` (the weights for use), and
//! `log.jsonl`. All are replaced whole, so that a run that is killed at any moment goes on from its last save, with the same
//! bits as if it had never stopped.

pub mod config;
pub mod log;
pub mod start;
pub mod state;
pub mod trainer;

pub use config::RunConfig;
pub use trainer::{Observer, Outcome, Report, Trainer};
