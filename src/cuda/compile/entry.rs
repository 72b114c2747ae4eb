//! An entry of the kernel cache: what was compiled by which compiler, the code, and a hash over both and the
//! entry's name.

use super::{Code, rights, sources};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// First bytes of entries of every version of the format.
pub(super) const FAMILY: &[u8; 5] = b"knetk";
/// First bytes of an entry: kind and version of the format.
const MAGIC: &[u8; 8] = b"knetk002";
/// More than any kernel of ours takes: a file that is longer is not read.
const MAX_BYTES: u64 = 64 << 20;

/// What an entry says of its code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// File under `kernels/`.
    pub source: String,
    /// The compiler's options: architecture, macros.
    pub options: Vec<String>,
    /// Version of the compiler, such as (13, 5).
    pub compiler: (u32, u32),
}

/// An entry that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub about: About,
    pub code: Vec<u8>,
}

/// What there is in the place of an entry.
#[derive(Debug)]
pub(super) enum Found {
    Entry(Entry),
    /// Nothing that this user can read.
    Nothing,
    /// A file of our name that cannot be used, and why.
    Damaged(String),
}

impl About {
    /// What the code is for, such as `sm_90`, or `compute_90` of PTX.
    pub fn architecture(&self) -> &str {
        let value = |option: &'_ String| option.starts_with(ARCHITECTURE);
        self.options
            .iter()
            .find(|option| value(option))
            .map_or("unknown", |option| &option[ARCHITECTURE.len()..])
    }

    /// Form of the code.
    fn code(&self) -> Code {
        if self.architecture().starts_with("sm_") { Code::Cubin } else { Code::Ptx }
    }
}

/// The option of [`Code::architecture`], without its value.
const ARCHITECTURE: &str = "--gpu-architecture=";

impl Entry {
    /// The file of an entry called `key`: magic, hash, length of what it says of itself, that (JSON), code.
    pub fn seal(&self, key: &str) -> io::Result<Vec<u8>> {
        let about = serde_json::to_vec(&self.about)?;
        let mut file = MAGIC.to_vec();
        file.extend(digest(key, &about, &self.code).as_bytes());
        file.extend((about.len() as u32).to_le_bytes());
        file.extend(about);
        file.extend(&self.code);
        Ok(file)
    }

    /// The entry in a file called `key`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open(key: &str, file: &[u8]) -> Result<Entry, String> {
        let Some(rest) = file.strip_prefix(MAGIC) else {
            let known = file.starts_with(FAMILY) && file.len() >= MAGIC.len();
            return Err(if known {
                "it is of another version of knet"
            } else {
                "it is no kernel cache entry"
            }
            .into());
        };
        let parts = || {
            let (hash, rest) = rest.split_at_checked(64)?;
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let (about, code) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            Some((hash, about, code))
        };
        let (hash, about, code) = parts().ok_or("it is cut short")?;
        if digest(key, about, code).as_bytes() != hash {
            return Err(
                "its hash is not that of its code and name: it is cut short, changed or renamed".into()
            );
        }
        let about: About =
            serde_json::from_slice(about).map_err(|e| format!("it does not say what it is: {e}"))?;
        if !about.code().is_whole(code) {
            return Err("its code is cut short".into());
        }
        Ok(Entry { about, code: code.to_vec() })
    }

    /// Reads what is at `path`, an entry called `key`.
    ///
    /// # Errors
    /// [`Error::Cuda`] naming `path` for what is no regular file, and as [`rights::check`].
    pub fn read(path: &Path, key: &str) -> Result<Found> {
        let Some(mut file) = open(path)? else { return Ok(Found::Nothing) };
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            return Err(irregular(path));
        }
        rights::check(path, &metadata)?;
        if metadata.len() > MAX_BYTES {
            return Ok(Found::Damaged(format!("it has {} bytes", metadata.len())));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        Ok(match file.read_to_end(&mut bytes) {
            Ok(_) => Entry::open(key, &bytes).map_or_else(Found::Damaged, Found::Entry),
            Err(error) => Found::Damaged(error.to_string()),
        })
    }
}

/// Opens a file for reading without waiting for anything and without following a link; `None` if it is not
/// there or the user may not read it.
fn open(path: &Path) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOFOLLOW);
    match options.open(path) {
        Ok(file) => Ok(Some(file)),
        #[cfg(unix)]
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(irregular(path)),
        Err(_) => Ok(None),
    }
}

fn irregular(path: &Path) -> Error {
    let path = path.display();
    Error::Cuda(format!(
        "{path}: no regular file in the place of a compiled kernel; remove it, or name another folder by KNET_CACHE"
    ))
}

/// SHA-256 over name, description and code, in hexadecimal.
fn digest(key: &str, about: &[u8], code: &[u8]) -> String {
    sources::digest([key.as_bytes(), about, code])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let options = vec!["--gpu-architecture=compute_80".into(), "-DA=1".into()];
        let about = About { source: "cast.cu".into(), options, compiler: (12, 0) };
        Entry { about, code: b".version 8.0\n\0".to_vec() }
    }

    #[test]
    fn damaged_renamed_and_truncated_entries_are_refused() {
        let file = entry().seal("name").unwrap();
        assert_eq!(Entry::open("name", &file), Ok(entry()));
        assert_eq!(entry().about.architecture(), "compute_80");
        for cut in 0..file.len() {
            assert!(Entry::open("name", &file[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 4;
            assert!(Entry::open("name", &damaged).is_err(), "damaged at {at}");
        }
        assert!(Entry::open("eman", &file).unwrap_err().contains("renamed"));
        assert!(Entry::open("name", b"knetk001 and more").unwrap_err().contains("another version"));
    }

    /// A hash can be right over code that is not: the driver is told no length, and must not read beyond the
    /// end.
    #[test]
    fn code_that_was_cut_short_before_it_was_sealed_is_refused() {
        let mut cut = entry();
        cut.code.pop();
        assert_eq!(Entry::open("name", &cut.seal("name").unwrap()), Err("its code is cut short".into()));
        cut.about.options[0] = "--gpu-architecture=sm_90".into();
        cut.code = b"\x7fELF\x02\x01".to_vec();
        assert_eq!(Entry::open("name", &cut.seal("name").unwrap()), Err("its code is cut short".into()));
    }
}
