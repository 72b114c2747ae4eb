//! Writing safetensors.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;

use half::f16;
use serde_json::{Map, json};

use super::StorageType;
use crate::error::{Error, Result};
use crate::fsio::atomic_write;

/// Data of a tensor to write, row-major.
#[derive(Clone, Copy, Debug)]
pub enum TensorData<'a> {
    /// Values stored as f32.
    F32(&'a [f32]),
    /// Values stored as f16, rounded to nearest even. A finite value beyond the range of f16 is refused.
    F16(&'a [f32]),
    /// Little-endian bytes of the given type, stored as they are.
    Raw(StorageType, &'a [u8]),
}

impl TensorData<'_> {
    pub(super) fn dtype(&self) -> StorageType {
        match self {
            TensorData::F32(_) => StorageType::F32,
            TensorData::F16(_) => StorageType::F16,
            TensorData::Raw(dtype, _) => *dtype,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            TensorData::F32(values) | TensorData::F16(values) => values.len() * self.dtype().size(),
            TensorData::Raw(_, bytes) => bytes.len(),
        }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            TensorData::F32(values) => write_chunked(values, out, f32::to_le_bytes),
            TensorData::F16(values) => write_chunked(values, out, |v| f16::from_f32(v).to_le_bytes()),
            TensorData::Raw(_, bytes) => out.write_all(bytes),
        }
    }
}

fn write_chunked<const N: usize>(
    values: &[f32],
    out: &mut impl Write,
    f: impl Fn(f32) -> [u8; N],
) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(N << 14);
    for chunk in values.chunks(1 << 14) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|&v| f(v)));
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// A named tensor to write.
#[derive(Clone, Copy, Debug)]
pub struct TensorOut<'a> {
    /// Upstream name.
    pub name: &'a str,
    /// Shape, row-major.
    pub shape: &'a [usize],
    /// The elements.
    pub data: TensorData<'a>,
}

/// Writes a safetensors file, all or nothing (see [`atomic_write`]).
///
/// Tensors keep their order except that wider element types go first, which keeps every tensor aligned to
/// its element size. `metadata` becomes `__metadata__`. Equal input gives equal bytes.
///
/// # Errors
/// [`Error::Checkpoint`], before anything is written, for a repeated name, the reserved name
/// `__metadata__`, data that does not fit the shape or a finite value that f16 cannot hold;
/// [`Error::Io`] if the file cannot be written.
pub fn write_safetensors<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let (path, mut tensors) = (path.as_ref(), tensors.into_iter().collect::<Vec<_>>());
    let header = header(path, &mut tensors, metadata, 8)?;
    atomic_write(path, |out| write_all(out, &header, &tensors))
}

/// Puts `tensors` into their order in the file, and gives all that comes before their data, which begin at a
/// multiple of `alignment`, a power of two from 8.
pub(super) fn header(
    path: &Path,
    tensors: &mut [TensorOut<'_>],
    metadata: &BTreeMap<String, String>,
    alignment: usize,
) -> Result<Vec<u8>> {
    tensors.sort_by_key(|t| std::cmp::Reverse(t.data.dtype().size()));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut names = HashSet::new();
    let mut end = 0usize;
    for tensor in tensors.iter() {
        check(tensor, &mut names).map_err(|reason| Error::Checkpoint {
            path: path.to_path_buf(),
            key: Some(tensor.name.to_string()),
            offset: None,
            reason,
        })?;
        let begin = end;
        end += tensor.data.bytes();
        let entry =
            json!({"dtype": tensor.data.dtype().name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name.to_string(), entry);
    }
    let text = serde_json::Value::Object(header).to_string().into_bytes();
    let length = (8 + text.len()).next_multiple_of(alignment) - 8;
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(text);
    header.resize(8 + length, b' ');
    Ok(header)
}

pub(super) fn write_all(
    out: &mut impl Write,
    header: &[u8],
    tensors: &[TensorOut<'_>],
) -> std::io::Result<()> {
    out.write_all(header)?;
    tensors.iter().try_for_each(|tensor| tensor.data.write(out))
}

fn check<'a>(tensor: &TensorOut<'a>, names: &mut HashSet<&'a str>) -> Result<(), String> {
    if tensor.name == "__metadata__" {
        return Err("this name is reserved by the format".into());
    }
    if !names.insert(tensor.name) {
        return Err("two tensors of this name".into());
    }
    let dtype = tensor.data.dtype();
    let wanted = tensor.shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim));
    if wanted != Some(tensor.data.bytes()) {
        return Err(format!(
            "shape {:?} of {dtype} does not fit {} bytes of data",
            tensor.shape,
            tensor.data.bytes()
        ));
    }
    if let TensorData::F16(values) = tensor.data
        && let Some(value) = values.iter().find(|v| v.is_finite() && f16::from_f32(**v).is_infinite())
    {
        return Err(format!("{value} is beyond the range of f16"));
    }
    Ok(())
}
