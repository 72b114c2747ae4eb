//! Whole training runs: a configuration in, checkpoints and logs out.
//!
//! ```text
//! RunConfig -> Mix -> Config -> initial values or State -> TrainStep, Loader
//!   -> [ batches -> losses and gradients -> update -> log ]* -> save
//! ```
//!
//! The folder of a run holds `last.state` (everything that resuming needs), `last.safetensors` (the weights
//! for use), `best.safetensors` (those that validated best), `log.jsonl`, `events.out.tfevents.*` for
//! TensorBoard, `curves.png`, and `overlays/` with sample photos, and `config.toml`, the configuration for
//! people to read. While a run lives, `run.lock` keeps others out. Checkpoints are replaced whole, so that a
//! run that is killed at any moment goes on from its last save, with the same bits as if it had never
//! stopped.

pub mod batch_size;
mod check;
pub mod config;
pub mod curves;
mod describe;
pub mod forecast;
pub mod kept;
pub mod lock;
pub mod log;
pub mod model;
pub mod outputs;
pub mod overlay;
mod overrides;
pub mod resume;
pub mod start;
pub mod state;
pub mod tensorboard;
pub mod trainer;
pub mod validate;

pub use check::check;
pub use config::RunConfig;
pub use trainer::{Observer, Outcome, RunReport, Trainer};
