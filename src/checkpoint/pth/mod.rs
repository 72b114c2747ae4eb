//! Reading PyTorch checkpoints (`.pth`, `.pt`) as mmcv, mmdet and mmseg write them, without executing
//! anything.
//!
//! A file of `torch.save` is a pickle, a program for Python's object machine, plus raw storages. Only an
//! allow-list of inert constructors is understood; any other global is refused by name. Limits on values,
//! unpacked bytes and tensor bytes are proportional to the size of the file, so that a hostile one can
//! neither run code nor exhaust memory.

mod archive;
mod call;
mod meta;
mod pickle;
mod value;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use self::archive::Archive;
use self::value::{Id, TensorArgs, Value};
use super::StorageType;
use super::fault::Fault;
use super::safetensors::read_stable;
use crate::error::Result;
use crate::tensor::{MAX_RANK, Tensor};

/// Container of a `.pth` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PthFormat {
    /// Zip archive, PyTorch 1.6 and later.
    Zip,
    /// Consecutive pickles and raw storages, before PyTorch 1.6.
    Legacy,
}

/// What a `.pth` file holds of use: the model's weights and plain facts about it.
#[derive(Clone, Debug)]
pub struct PthFile {
    /// The container.
    pub format: PthFormat,
    /// The `state_dict` in its own order, a leading `module.` (of `DataParallel`) stripped from each name.
    pub tensors: Vec<PthTensor>,
    /// The plain part of the `meta` entry (`CLASSES`, `mmdet_version`, `config`, ...): strings, numbers,
    /// booleans, lists and maps. Values of other kinds are left out. Empty if the file has no `meta`.
    pub meta: BTreeMap<String, serde_json::Value>,
}

/// A tensor of a `.pth` file, copied into row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct PthTensor {
    /// Upstream name.
    pub name: String,
    /// Stored element type.
    pub dtype: StorageType,
    /// Shape, at most [`MAX_RANK`] dimensions.
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major, whatever the strides in the file.
    pub bytes: Vec<u8>,
}

impl PthTensor {
    /// The values as f32: f16 and bf16 widened exactly, f64 and integers beyond 2^24 rounded.
    pub fn to_f32(&self) -> Tensor {
        Tensor::new(self.shape.as_slice(), self.dtype.widen(&self.bytes))
    }
}

/// Reads a `.pth` file: the `state_dict` entry if there is one, else the top-level dict itself, and `meta`.
/// The optimizer and everything else is skipped, its storages unread.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the file cannot be read;
/// [`Error::Checkpoint`](crate::Error::Checkpoint) if it is neither of the two formats, is damaged or
/// truncated, names a global that is not allowed, unpacks to far more than its size, or holds a tensor that
/// reaches outside its storage.
pub fn read(path: impl AsRef<Path>) -> Result<PthFile> {
    let path = path.as_ref();
    read_bytes(path, &read_stable(path)?)
}

/// Like [`read`], from memory; `name` stands for the path in errors.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) as for [`read`].
pub fn read_bytes(name: impl AsRef<Path>, file: &[u8]) -> Result<PthFile> {
    parse(file).map_err(|fault| fault.at(name.as_ref()))
}

fn parse(file: &[u8]) -> Result<PthFile, Fault> {
    if file.is_empty() {
        return Err(Fault::file(None, "empty file"));
    }
    let (format, mut archive) = if archive::is_zip(file) {
        (PthFormat::Zip, archive::open_zip(file)?)
    } else if let Some(archive) = archive::open_legacy(file)? {
        (PthFormat::Legacy, archive)
    } else {
        return Err(Fault::file(0, "neither the zip nor the legacy format of torch.save"));
    };
    let root = archive.pickle.root;
    let state = archive.pickle.lookup(root, "state_dict").unwrap_or(root);
    let Value::Dict(pairs) = archive.pickle.get(state) else {
        return Err(Fault::file(archive.base, "the `state_dict` is not a dict"));
    };
    let pairs = pairs.clone();
    // Overlapping or repeating tensors (strides of 0) could claim far more than the file holds.
    let mut budget = (file.len() as u64).saturating_mul(4).saturating_add(1 << 20);
    let mut seen = HashSet::new();
    let mut tensors = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let Some(key) = archive.pickle.str(key) else {
            return Err(Fault::file(archive.base, "a key of the `state_dict` is not a string"));
        };
        let name = key.strip_prefix("module.").unwrap_or(key).to_string();
        let tensor = read_tensor(&mut archive, &name, value, &mut budget).map_err(|f| f.of_tensor(&name))?;
        if !seen.insert(name.clone()) {
            return Err(Fault::file(None, "two tensors of this name").of_tensor(&name));
        }
        tensors.push(tensor);
    }
    if tensors.is_empty() {
        return Err(Fault::file(archive.base, "the `state_dict` holds no tensor"));
    }
    let meta = archive.pickle.lookup(root, "meta");
    let meta = meta.map(|id| meta::plain_entries(&archive.pickle, id)).unwrap_or_default();
    Ok(PthFile { format, tensors, meta })
}

