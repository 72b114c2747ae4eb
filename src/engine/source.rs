//! Where weights come from, and whether they fit.

use super::bundle::MANIFEST_KEY;
use super::quantized::Quantized;
use crate::checkpoint::{Checkpoint, seeded};
use crate::cpu::Pool;
use crate::error::{Error, Result, ShapeMismatch, WeightReport};
use crate::fsio;
use crate::graph::Param;
use crate::model::decode_head::AUXILIARY_PREFIX;
use crate::model::{Config, Head, SIZE_DIVISOR, TapMode, build};
use crate::plan::constants::ParamLoader;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Key of the model configuration in a checkpoint's metadata.
pub const CONFIG_KEY: &str = "knet.config";

/// Key of the backbone's configuration in the metadata of a file that holds a backbone (with its classifier)
/// alone.
pub const BACKBONE_KEY: &str = "knet.backbone";

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// A safetensors file written by `knet convert`, or a [bundle](super::bundle) by `knet compile`.
    File(PathBuf),
    /// A safetensors file in memory, such as one that is part of the program.
    Embedded {
        /// What messages call it.
        name: &'static str,
        /// The file.
        bytes: &'static [u8],
    },
    /// Reproducible random weights: every tensor is computed from its name and this seed.
    Seeded(u64),
}

impl FromStr for WeightSource {
    type Err = String;

    /// `seeded:N`, or a path.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("seeded:") {
            Some(seed) => seed
                .parse()
                .map(WeightSource::Seeded)
                .map_err(|_| format!("`{seed}` is not a seed (a whole number)")),
            None => Ok(WeightSource::File(text.into())),
        }
    }
}

impl From<&Path> for WeightSource {
    fn from(path: &Path) -> Self {
        WeightSource::File(path.to_path_buf())
    }
}

impl fmt::Display for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightSource::File(path) => write!(f, "{}", path.display()),
            WeightSource::Embedded { name, .. } => f.write_str(name),
            WeightSource::Seeded(seed) => write!(f, "seeded:{seed}"),
        }
    }
}

/// Weights that were opened.
pub struct Opened {
    /// The model that they are for.
    pub config: Config,
    /// Gives the tensor of a parameter.
    pub load: Box<ParamLoader>,
    /// The file, unless they are seeded.
    pub file: Option<Arc<Checkpoint>>,
    /// What the file says of its quantized filters, if some are.
    pub quantized: Option<Quantized>,
}

/// Opens the weights and finds out which model they are for: `name` if given, else what the file says, else
/// (seeded weights) the first of [`MODEL_NAMES`](crate::model::config::MODEL_NAMES). A file is checked in
/// full against the model.
///
/// # Errors
/// [`Error::Io`], [`Error::Checkpoint`] or [`Error::Usage`] if the file cannot be read or does not say what
/// it is; [`Error::Weights`] listing everything that does not fit.
pub fn open(source: &WeightSource, name: Option<&str>) -> Result<Opened> {
    match source {
        WeightSource::Seeded(seed) => {
            let config = Config::named(name.unwrap_or(crate::model::config::MODEL_NAMES[0]))?;
            let seed = *seed;
            let load = move |param: &Param| seeded::tensor(&param.key, &param.upstream_shape, seed);
            Ok(Opened { config, load: Box::new(load), file: None, quantized: None })
        }
        WeightSource::File(path) => {
            open_checkpoint(Checkpoint::open(path).map_err(|error| with_hint(path, error))?, name)
        }
        WeightSource::Embedded { name: file, bytes } => {
            open_checkpoint(Checkpoint::from_bytes(*file, bytes.to_vec())?, name)
        }
    }
}

/// As [`open`], with an opened file.
///
/// # Errors
/// As [`open`].
pub fn open_checkpoint(file: Checkpoint, name: Option<&str>) -> Result<Opened> {
    let config = file_config(&file, name)?;
    let quantized = Quantized::of(&file)?;
    check(&file, &config, quantized.as_ref())?;
    let file = Arc::new(file);
    let (own, of_file) = (file.clone(), quantized.clone());
    let load: Box<ParamLoader> = Box::new(move |param: &Param| match &of_file {
        Some(quantized) => quantized.load(&own, &param.key),
        None => own.load_f32(&param.key),
    });
    Ok(Opened { config, load, file: Some(file), quantized })
}

/// The error of opening `path`, with the way out if the file is one of PyTorch's.
fn with_hint(path: &Path, error: Error) -> Error {
    let mut start = [0; 4];
    let read = fsio::open_file(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok());
    let zip = start == *b"PK\x03\x04";
    // A pickled long of ten bytes: the magic number of the format before PyTorch 1.6.
    let legacy = start[0] == 0x80 && start[2..] == [0x8a, 10];
    if matches!(error, Error::Checkpoint { .. }) && read && (zip || legacy) {
        let reason =
            format!("a PyTorch checkpoint; run `knet convert {}` and use the result", path.display());
        return Error::checkpoint(path, reason);
    }
    error
}

