//! Reading safetensors: 8 bytes little-endian header length `n`, `n` bytes of JSON, then the data.
//!
//! The header maps each tensor name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted
//! from the end of the header, and optionally `__metadata__` to a map of strings. The file is checked in
//! full when opened: tensors must tile the data from 0 to the end of the file without hole or overlap, and
//! every length must be shape x element size, so that later reads cannot fail half-way. A header whose
//! length is no multiple of 8 only means unaligned data, which is read all the same.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use super::fault::Fault;
use super::{StorageType, seal};
use crate::error::{Error, Result};
use crate::fsio::open_file;
use crate::tensor::{MAX_RANK, Tensor};

/// Largest accepted header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor of a [`Checkpoint`], as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Upstream name (`backbone.layer1.0.conv1.weight`).
    pub name: String,
    /// Stored element type.
    pub dtype: StorageType,
    /// Shape as stored (OIHW for convolutions).
    pub shape: Vec<usize>,
    /// Byte offset of the first element in the file.
    pub offset: u64,
    /// Bytes of the data.
    pub bytes: usize,
}

/// A safetensors file, read whole (a [sealed](Checkpoint::open_sealed) one is mapped) and checked in full.
pub struct Checkpoint {
    path: PathBuf,
    file: Contents,
    tensors: Vec<TensorInfo>,
    index: BTreeMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// The bytes of a file.
enum Contents {
    Read(Vec<u8>),
    Mapped(Mmap),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Contents::Read(bytes) => bytes,
            Contents::Mapped(map) => map,
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl Checkpoint {
    /// Reads and checks a safetensors file. It is not looked at again: what others do to it later changes
    /// nothing here.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] if it changes meanwhile or breaks any
    /// rule of the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(path, read_stable(path)?)
    }

    /// Checks safetensors bytes that are already in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the bytes break any rule of the format.
    pub fn from_bytes(name: impl Into<PathBuf>, file: Vec<u8>) -> Result<Self> {
        Self::checked(name.into(), Contents::Read(file))
    }

    /// Maps a file that [`write_sealed`](super::write_sealed) wrote, and checks it in full, its checksum
    /// too. Work is shared among the threads of the caller's rayon pool.
    ///
    /// The file must stay as it is while the checkpoint is there: replace it by renaming another over it. One
    /// that is cut short in place ends the process, as with any mapped file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Checkpoint`] if the file is not sealed or was changed since.
    pub fn open_sealed(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = open_file(path)?;
        if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
            return Err(Error::checkpoint(path, "empty file"));
        }
        // SAFETY: whoever opens a sealed file keeps it as it is, as the documentation asks.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let sealed = Self::checked(path.to_path_buf(), Contents::Mapped(map))?;
        seal::check(&sealed.tensors, &sealed.file).map_err(|fault| fault.at(path))?;
        Ok(sealed)
    }

    fn checked(path: PathBuf, file: Contents) -> Result<Self> {
        let Parsed { tensors, metadata } = parse(&file).map_err(|fault| fault.at(&path))?;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Checkpoint { path, file, tensors, index, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `__metadata__` strings of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors in the order of their data in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Names of all tensors in the order of their data in the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// What the header says about a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// Shape of a tensor as stored.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|t| t.shape.as_slice())
    }

    /// The stored bytes of a tensor, little-endian and row-major, possibly unaligned.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.info(name)?;
        let begin = info.offset as usize; // checked against the length of the file by `parse`
        Some(&self.file[begin..begin + info.bytes])
    }

    /// All bytes of the file.
    pub fn contents(&self) -> &[u8] {
        &self.file
    }

    /// Whether a tensor holds a NaN or an infinity, or what f32 cannot hold; nothing is decoded for it.
    /// `None` if there is no such tensor.
    pub fn any_non_finite(&self, name: &str) -> Option<bool> {
        Some(self.info(name)?.dtype.any_non_finite(self.bytes(name)?))
    }

    /// Reads a tensor as f32. f16 and bf16 are widened exactly, f64 and integers beyond 2^24 rounded.
    /// The values are not searched for NaN; see [`first_non_finite`](super::first_non_finite).
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such tensor or it has more than [`MAX_RANK`] dimensions.
    pub fn load_f32(&self, name: &str) -> Result<Tensor> {
        let refuse = |offset, reason: String| Error::Checkpoint {
            path: self.path.clone(),
            key: Some(name.to_string()),
            offset,
            reason,
        };
        let (Some(info), Some(bytes)) = (self.info(name), self.bytes(name)) else {
            return Err(refuse(None, "no tensor of this name in the file".into()));
        };
        if info.shape.len() > MAX_RANK {
            let reason = format!("{} dimensions, at most {MAX_RANK} are supported", info.shape.len());
            return Err(refuse(Some(info.offset), reason));
        }
        Ok(Tensor::new(info.shape.as_slice(), info.dtype.widen(bytes)))
    }
}

