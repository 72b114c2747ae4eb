//! Writing a quantized checkpoint.

use super::file::{QUANTIZATION_KEY, Quantized, encode, scale_name};
use crate::checkpoint::{StorageType, TensorData, TensorOut, write_safetensors};
use crate::engine::WeightSource;
use crate::engine::source::{self, CONFIG_KEY, Opened};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Layers of int8.
    pub layers: usize,
    /// Bytes of the tensors.
    pub bytes: usize,
    /// What they were before.
    pub before: usize,
}

/// A tensor to be written.
struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    dtype: StorageType,
    bytes: Cow<'a, [u8]>,
}

/// Writes the weights of `source` with the layers of `quantized` as integers, all or nothing. What else a
/// file has, it keeps.
///
/// # Errors
/// As [`source::open`]; [`Error::Usage`] for weights that are quantized already; [`Error::Io`] for a file
/// that cannot be written.
pub fn write(
    weights: &WeightSource,
    name: Option<&str>,
    quantized: &Quantized,
    out: impl AsRef<Path>,
) -> Result<Written> {
    let Opened { config, load, file, quantized: already } = source::open(weights, name)?;
    if already.is_some() {
        return Err(already_quantized(weights));
    }
    let mut entries = Vec::new();
    let mut before = 0;
    let mut metadata = BTreeMap::new();
    let layer = |key: &str, shape: &[usize], filters: &Tensor| {
        let (integers, scale) = encode(filters);
        let bytes = bytemuck::cast_slice(&scale).to_vec();
        let (name, filters) = (scale_name(key), vec![scale.len()]);
        let scale = Entry { name, shape: filters, dtype: StorageType::F32, bytes: bytes.into() };
        let (name, shape) = (key.to_string(), shape.to_vec());
        [Entry { name, shape, dtype: StorageType::I8, bytes: integers.into() }, scale]
    };
    match &file {
        Some(file) => {
            metadata.clone_from(file.metadata());
            for info in file.tensors() {
                before += info.bytes;
                if quantized.layers.contains_key(&info.name) {
                    entries.extend(layer(&info.name, &info.shape, &file.load_f32(&info.name)?));
                } else if let Some(bytes) = file.bytes(&info.name) {
                    let (name, shape, dtype) = (info.name.clone(), info.shape.clone(), info.dtype);
                    entries.push(Entry { name, shape, dtype, bytes: bytes.into() });
                }
            }
        }
        None => {
            for param in source::parameters(&config)? {
                let tensor = load(&param)?;
                before += size_of_val(tensor.data());
                if quantized.layers.contains_key(&param.key) {
                    entries.extend(layer(&param.key, &param.upstream_shape, &tensor));
                } else {
                    let bytes = bytemuck::cast_slice(tensor.data()).to_vec().into();
                    let (name, shape) = (param.key, param.upstream_shape);
                    entries.push(Entry { name, shape, dtype: StorageType::F32, bytes });
                }
            }
        }
    }
    metadata.insert(CONFIG_KEY.into(), config.to_json());
    metadata.insert(QUANTIZATION_KEY.into(), quantized.to_json());
    let tensors = entries.iter().map(|entry| TensorOut {
        name: &entry.name,
        shape: &entry.shape,
        data: TensorData::Raw(entry.dtype, &entry.bytes),
    });
    write_safetensors(out, tensors, &metadata)?;
    let bytes = entries.iter().map(|entry| entry.bytes.len()).sum();
    Ok(Written { layers: quantized.layers.len(), bytes, before })
}

/// Of weights that were quantized before.
pub fn already_quantized(weights: &WeightSource) -> Error {
    Error::usage(format!("{weights}: is quantized already: quantize the checkpoint that it was made of"))
}