/// The configuration a checkpoint carries. A `name` given by the caller must agree with it, and stands in
/// for it where the file says nothing.
///
/// # Errors
/// As [`open`].
pub fn file_config(file: &Checkpoint, name: Option<&str>) -> Result<Config> {
    if file.metadata().contains_key(MANIFEST_KEY) {
        return Err(Error::usage(format!(
            "{}: a bundle, whose constants are packed to be run; name the checkpoint that it was made of",
            file.path().display()
        )));
    }
    let config = said_config(file, name)?;
    if file.metadata().contains_key(CONFIG_KEY) {
        check_declared(file, &config)?;
    }
    Ok(config)
}

/// As [`file_config`], of any file, and whatever its tensors are.
pub(super) fn said_config(file: &Checkpoint, name: Option<&str>) -> Result<Config> {
    let Some(text) = file.metadata().get(CONFIG_KEY) else {
        if let Some(backbone) = file.metadata().get(BACKBONE_KEY) {
            return Err(Error::usage(format!(
                "{}: holds a backbone alone, {backbone}, for training to start from; it segments nothing",
                file.path().display()
            )));
        }
        return match name {
            Some(name) => Config::named(name),
            None => Err(Error::usage(format!(
                "{}: no `{CONFIG_KEY}` in the metadata, so the file does not say which model it is; name one",
                file.path().display()
            ))),
        };
    };
    let config = Config::from_json(text).map_err(|e| Error::checkpoint(file.path(), e.to_string()))?;
    match name {
        Some(name) if name != config.name => Err(Error::usage(format!(
            "{}: holds model `{}`, not `{name}`",
            file.path().display(),
            config.name
        ))),
        _ => Ok(config),
    }
}

/// Refuses a configuration that asks for more than the file's own tensors justify, before a graph of that
/// size is built. What else does not fit is found, and listed in full, against the graph.
fn check_declared(file: &Checkpoint, config: &Config) -> Result<()> {
    let refuse = |key: Option<&str>, what: &str, declared: usize, held: usize| Error::Checkpoint {
        path: file.path().to_path_buf(),
        key: key.map(str::to_string),
        offset: None,
        reason: format!("`{CONFIG_KEY}` says {declared} {what}, the tensors are of {held}"),
    };
    let stages = Head::count_stages(file.names());
    if config.head.stages > stages {
        return Err(refuse(None, "stages", config.head.stages, stages));
    }
    for (key, what, declared) in config.rows() {
        // One that is missing is told with all that are.
        if let Some(&[held, ..]) = file.shape(&key)
            && declared > held
        {
            return Err(refuse(Some(&key), what, declared, held));
        }
    }
    Ok(())
}

/// All parameters of a model, by upstream key.
pub fn parameters(config: &Config) -> Result<Vec<Param>> {
    let network = build(config, 1, [2 * SIZE_DIVISOR; 2], TapMode::All)?;
    Ok(network.graph.params().cloned().collect())
}

fn check(file: &Checkpoint, config: &Config, quantized: Option<&Quantized>) -> Result<()> {
    let params = parameters(config)?;
    let beside: BTreeSet<String> = quantized.into_iter().flat_map(Quantized::scale_names).collect();
    let names = file.names().filter(|name| !beside.contains(*name));
    let mut report = fit(&params, names, |name| file.shape(name));
    // Looked at as stored: tensors are decoded once, when a plan packs them.
    // By threads that are gone when the model is there: rayon's own would stay.
    report.non_finite = Pool::new(0)?.run(|| {
        let bad = params.par_iter().filter(|param| file.any_non_finite(&param.key) == Some(true));
        bad.map(|param| param.key.clone()).collect()
    });
    if report.is_clean() {
        return Ok(());
    }
    let (path, model) = (file.path().to_path_buf(), config.name.clone());
    Err(Error::Weights { path, model, report: Box::new(report) })
}

/// Names and shapes that a file's tensors and a model's parameters disagree on.
pub(super) fn fit<'a>(
    params: &[Param],
    names: impl Iterator<Item = &'a str>,
    shape: impl Fn(&str) -> Option<&'a [usize]>,
) -> WeightReport {
    let wanted: BTreeSet<&str> = params.iter().map(|p| p.key.as_str()).collect();
    let averages: BTreeSet<String> = params.iter().map(|p| ema_name(&p.key)).collect();
    let known = |name: &str| wanted.contains(name) || averages.contains(name) || is_bookkeeping(name);
    let unexpected = names.filter(|name| !known(name));
    let mut report =
        WeightReport { unexpected: unexpected.map(str::to_string).collect(), ..WeightReport::default() };
    for param in params {
        match shape(&param.key) {
            None if is_for_training_alone(&param.key) => {}
            None => report.missing.push(param.key.clone()),
            Some(shape) if shape != param.upstream_shape => report.misshapen.push(ShapeMismatch {
                name: param.key.clone(),
                expected: param.upstream_shape.clone(),
                found: shape.to_vec(),
            }),
            Some(_) => {}
        }
    }
    report
}

/// What mmcv's `EMAHook` calls the average of a parameter, which it keeps beside the weights.
pub(super) fn ema_name(key: &str) -> String {
    format!("ema_{}", key.replace('.', "_"))
}

/// Whether inference does without this parameter of a model.
fn is_for_training_alone(key: &str) -> bool {
    key.starts_with(AUXILIARY_PREFIX)
}

/// Entries of official checkpoints that hold no weights.
pub fn is_bookkeeping(name: &str) -> bool {
    [".num_batches_tracked", ".relative_position_index", ".attn_mask"].iter().any(|end| name.ends_with(end))
}
