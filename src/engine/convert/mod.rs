//! From a `.pth` file, an official K-Net or an ImageNet classifier, to a self-describing safetensors file.

mod python;
mod recognise;
mod swin;

use super::knows_ids;
use super::source::{BACKBONE_KEY, CONFIG_KEY, ema_name, fit, is_bookkeeping, parameters};
use crate::checkpoint::pth::{self, PthTensor};
use crate::checkpoint::{TensorData, TensorOut, first_non_finite, write_safetensors};
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::model::backbone::{self, Backbone};
use crate::model::{Config, SIZE_DIVISOR, Task};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Metadata key of the name of the file that was converted.
pub const SOURCE_KEY: &str = "knet.source";

/// How weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredPrecision {
    /// 32-bit floats, bit for bit as in the source.
    #[default]
    F32,
    /// 16-bit floats: half the size, 11 bits of precision.
    F16,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// A whole model.
    Model(Box<Config>),
    /// A classifier that serves as a backbone.
    Classifier {
        /// The backbone.
        backbone: Backbone,
        /// Number of classes.
        classes: usize,
    },
}

impl Contents {
    /// Name of the model or of the backbone.
    pub fn name(&self) -> String {
        match self {
            Contents::Model(config) => config.name.clone(),
            Contents::Classifier { backbone, .. } => backbone.name(),
        }
    }

    fn parameters(&self) -> Result<Vec<Param>> {
        match self {
            Contents::Classifier { backbone, classes } => {
                let graph = backbone.classifier(1, [SIZE_DIVISOR; 2], *classes)?;
                Ok(graph.params().cloned().collect())
            }
            Contents::Model(config) => parameters(config),
        }
    }

    /// Name under which a tensor of the source is stored.
    fn stored_name(&self, source: &str) -> String {
        match self {
            Contents::Model(_) => source.to_string(),
            Contents::Classifier { .. } => format!("{}{source}", backbone::PREFIX),
        }
    }

    fn metadata(&self) -> (&'static str, String) {
        match self {
            Contents::Model(config) => (CONFIG_KEY, config.to_json()),
            Contents::Classifier { backbone, .. } => (BACKBONE_KEY, backbone.to_json()),
        }
    }
}

/// What a conversion is told beside the file.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// The model, instead of recognising it.
    pub model: Option<Config>,
    /// Fields of [`Config`] with their values, which win over what the file says.
    pub set: Vec<(String, Value)>,
    /// Names of the classes in the order of the heads, with their category ids if those are known.
    pub classes: Option<Vec<(Option<u32>, String)>>,
    /// Takes the averaged weights that mmcv's `EMAHook` keeps in buffers `ema_*`.
    pub ema: bool,
    /// The network was trained on B, G, R: the channels of its first convolution, mean and std are reversed.
    pub bgr: bool,
    /// How weights are stored.
    pub precision: StoredPrecision,
}

impl ConvertOptions {
    fn sets(&self, field: &str) -> bool {
        self.set.iter().any(|(key, _)| key == field)
    }

    /// A whole number that is set.
    fn number(&self, field: &str) -> Result<Option<usize>> {
        let Some((_, value)) = self.set.iter().find(|(key, _)| key == field) else { return Ok(None) };
        let number = value.as_u64().and_then(|v| usize::try_from(v).ok());
        let refuse = || Error::usage(format!("--set {field}={value}: a whole number is expected"));
        number.map(Some).ok_or_else(refuse)
    }

    /// `config` with the fields that are set.
    fn apply(&self, config: Config) -> Result<Config> {
        let mut config = config.with(self.set.clone()).map_err(|e| Error::usage(format!("--set: {e}")))?;
        if !self.sets("task") && config.decode_head.is_none() {
            config.task = Task::of(&config.classes);
        }
        if self.bgr {
            config.input.normalization.mean.reverse();
            config.input.normalization.std.reverse();
        }
        Ok(config)
    }
}

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Converted {
    /// What was found.
    pub contents: Contents,
    /// Tensors written.
    pub tensors: usize,
    /// Values written, norms' statistics included.
    pub values: usize,
    /// What was read from the file's configuration, what was assumed, and what was left out: a line each.
    pub notes: Vec<String>,
}