/// The bytes of a file of weights. They are read, not mapped: a mapped file that is cut short ends the
/// process.
///
/// # Errors
/// As [`open_file`]; [`Error::Io`] if it cannot be read; [`Error::Checkpoint`] if the file was written to
/// meanwhile, so that the bytes may be of two versions of it.
pub(super) fn read_stable(path: &Path) -> Result<Vec<u8>> {
    // Of the opened file: one that is renamed into its place meanwhile does no harm.
    let stamp = |file: &File| -> io::Result<(u64, SystemTime)> {
        let meta = file.metadata()?;
        Ok((meta.len(), meta.modified()?))
    };
    let mut file = open_file(path)?;
    let mut bytes = Vec::new();
    let mut read = || -> io::Result<bool> {
        let before = stamp(&file)?;
        file.read_to_end(&mut bytes)?;
        Ok(stamp(&file)? == before && bytes.len() as u64 == before.0)
    };
    match read() {
        Ok(true) => Ok(bytes),
        Ok(false) => {
            let reason =
                "was written to while it was read: replace weights by renaming a complete file over them";
            Err(Error::checkpoint(path, reason))
        }
        Err(e) => Err(Error::io(path, e)),
    }
}

struct Parsed {
    tensors: Vec<TensorInfo>,
    metadata: BTreeMap<String, String>,
}

fn parse(file: &[u8]) -> Result<Parsed, Fault> {
    let size = file.len() as u64;
    if file.is_empty() {
        return Err(Fault::file(None, "empty file"));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Fault::file(size, "truncated: the file ends inside the 8-byte header length"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let reason =
            format!("header of {length} bytes is over the limit of {MAX_HEADER}: not a safetensors file?");
        return Err(Fault::file(0, reason));
    }
    if length > size - 8 {
        let reason = format!("truncated: header of {length} bytes in a file of {size}");
        return Err(Fault::file(0, reason));
    }
    let (text, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(text)
        .map_err(|e| Fault::file(8 + e.valid_up_to() as u64, "header is not UTF-8"))?;
    if !text.starts_with('{') {
        return Err(Fault::file(8, "header is not a JSON object"));
    }
    let header: Header = serde_json::from_str(text).map_err(|e| {
        // serde_json counts lines and columns from 1.
        let line_start: usize =
            text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
        let at = line_start + e.column().saturating_sub(1);
        Fault::file(8 + at as u64, format!("header: {e}"))
    })?;
    let base = 8 + length;
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, entry) in header.tensors {
        tensors.push(check_entry(name, entry, base, data.len() as u64)?);
    }
    // Empty tensors may share an offset with the tensor after them, so the end decides among equals.
    tensors.sort_by_key(|t| (t.offset, t.bytes));
    check_tiling(&tensors, base, size)?;
    Ok(Parsed { tensors, metadata: header.metadata })
}

fn check_entry(name: String, entry: Entry, base: u64, data: u64) -> Result<TensorInfo, Fault> {
    let [begin, end] = entry.data_offsets;
    let dtype = StorageType::from_name(&entry.dtype).ok_or_else(|| {
        Fault::tensor(&name, base, format!("element type `{}` is not supported", entry.dtype))
    })?;
    if begin > end {
        return Err(Fault::tensor(&name, base, format!("data_offsets [{begin}, {end}] run backwards")));
    }
    if end > data {
        let reason = format!("truncated: data_offsets [{begin}, {end}] in {data} bytes of data");
        return Err(Fault::tensor(&name, base + data, reason));
    }
    let wanted = entry
        .shape
        .iter()
        .try_fold(dtype.size() as u64, |bytes, &dim| bytes.checked_mul(dim))
        .filter(|&bytes| usize::try_from(bytes).is_ok())
        .ok_or_else(|| Fault::tensor(&name, base + begin, format!("shape {:?} overflows", entry.shape)))?;
    if wanted != end - begin {
        let reason = format!(
            "shape {:?} of {dtype} needs {wanted} bytes, data_offsets hold {}",
            entry.shape,
            end - begin
        );
        return Err(Fault::tensor(&name, base + begin, reason));
    }
    let shape = entry
        .shape
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<Vec<usize>, _>>()
        .map_err(|_| Fault::tensor(&name, base + begin, format!("shape {:?} overflows", entry.shape)))?;
    Ok(TensorInfo { name, dtype, shape, offset: base + begin, bytes: wanted as usize })
}

/// Checks that sorted tensors cover `base..size` exactly.
fn check_tiling(tensors: &[TensorInfo], base: u64, size: u64) -> Result<(), Fault> {
    let mut reached = base;
    let mut before: Option<&TensorInfo> = None;
    for tensor in tensors {
        if tensor.offset < reached {
            let other = before.map_or("", |t| t.name.as_str());
            return Err(Fault::tensor(
                &tensor.name,
                tensor.offset,
                format!("data overlaps tensor `{other}`"),
            ));
        }
        if tensor.offset > reached {
            let reason = format!("hole of {} bytes before the data", tensor.offset - reached);
            return Err(Fault::tensor(&tensor.name, reached, reason));
        }
        reached += tensor.bytes as u64;
        before = Some(tensor);
    }
    if reached != size {
        return Err(Fault::file(reached, format!("{} bytes after the last tensor", size - reached)));
    }
    Ok(())
}

/// The JSON of the header. Hand-written so that a repeated name is an error rather than a silent choice.
#[derive(Default)]
struct Header {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format_args!("name `{name}` occurs twice")));
                    }
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Strings>()?.0;
                    } else {
                        let entry = map
                            .next_value::<Entry>()
                            .map_err(|e| de::Error::custom(format_args!("tensor `{name}`: {e}")))?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map of strings without repeated keys.
struct Strings(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`__metadata__` to map strings to strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if strings.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("metadata key `{key}` occurs twice")));
                    }
                    strings.insert(key, value);
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_map(StringsVisitor)
    }
}
