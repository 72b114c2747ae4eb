//! From an official `.pth` file to a self-describing safetensors file.

use super::source::{CONFIG_KEY, fit, parameters};
use crate::checkpoint::pth::{self, PthFile, PthTensor};
use crate::checkpoint::{TensorData, TensorOut, first_non_finite, write_safetensors};
use crate::error::{Error, Result};
use crate::model::{BackboneConfig, Config, Task};
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

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The model found.
    pub config: Config,
    /// Tensors written.
    pub tensors: usize,
    /// Values written, norms' statistics included.
    pub values: usize,
}

/// Converts the `.pth` file `input` to `output`.
///
/// The model is `config` if given, else it is recognised from the shapes of the tensors (see [`recognise`]).
///
/// # Errors
/// As [`pth::read`]; [`Error::Weights`] listing every tensor that does not fit the model; [`Error::Usage`] if
/// the file holds no K-Net; as [`write_safetensors`].
pub fn convert(
    input: &Path,
    output: &Path,
    config: Option<Config>,
    precision: Precision,
) -> Result<Converted> {
    let file = pth::read(input)?;
    let config = match config {
        Some(config) => config,
        None => recognise(input, &file)?,
    };
    let by_name: BTreeMap<&str, &PthTensor> = file.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let params = parameters(&config)?;
    let shape = |name: &str| by_name.get(name).map(|t| t.shape.as_slice());
    let mut report = fit(&params, by_name.keys().copied(), shape);
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
        let (path, model) = (input.to_path_buf(), config.name.clone());
        return Err(Error::Weights { path, model, report: Box::new(report) });
    }
    let mut metadata = BTreeMap::new();
    metadata.insert(CONFIG_KEY.to_string(), config.to_json());
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
    Ok(Converted { config, tensors: values.len(), values: count })
}

/// The model a `state_dict` belongs to, from its shapes: backbone depth, width, kernels, classes and stages. 133
/// classes are COCO panoptic (80 things, 53 stuff); any other number is taken for an instance model. Class
/// names come from the checkpoint's `meta` if it lists as many.
///
/// # Errors
/// [`Error::Usage`] if the tensors a K-Net must have are not there.
pub fn recognise(path: &Path, file: &PthFile) -> Result<Config> {
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
