//! What `knet-train` can be told. Its manual page and completions are made of it: `../knet/pages.rs`.

use clap::Parser;
use knet::cuda::gpu::{Gpu, find};
use knet::engine::{Device, TrainingPrecision};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Exit codes:
    0  done, or stopped by the time limit
    2  wrong usage: bad configuration
    3  a file cannot be read or written; the last good checkpoint is still there
    4  an image is damaged or unacceptable
    5  a checkpoint is damaged or of an unknown format
    6  a checkpoint does not fit the model
    7  internal: a graph breaks a rule
    8  a data set is damaged or inconsistent
    9  a loss, gradient or weight was NaN or infinite; the state before it, if sound, is in diverged.state
   11  more memory is needed than there is
   12  another rank failed or is gone, or neither MPI nor NCCL connects the ranks
  130  stopped by Ctrl-C; the state is saved (a second Ctrl-C stops at once, without saving)";

/// Trains K-Net on annotated photos.
///
/// The folder of the run gets last.safetensors and best.safetensors (for `knet segment --weights`),
/// last.state (to resume from), config.toml, log.jsonl, curves.png, overlays/ (sample photos) and an event
/// file for TensorBoard. The folder `configs` of the repository has complete configurations.
#[derive(Parser)]
#[command(name = "knet-train", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Arguments {
    /// The configuration of the run; with --resume, the folder of the run will do
    #[arg(value_name = "CONFIG.toml|FOLDER")]
    pub config: PathBuf,

    /// Folder of the run, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Go on from last.state in the folder of the run; begin if there is none
    #[arg(long)]
    pub resume: bool,

    /// Learn the first N labelled images by heart, without augmentation: can the model learn at all?
    #[arg(long, value_name = "N")]
    pub overfit: Option<usize>,

    /// Open the data sets, say what they hold, and train nothing; with N, make so many samples and say how
    /// fast the loader's threads are
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "0", conflicts_with = "resume")]
    pub check: Option<u64>,

    /// Stop, saved, after so many minutes
    #[arg(long, value_name = "MINUTES")]
    pub time_limit: Option<f64>,

    /// Threads of the training step; 0 for one per core
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Where to train: cpu, cuda or cuda:N, instead of the configuration's
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<Device>,

    /// How a GPU stores feature maps, instead of the configuration's: f32, bf16 or f16
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<TrainingPrecision>,

    /// Change a field of the configuration, e.g. `--set optimizer.lr=1e-3`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Print what a step takes, in memory and operations, instead of training; with --gpu, on that GPU
    #[arg(long, conflicts_with_all = ["resume", "check"])]
    pub plan: bool,

    /// A GPU to plan for, which need not be here: h100, h200, a100, a10, l4, l40s, rtx4090, orin
    #[arg(long, value_name = "NAME", requires = "plan", value_parser = find)]
    pub gpu: Option<&'static Gpu>,

    /// Say nothing but errors and how the run ended; log.jsonl has the numbers
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// A line for every update instead of a bar
    #[arg(short, long)]
    pub verbose: bool,
}
