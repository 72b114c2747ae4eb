//! The two containers of `torch.save`, both seen as one pickle plus storages found by key.
//!
//! * zip (PyTorch 1.6 and later): `<root>/data.pkl` is the pickle, `<root>/data/<key>` are the storages,
//!   `<root>/byteorder` may state the byte order;
//! * legacy: five pickles in a row (magic number, protocol version, system information, the object, the list
//!   of storage keys), then each storage in the order of that list as an 8-byte element count and raw data.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{Cursor, Read};

use zip::ZipArchive;

use super::pickle::{Unpickled, unpickle};
use super::value::{Storage, Value};
use crate::checkpoint::fault::Fault;

/// Largest pickle. That of a K-Net checkpoint with its optimizer has about 0.1 MB.
const MAX_PICKLE: u64 = 64 << 20;
/// A zip may unpack to this multiple of the file's size (plus a little for tiny files). PyTorch stores
/// without compression, so that more than a few times the size is a zip bomb.
const MAX_EXPANSION: u64 = 4;

/// The opened container.
pub(super) struct Archive<'a> {
    pub pickle: Unpickled,
    /// Entry of the pickle, or "" in the legacy format.
    pub entry: String,
    /// Offset of the pickle in the file (legacy) or in its entry (zip, always 0).
    pub base: u64,
    storages: Storages<'a>,
}

enum Storages<'a> {
    Zip {
        file: &'a [u8],
        zip: ZipArchive<Cursor<&'a [u8]>>,
        root: String,
        cache: HashMap<String, Cow<'a, [u8]>>,
    },
    Legacy(HashMap<String, (u64, &'a [u8])>),
}

/// True if `file` begins like a zip.
pub(super) fn is_zip(file: &[u8]) -> bool {
    file.starts_with(b"PK\x03\x04")
}

fn in_entry(entry: &str, reason: impl std::fmt::Display) -> Fault {
    Fault::file(None, format!("entry `{}`: {reason}", entry.escape_debug()))
}

pub(super) fn open_zip(file: &[u8]) -> Result<Archive<'_>, Fault> {
    let mut zip = ZipArchive::new(Cursor::new(file))
        .map_err(|e| Fault::file(None, format!("damaged or truncated zip: {e}")))?;
    let root = check_entries(&mut zip, file.len() as u64)?;
    let order_entry = format!("{root}byteorder");
    if zip.index_for_name(&order_entry).is_some() {
        let order = read_entry(&mut zip, file, &order_entry, 16)?;
        if &*order != b"little" {
            let order = String::from_utf8_lossy(&order).into_owned();
            return Err(in_entry(&order_entry, format_args!("byte order {order:?} is not supported")));
        }
    }
    let entry = format!("{root}data.pkl");
    let text = read_entry(&mut zip, file, &entry, MAX_PICKLE)?;
    let pickle = unpickle(&text)
        .map_err(|e| Fault::file(e.offset, format!("entry `{}`: {}", entry.escape_debug(), e.reason)))?;
    let storages = Storages::Zip { file, zip, root, cache: HashMap::new() };
    Ok(Archive { pickle, entry, base: 0, storages })
}

/// Refuses zip bombs and finds the folder of `data.pkl`.
fn check_entries(zip: &mut ZipArchive<Cursor<&[u8]>>, size: u64) -> Result<String, Fault> {
    let limit = size.saturating_mul(MAX_EXPANSION).saturating_add(1 << 20);
    let mut total = 0u64;
    let mut roots = Vec::new();
    for i in 0..zip.len() {
        let entry =
            zip.by_index_raw(i).map_err(|e| Fault::file(None, format!("damaged zip entry {i}: {e}")))?;
        let name = entry.name().map_err(|e| Fault::file(None, format!("zip entry {i} has no name: {e}")))?;
        total = total.saturating_add(entry.size());
        if total > limit {
            let reason = format_args!(
                "unpacks to {} bytes, {total} with the entries before it, from a file of {size}: refused as a zip bomb",
                entry.size()
            );
            return Err(in_entry(&name, reason));
        }
        if let Some(root) = name.strip_suffix("data.pkl")
            && (root.is_empty() || root.find('/') == Some(root.len() - 1))
        {
            roots.push(root.to_string());
        }
    }
    match roots.len() {
        1 => Ok(roots.remove(0)),
        0 => Err(Fault::file(None, "zip without a `data.pkl`: not written by torch.save")),
        _ => Err(Fault::file(None, "zip with several `data.pkl` entries")),
    }
}

/// Contents of an entry of at most `limit` bytes, with its checksum verified; borrowed if not compressed.
fn read_entry<'a>(
    zip: &mut ZipArchive<Cursor<&'a [u8]>>,
    file: &'a [u8],
    name: &str,
    limit: u64,
) -> Result<Cow<'a, [u8]>, Fault> {
    let mut entry = zip.by_name(name).map_err(|e| in_entry(name, e))?;
    let size = entry.size();
    if size > limit {
        return Err(in_entry(name, format_args!("{size} bytes are over the limit of {limit}")));
    }
    if entry.compression() == zip::CompressionMethod::Stored && size == entry.compressed_size() {
        let range = entry.data_start().and_then(|begin| {
            usize::try_from(begin).ok().zip(usize::try_from(begin.saturating_add(size)).ok())
        });
        let bytes = range.and_then(|(begin, end)| file.get(begin..end));
        let bytes = bytes.ok_or_else(|| in_entry(name, "truncated"))?;
        // Reading to the end makes the archive check the checksum.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| in_entry(name, e))?;
        return Ok(Cow::Borrowed(bytes));
    }
    // The declared size may lie in both directions: read one byte more than declared, allocate as data comes.
    let mut bytes = Vec::new();
    entry.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| in_entry(name, e))?;
    if bytes.len() as u64 != size {
        return Err(in_entry(name, format_args!("unpacks to another size than the {size} bytes declared")));
    }
    Ok(Cow::Owned(bytes))
}