fn read_tensor(archive: &mut Archive, name: &str, id: Id, budget: &mut u64) -> Result<PthTensor, Fault> {
    let &Value::Tensor(args) = archive.pickle.get(id) else {
        return Err(Fault::file(archive.base, "is not a tensor (is there a `state_dict` in the file?)"));
    };
    let at = archive.base + args.at;
    let place = if archive.entry.is_empty() { "" } else { "entry `data.pkl`: " };
    let fault = |reason: String| Fault::file(at, format!("{place}{reason}"));
    let Value::Storage(storage) = *archive.pickle.get(args.storage) else {
        return Err(fault("has no storage".into()));
    };
    let window = View::new(archive, &args).map_err(fault)?;
    // A view is a window of its storage, and the tensor a window of the view.
    let (first, elements) = storage.view.unwrap_or((0, storage.numel));
    let fits = first.checked_add(elements).is_some_and(|end| end <= storage.numel)
        && window.end.is_some_and(|end| end <= elements);
    if !fits {
        return Err(fault(format!(
            "shape {:?} with strides {:?} at offset {} reaches outside its storage of {elements} elements",
            window.shape, window.strides, window.offset
        )));
    }
    let width = storage.dtype.size();
    let bytes = (window.count as u64).saturating_mul(width as u64);
    *budget = budget
        .checked_sub(bytes)
        .ok_or_else(|| fault(format!("shape {:?} claims far more than the file holds", window.shape)))?;
    let (_, stored) = archive.storage(&storage)?;
    // In range: the storage holds `numel` elements and the window ends inside them.
    let stored = &stored[(first + window.offset) as usize * width..];
    Ok(PthTensor {
        name: name.to_string(),
        dtype: storage.dtype,
        bytes: window.gather(stored, width),
        shape: window.shape,
    })
}

/// Shape and strides of a tensor over its storage, all in elements.
struct View {
    offset: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
    count: usize,
    /// One past the last element touched; `None` on overflow.
    end: Option<u64>,
}

impl View {
    fn new(archive: &Archive, args: &TensorArgs) -> Result<Self, String> {
        let p = &archive.pickle;
        let list = |id: Id, what: &str| -> Result<Vec<usize>, String> {
            let items = p.items(id).ok_or_else(|| format!("{what} is not a tuple"))?;
            if items.len() > MAX_RANK {
                return Err(format!("{} dimensions, at most {MAX_RANK} are supported", items.len()));
            }
            let sizes = items.iter().map(|&d| p.u64(d).and_then(|v| usize::try_from(v).ok()));
            sizes.collect::<Option<_>>().ok_or_else(|| format!("{what} has a negative or malformed element"))
        };
        let (shape, mut strides) = (list(args.size, "shape")?, list(args.stride, "strides")?);
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} and strides {strides:?} differ in length"));
        }
        // The stride of a dimension of one element is never taken, and may be anything.
        strides.iter_mut().zip(&shape).filter(|(_, d)| **d == 1).for_each(|(s, _)| *s = 0);
        let offset = p.u64(args.offset).ok_or("negative or malformed storage offset")?;
        // The product over non-zero dimensions bounds every partial product, zeros or not.
        let bound = shape.iter().filter(|&&d| d != 0).try_fold(1usize, |n, &d| n.checked_mul(d));
        let bound = bound.filter(|&n| n <= isize::MAX as usize / 8);
        let bound = bound.ok_or_else(|| format!("shape {shape:?} overflows"))?;
        let count = if shape.contains(&0) { 0 } else { bound };
        let end = if count == 0 {
            Some(offset)
        } else {
            shape
                .iter()
                .zip(&strides)
                .try_fold(offset, |end, (&d, &s)| end.checked_add((d as u64 - 1).checked_mul(s as u64)?))
        };
        let end = end.and_then(|e| e.checked_add(u64::from(count != 0)));
        Ok(View { offset, shape, strides, count, end })
    }

    /// The elements in row-major order, `stored` starting at the first one.
    fn gather(&self, stored: &[u8], width: usize) -> Vec<u8> {
        let mut dense = 1;
        let contiguous = self.shape.iter().zip(&self.strides).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == dense;
            dense *= d;
            fits
        });
        if contiguous || self.count == 0 {
            return stored[..self.count * width].to_vec();
        }
        let mut out = Vec::with_capacity(self.count * width);
        let mut index = [0usize; MAX_RANK];
        let mut at = 0usize;
        for _ in 0..self.count {
            out.extend_from_slice(&stored[at * width..(at + 1) * width]);
            for axis in (0..self.shape.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        out
    }
}
