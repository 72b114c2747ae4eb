//! From a `.pth` file, an official K-Net or an ImageNet classifier, to a self-describing safetensors file.

use super::source::{BACKBONE_KEY, CONFIG_KEY, fit, parameters};
use crate::checkpoint::pth::{self, PthFile, PthTensor};
use crate::checkpoint::{TensorData, TensorOut, first_non_finite, write_safetensors};
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::model::{BackboneConfig, Config, SIZE_DIVISOR, Task, efficientnet_lite};
use std::collections::BTreeMap;
use std::path::Path;

/// How weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
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
    Model(Config),
    /// A classifier that serves as a backbone.
    Classifier {
        /// The backbone.
        backbone: BackboneConfig,
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
        match *self {
            Contents::Classifier { backbone: BackboneConfig::EfficientNetLite { variant }, classes } => {
                let graph = efficientnet_lite::classifier(variant, 1, [SIZE_DIVISOR; 2], classes)?;
                Ok(graph.params().cloned().collect())
            }
            Contents::Classifier { backbone, .. } => {
                Err(Error::usage(format!("no classifier is known for backbone `{}`", backbone.name())))
            }
            Contents::Model(ref config) => parameters(config),
        }
    }

    /// Name under which a tensor of the source is stored.
    fn stored_name(&self, source: &str) -> String {
        match self {
            Contents::Model(_) => source.to_string(),
            Contents::Classifier { .. } => format!("{BACKBONE_PREFIX}{source}"),
        }
    }

    fn metadata(&self) -> (&'static str, String) {
        match self {
            Contents::Model(config) => (CONFIG_KEY, config.to_json()),
            Contents::Classifier { backbone, .. } => (BACKBONE_KEY, backbone.to_json()),
        }
    }
}

/// What the names of a backbone's parameters start with in a model, but not in a classifier's `state_dict`.
const BACKBONE_PREFIX: &str = "backbone.";

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Converted {
    /// What was found.
    pub contents: Contents,
    /// Tensors written.
    pub tensors: usize,
    /// Values written, norms' statistics included.
    pub values: usize,
}

/// Converts the `.pth` file `input` to `output`.
///
/// The model is `config` if given, else it is recognised from the tensors (see [`recognise`]).
///
/// A classifier's parameters are stored under the names they have in a model, `backbone.` before their own, and
/// the metadata names the backbone ([`BACKBONE_KEY`]) instead of a model: such a file is for training to start from.
///
/// # Errors
/// As [`pth::read`]; [`Error::Weights`] listing every tensor that does not fit the model; [`Error::Usage`] if
/// the file holds neither
/// a K-Net nor a known classifier; as [`write_safetensors`].
pub fn convert(
    input: &Path,
    output: &Path,
    config: Option<Config>,
    precision: Precision,
) -> Result<Converted> {
    let file = pth::read(input)?;
    let contents = match config {
        Some(config) => Contents::Model(config),
        None => recognise(input, &file)?,
    };
    let by_name: BTreeMap<String, &PthTensor> =
        file.tensors.iter().map(|t| (contents.stored_name(&t.name), t)).collect();
    let params = contents.parameters()?;
    let shape = |name: &str| by_name.get(name).map(|t| t.shape.as_slice());
    let mut report = fit(&params, by_name.keys().map(String::as_str), shape);
    let mut values = Vec::new();
    for param in &params {
        let Some(tensor) = by_name.get(param.key.as_str()) else { continue };
        let value = tensor.to_f32();
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
    if let Some(name) = input.file_name() {
        metadata.insert("knet.source".to_string(), name.to_string_lossy().into_owned());
    }
    let tensors = values.iter().map(|(param, value)| TensorOut {
        name: &param.key,
        shape: &param.upstream_shape,
        data: match precision {
            Precision::F32 => TensorData::F32(value.data()),
            Precision::F16 => TensorData::F16(value.data()),
        },
    });
    write_safetensors(output, tensors, &metadata)?;
    let count = values.iter().map(|(_, value)| value.data().len()).sum();
    Ok(Converted { contents, tensors: values.len(), values: count })
}

/// What a `state_dict` belongs to: a classifier of the Python package `efficientnet_lite_pytorch`, told by its stem and
/// number of blocks, else a K-Net with a ResNet.
///
/// # Errors
/// [`Error::Usage`] if the tensors a K-Net must have are not there.
pub fn recognise(path: &Path, file: &PthFile) -> Result<Contents> {
    let first_dim = |name: &str| {
        file.tensors.iter().find(|t| t.name == name).map(|t| t.shape.first().copied().unwrap_or(0))
    };
    match (first_dim("_conv_stem.weight"), first_dim("_fc.weight")) {
        (Some(_), Some(classes)) => {
            // Lite0 has blocks 0 to 15, Lite2 0 to 22.
            let variant = if first_dim("_blocks.16._project_conv.weight").is_some() { 2 } else { 0 };
            Ok(Contents::Classifier { backbone: BackboneConfig::EfficientNetLite { variant }, classes })
        }
        _ => Ok(Contents::Model(recognise_model(path, file)?)),
    }
}

/// The K-Net a `state_dict` belongs to, from its shapes: backbone depth, width, kernels, classes and stages. 133
/// classes are COCO panoptic (80 things, 53 stuff); any other number is taken for an instance model. Class
/// names come from the checkpoint's `meta` if it lists as many.
///
/// # Errors
/// [`Error::Usage`] if the tensors a K-Net must have are not there.
fn recognise_model(path: &Path, file: &PthFile) -> Result<Config> {
    let shape = |name: &str| file.tensors.iter().find(|t| t.name == name).map(|t| t.shape.as_slice());
    let need = |name: &str| {
        shape(name).ok_or_else(|| {
            Error::usage(format!(
                "{}: not a K-Net detector checkpoint: no tensor `{name}` ({} tensors, first `{}`)",
                path.display(),
                file.tensors.len(),
                file.tensors.first().map_or("none", |t| t.name.as_str())
            ))
        })
    };
    let first = |dims: &[usize]| dims.first().copied().unwrap_or(0);
    let kernels = need("rpn_head.init_kernels.weight")?;
    let classes = first(need("roi_head.mask_head.0.fc_cls.weight")?);
    let feedforward = first(need("roi_head.mask_head.0.ffn.layers.0.0.weight")?);
    let stages =
        (0..).take_while(|i| shape(&format!("roi_head.mask_head.{i}.fc_cls.weight")).is_some()).count();
    need("backbone.layer1.0.conv1.weight")?;
    let depth = if shape("backbone.layer3.22.conv1.weight").is_some() { 101 } else { 50 };
    let panoptic = classes == 133;
    let suffix = if panoptic { "_panoptic" } else { "" };
    let mut config = Config::named(&format!("knet_s3_r{depth}_fpn{suffix}"))?;
    config.name = format!("knet_s{stages}_r{depth}_fpn{suffix}");
    config.task = if panoptic { Task::Panoptic } else { Task::Instance };
    config.backbone = BackboneConfig::ResNet { depth };
    config.channels = kernels.get(1).copied().unwrap_or(0);
    config.proposals = first(kernels);
    config.feedforward_channels = feedforward;
    config.stages = stages;
    if !panoptic {
        config.thing_classes = classes;
    }
    let names = file.meta.get("CLASSES").and_then(|v| v.as_array());
    let names: Vec<String> =
        names.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_string)).collect();
    if names.len() == config.classes() {
        config.class_names = names;
    }
    config.validate()?;
    Ok(config)
}