/// First pickle of a legacy file: protocol 2, the magic number as LONG1, STOP.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;

/// Opens the legacy container; `None` if the file does not begin with its magic number.
pub(super) fn open_legacy(file: &[u8]) -> Result<Option<Archive<'_>>, Fault> {
    let mut at = 0;
    match unpickle(file) {
        Ok(p) if matches!(p.get(p.root), Value::Int(LEGACY_MAGIC)) => at += p.consumed,
        _ => return Ok(None),
    }
    let mut next = |what: &str| -> Result<(u64, Unpickled), Fault> {
        let base = at as u64;
        let rest = &file[at..file.len().min(at.saturating_add(MAX_PICKLE as usize))];
        let pickle =
            unpickle(rest).map_err(|e| Fault::file(base + e.offset, format!("{what}: {}", e.reason)))?;
        at += pickle.consumed;
        Ok((base, pickle))
    };
    let (base, protocol) = next("protocol version")?;
    if !matches!(protocol.get(protocol.root), Value::Int(LEGACY_PROTOCOL)) {
        return Err(Fault::file(base, "protocol version is not 1001"));
    }
    let (base, system) = next("system information")?;
    let little = system.lookup(system.root, "little_endian");
    if little.is_some_and(|id| matches!(system.get(id), Value::Bool(false))) {
        return Err(Fault::file(base, "written on a big-endian machine, which is not supported"));
    }
    let (base, pickle) = next("object")?;
    let (keys_base, keys) = next("list of storages")?;
    let storages = slice_storages(file, at, &pickle, &keys, keys_base)?;
    Ok(Some(Archive { pickle, entry: String::new(), base, storages: Storages::Legacy(storages) }))
}

/// Finds the storages that follow the list of their keys at offset `at`.
fn slice_storages<'a>(
    file: &'a [u8],
    mut at: usize,
    pickle: &Unpickled,
    keys: &Unpickled,
    keys_base: u64,
) -> Result<HashMap<String, (u64, &'a [u8])>, Fault> {
    let declared: HashMap<&str, &Storage> = pickle
        .values
        .iter()
        .filter_map(|value| match value {
            Value::Storage(storage) => Some((pickle.str(storage.key)?, storage)),
            _ => None,
        })
        .collect();
    let list =
        keys.items(keys.root).ok_or_else(|| Fault::file(keys_base, "list of storages is not a list"))?;
    let mut storages = HashMap::new();
    for &id in list {
        let key = keys.str(id).ok_or_else(|| Fault::file(keys_base, "storage key is not a string"))?;
        let shown = key.escape_debug();
        let storage = declared
            .get(key)
            .ok_or_else(|| Fault::file(keys_base, format!("storage `{shown}` is used by no tensor")))?;
        let truncated = || Fault::file(at as u64, format!("truncated: storage `{shown}` is not complete"));
        let (count, rest) = file[at..].split_first_chunk::<8>().ok_or_else(truncated)?;
        let count = u64::from_le_bytes(*count);
        if count != storage.numel {
            let reason =
                format!("storage `{shown}` holds {count} elements, the pickle says {}", storage.numel);
            return Err(Fault::file(at as u64, reason));
        }
        let bytes = count
            .checked_mul(storage.dtype.size() as u64)
            .and_then(|n| usize::try_from(n).ok())
            .and_then(|n| rest.get(..n))
            .ok_or_else(truncated)?;
        if storages.insert(key.to_string(), (at as u64 + 8, bytes)).is_some() {
            return Err(Fault::file(keys_base, format!("storage `{shown}` is listed twice")));
        }
        at += 8 + bytes.len();
    }
    if at != file.len() {
        return Err(Fault::file(at as u64, format!("{} bytes after the last storage", file.len() - at)));
    }
    Ok(storages)
}

impl Archive<'_> {
    /// The bytes of a storage and their offset in the file, where known. Checked to hold `numel` elements.
    pub fn storage(&mut self, storage: &Storage) -> Result<(Option<u64>, &[u8]), Fault> {
        let key = self.pickle.str(storage.key).unwrap_or_default();
        let wanted = storage.numel.saturating_mul(storage.dtype.size() as u64);
        let (offset, name, bytes): (_, _, &[u8]) = match &mut self.storages {
            Storages::Zip { file, zip, root, cache } => {
                let name = format!("{root}data/{key}");
                if !cache.contains_key(key) {
                    let bytes = read_entry(zip, file, &name, u64::MAX)?;
                    cache.insert(key.to_string(), bytes);
                }
                (None, name, &cache[key])
            }
            Storages::Legacy(storages) => {
                let missing = || Fault::file(None, format!("storage `{}` is missing", key.escape_debug()));
                let &(offset, bytes) = storages.get(key).ok_or_else(missing)?;
                (Some(offset), key.to_string(), bytes)
            }
        };
        if (bytes.len() as u64) < wanted {
            let reason = format!(
                "storage `{}` has {} bytes, {} elements of {} need {wanted}",
                name.escape_debug(),
                bytes.len(),
                storage.numel,
                storage.dtype
            );
            return Err(Fault::file(offset, reason));
        }
        Ok((offset, bytes))
    }
}