/// Converts the `.pth` file `input` to `output`.
///
/// The model is recognised from tensors and training configuration, unless `options` name it. Tensors that
/// are no weights (counters, averages) are left out.
///
/// A classifier's parameters are stored under the names they have in a model, `backbone.` before their own,
/// and the metadata names the backbone ([`BACKBONE_KEY`]) instead of a model: such a file is for training to
/// start from.
///
/// # Errors
/// As [`pth::read`]; [`Error::Weights`] listing every tensor that does not fit the model; [`Error::Usage`] if
/// the file holds neither a K-Net nor a known classifier, or contradicts itself; as [`write_safetensors`].
pub fn convert(input: &Path, output: &Path, options: &ConvertOptions) -> Result<Converted> {
    let mut file = pth::read(input)?;
    let mut notes = Vec::new();
    let authors = swin::rename(&mut file.tensors);
    if authors {
        notes.push("read: a Swin by its authors' names, whose patch merging is put in mmdet's order".into());
    }
    let contents = recognise::contents(input, &file, options, &mut notes)?;
    let mut by_name: BTreeMap<String, &PthTensor> =
        file.tensors.iter().map(|t| (contents.stored_name(&t.name), t)).collect();
    let params = contents.parameters()?;
    take_averages(input, &params, &mut by_name, options.ema, &mut notes)?;
    let shape = |name: &str| by_name.get(name).map(|t| t.shape.as_slice());
    let mut report = fit(&params, by_name.keys().map(String::as_str), shape);
    let counters = by_name.keys().filter(|name| is_bookkeeping(name)).count();
    if counters > 0 {
        notes
            .push(format!("left out: {counters} entries that are no weights (counters of batches, indices)"));
    }
    let mut values = Vec::new();
    for param in &params {
        let Some(tensor) = by_name.get(param.key.as_str()) else { continue };
        let mut value = tensor.to_f32();
        if authors && swin::merges_patches(&param.key) {
            value = swin::reorder(&value);
        }
        if options.bgr && FIRST_CONVOLUTIONS.contains(&param.key.as_str()) {
            reverse_inputs(value.data_mut(), &param.upstream_shape);
        }
        if first_non_finite(value.data()).is_some() {
            report.non_finite.push(param.key.clone());
        }
        values.push((param, value));
    }
    if !report.is_clean() {
        let (path, model) = (input.to_path_buf(), contents.name());
        return Err(Error::Weights { path, model, report: Box::new(report) });
    }
    let mut metadata = BTreeMap::new();
    let (key, text) = contents.metadata();
    metadata.insert(key.to_string(), text);
    let name = input.file_name().unwrap_or_default();
    metadata.insert(SOURCE_KEY.to_string(), name.to_string_lossy().into_owned());
    let tensors = values.iter().map(|(param, value)| TensorOut {
        name: &param.key,
        shape: &param.upstream_shape,
        data: match options.precision {
            StoredPrecision::F32 => TensorData::F32(value.data()),
            StoredPrecision::F16 => TensorData::F16(value.data()),
        },
    });
    write_safetensors(output, tensors, &metadata)?;
    let count = values.iter().map(|(_, value)| value.data().len()).sum();
    Ok(Converted { contents, tensors: values.len(), values: count, notes })
}

/// The convolutions that read the photo's channels.
const FIRST_CONVOLUTIONS: [&str; 3] =
    ["backbone.conv1.weight", "backbone.stem.0.weight", "backbone.patch_embed.projection.weight"];

/// Reverses the order of the input channels of a convolution `[O, I, ...]`.
fn reverse_inputs(values: &mut [f32], shape: &[usize]) {
    let taps: usize = shape[2..].iter().product();
    for filter in values.chunks_exact_mut((shape[1] * taps).max(1)) {
        for channel in 0..shape[1] / 2 {
            let (first, last) = filter.split_at_mut((shape[1] - 1 - channel) * taps);
            first[channel * taps..][..taps].swap_with_slice(&mut last[..taps]);
        }
    }
}

/// Removes the averages that mmcv's `EMAHook` keeps beside the weights, or puts them in the weights' places.
fn take_averages<'a>(
    input: &Path,
    params: &[Param],
    by_name: &mut BTreeMap<String, &'a PthTensor>,
    take: bool,
    notes: &mut Vec<String>,
) -> Result<()> {
    let mut averages: Vec<(&Param, &'a PthTensor)> = Vec::new();
    for param in params {
        averages.extend(by_name.remove(&ema_name(&param.key)).map(|average| (param, average)));
    }
    let count = averages.len();
    if take && count == 0 {
        return Err(Error::usage(format!("{}: holds no averages `ema_*` for --ema", input.display())));
    }
    if take {
        by_name.extend(averages.into_iter().map(|(param, average)| (param.key.clone(), average)));
        notes.push(format!("taken by --ema: {count} averages in place of the weights"));
    } else if count > 0 {
        notes.push(format!("left out: {count} averages `ema_*` (--ema takes them in place of the weights)"));
    }
    Ok(())
}
