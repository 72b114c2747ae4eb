//! What a checkpoint says of its quantized filters.
//!
//! The filters of a layer are a tensor of I8 of the shape and name that they had, with one positive number a
//! filter in an F32 tensor of that name and `_scale`: a filter is its integers times its number. All other
//! tensors are as in any checkpoint. The metadata hold, under [`QUANTIZATION_KEY`], the levels that each
//! layer's map is brought to, and how they were found. Nothing in it is of a CPU: whoever computes in other
//! numbers reads the filters as f32.

use crate::checkpoint::{Checkpoint, StorageType};
use crate::error::{Error, Result};
use crate::graph::passes::quantize::Quantization;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Key of what a checkpoint says of its quantized filters.
pub const QUANTIZATION_KEY: &str = "knet.quantization";

/// Version of what is under the key.
const FORMAT: u32 = 1;

/// What a file says of its quantized filters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantized {
    format: u32,
    /// How far levels reach, for people.
    pub clip: String,
    /// Photos that the levels were found on.
    pub photos: usize,
    /// The levels of each layer's map, by the name of its filters.
    pub layers: Quantization,
}

/// Name of the numbers of a layer's filters.
pub fn scale_name(key: &str) -> String {
    format!("{key}_scale")
}

impl Quantized {
    /// Of these levels.
    pub fn new(clip: String, photos: usize, layers: Quantization) -> Quantized {
        Quantized { format: FORMAT, clip, photos, layers }
    }

    /// What `file` says of its filters; `None` if they are numbers as in any checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a version that is not this one's, a text that is damaged, levels without a
    /// positive step, and filters that are not I8 or lack their numbers.
    pub fn of(file: &Checkpoint) -> Result<Option<Quantized>> {
        let Some(quantized) = Quantized::said(file)? else { return Ok(None) };
        for (key, levels) in &quantized.layers {
            check(file, key, levels.step).map_err(|reason| Error::Checkpoint {
                path: file.path().to_path_buf(),
                key: Some(key.clone()),
                offset: None,
                reason,
            })?;
        }
        Ok(Some(quantized))
    }

    /// What the metadata say, whatever tensors there are.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for another version and a damaged text.
    pub(in crate::engine) fn said(file: &Checkpoint) -> Result<Option<Quantized>> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Some(text) = file.metadata().get(QUANTIZATION_KEY) else { return Ok(None) };
        let fault =
            |reason: String| Error::checkpoint(file.path(), format!("`{QUANTIZATION_KEY}`: {reason}"));
        let version: Version = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        if version.format != FORMAT {
            let format = version.format;
            return Err(fault(format!(
                "format {format}, this knet reads {FORMAT}: use one as new as the file, or quantize again"
            )));
        }
        serde_json::from_str(text).map(Some).map_err(|error| fault(error.to_string()))
    }

    /// The text for the metadata.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A tensor of the file as f32: filters times their numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::load_f32`].
    pub fn load(&self, file: &Checkpoint, key: &str) -> Result<Tensor> {
        let tensor = file.load_f32(key)?;
        if !self.layers.contains_key(key) {
            return Ok(tensor);
        }
        let scale = file.load_f32(&scale_name(key))?;
        let shape = tensor.shape();
        let depth = (tensor.data().len() / scale.data().len().max(1)).max(1);
        let filters = tensor.data().chunks(depth).zip(scale.data());
        Ok(Tensor::new(
            shape,
            filters.flat_map(|(filter, scale)| filter.iter().map(move |v| v * scale)).collect(),
        ))
    }

    /// Names of tensors that hold no parameter of the model.
    pub fn scale_names(&self) -> impl Iterator<Item = String> {
        self.layers.keys().map(|key| scale_name(key))
    }

    /// As text by layer, for people.
    pub fn summary(&self) -> String {
        let signed = self.layers.values().filter(|levels| levels.signed).count();
        format!(
            "{} layers of int8 ({signed} with a sign), levels by {} on {} photo{}",
            self.layers.len(),
            self.clip,
            self.photos,
            if self.photos == 1 { "" } else { "s" }
        )
    }
}

/// Whether a file has what a layer needs.
fn check(file: &Checkpoint, key: &str, step: f32) -> Result<(), String> {
    let positive = |v: f32| v.is_finite() && v > 0.0;
    if !positive(step) {
        return Err(format!("its map's levels are {step} apart"));
    }
    let Some(info) = file.info(key) else { return Err("no tensor of this name in the file".into()) };
    let name = scale_name(key);
    if info.dtype != StorageType::I8 || info.shape.is_empty() {
        return Err(format!("is {} {:?}, quantized filters are I8", info.dtype, info.shape));
    }
    match file.info(&name) {
        Some(scale) if scale.dtype == StorageType::F32 && scale.shape[..] == info.shape[..1] => {}
        Some(scale) => {
            let (found, wanted) = (&scale.shape, &info.shape[..1]);
            return Err(format!("`{name}` is {} {found:?}, must be F32 {wanted:?}", scale.dtype));
        }
        None => return Err(format!("`{name}` is missing")),
    }
    let scale = file.load_f32(&name).map_err(|error| error.to_string())?;
    match scale.data().iter().position(|&v| !positive(v)) {
        Some(at) => Err(format!("`{name}` of filter {at} is {}", scale.data()[at])),
        None => Ok(()),
    }
}

/// Filters as they are stored: their integers, and one number each.
pub(super) fn encode(filters: &Tensor) -> (Vec<u8>, Vec<f32>) {
    use crate::ops::levels::Levels;
    let depth = filters.shape().dims()[1..].iter().product::<usize>().max(1);
    let (mut integers, mut scale) = (Vec::with_capacity(filters.data().len()), Vec::new());
    for filter in filters.data().chunks(depth) {
        let levels = Levels::of_filter(filter);
        scale.push(levels.step);
        integers.extend(filter.iter().map(|&v| levels.level(v) as i8 as u8));
    }
    (integers, scale)
}
