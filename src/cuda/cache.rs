//! Compiled kernels on disk. The key holds everything that decides the result: source, included headers, options
//! (defines and architecture among them) and the compiler's version. Entries carry a checksum and appear whole, so that
//! several processes may fill one cache at once and a damaged entry is compiled again.

use super::nvrtc::{Job, Nvrtc};
use super::sources;
use crate::error::Result;
use crate::fsio;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// First bytes of an entry: kind and version of the format.
const MAGIC: &[u8; 8] = b"knetk001";

/// A folder of compiled kernels, or none.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's cache: the folder named by `KNET_CACHE` (empty: no cache), else `knet/kernels` in the system's place for
    /// caches.
    pub fn user() -> Cache {
        let folder = match std::env::var_os("KNET_CACHE") {
            Some(folder) => (!folder.is_empty()).then(|| folder.into()),
            None => {
                let from =
                    |variable, rest: &str| std::env::var_os(variable).map(|v| Path::new(&v).join(rest));
                let base = if cfg!(windows) { from("LOCALAPPDATA", "") } else { None };
                let base = base.or_else(|| from("XDG_CACHE_HOME", "")).or_else(|| from("HOME", ".cache"));
                base.map(|base| base.join("knet").join("kernels"))
            }
        };
        Cache { folder }
    }

    /// A cache in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The code of `job`, compiled unless it is here. A cache that cannot be read or written costs time, not the result.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`].
    pub fn compile(&self, nvrtc: &Nvrtc, job: &Job) -> Result<Vec<u8>> {
        let Some(folder) = &self.folder else { return nvrtc.compile(job) };
        let path = folder.join(key(job, nvrtc.version()));
        if let Some(code) = std::fs::read(&path).ok().and_then(|entry| open(&entry)) {
            return Ok(code);
        }
        let code = nvrtc.compile(job)?;
        if std::fs::create_dir_all(folder).is_ok() {
            let _ = fsio::atomic_write(&path, |file| file.write_all(&seal(&code)));
        }
        Ok(code)
    }
}

/// Name of an entry: a hash over everything that decides the code.
pub fn key(job: &Job, compiler: (u32, u32)) -> String {
    let mut hash = Sha256::new();
    // Every part is preceded by its length, so that no two lists of parts read alike.
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    part(&format!("nvrtc {}.{}", compiler.0, compiler.1));
    part(job.source);
    part(sources::text(job.source).unwrap_or_default());
    for (name, text) in sources::headers(job.source) {
        part(name);
        part(text);
    }
    part(&format!("{:?}", job.code));
    job.options().iter().for_each(|option| part(option));
    sources::hex(&hash.finalize())
}

/// An entry: magic, checksum, length, code.
fn seal(code: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(code.len() + 20);
    entry.extend(MAGIC);
    entry.extend(crc32c::crc32c(code).to_le_bytes());
    entry.extend((code.len() as u64).to_le_bytes());
    entry.extend(code);
    entry
}

/// The code of an entry, if it is whole.
fn open(entry: &[u8]) -> Option<Vec<u8>> {
    let rest = entry.strip_prefix(MAGIC)?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let (length, code) = rest.split_first_chunk::<8>()?;
    let whole = code.len() as u64 == u64::from_le_bytes(*length)
        && crc32c::crc32c(code) == u32::from_le_bytes(*checksum);
    whole.then(|| code.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::nvrtc::Code;

    #[test]
    fn damaged_and_truncated_entries_are_refused() {
        let entry = seal(b"some code");
        assert_eq!(open(&entry).as_deref(), Some(&b"some code"[..]));
        for cut in 0..entry.len() {
            assert_eq!(open(&entry[..cut]), None, "cut at {cut}");
        }
        for at in 0..entry.len() {
            let mut damaged = entry.clone();
            damaged[at] ^= 4;
            assert_eq!(open(&damaged), None, "damaged at {at}");
        }
    }

    #[test]
    fn the_key_depends_on_everything_that_decides_the_code() {
        let job = Job {
            source: "activation.cu",
            defines: vec![("STORAGE", 0), ("ACTIVATION", 1)],
            compute: (8, 0),
            code: Code::Cubin,
        };
        let mut others = vec![job.clone(); 4];
        others[0].defines[1].1 = 2;
        others[1].compute = (9, 0);
        others[2].code = Code::Ptx;
        others[3].source = "cast.cu";
        let mut keys: Vec<String> = others.iter().map(|job| key(job, (13, 5))).collect();
        keys.extend([key(&job, (13, 5)), key(&job, (13, 4))]);
        let different: std::collections::HashSet<&String> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }
}
