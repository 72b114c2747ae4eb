//! Compiled kernels on disk.
//!
//! The key of an entry holds everything of ours that decides its code: source, included headers and options,
//! the architecture and the macros among them. The compiler is not part of it, so that a full cache is found
//! without one: code of any NVRTC that was accepted serves, until the entry is removed ([`Cache::clear`]) or
//! the driver refuses it, and each entry says which made it. Whoever comes first to an empty place decides,
//! and from then on all processes that share the cache run the same code, whatever compilers they would find.
//! Tables of `knet tune` hold as before: they never depended on the compiler.
//!
//! Entries carry a hash over name, origin and code and appear whole, so that several processes may fill one
//! cache at once and a damaged entry is compiled again. The hash keeps out accidents; what keeps out other
//! people is that folder and entries must belong to the user or to root and be writable by no one else. Other
//! folders are refused, and what is made here is for the user alone.

pub use super::entry::About;

use super::entry::{Entry, FAMILY, Found};
use super::nvrtc::Nvrtc;
use super::{Code, Job, rights, sources};
use crate::error::{Error, Result};
use crate::fsio;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// A folder of compiled kernels, or none.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// Code and its origin.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// PTX text with a final NUL, or a cubin.
    pub code: Vec<u8>,
    /// Version of the compiler that made it.
    pub compiler: (u32, u32),
    /// The entry that it was read from; `None`: it was compiled just now.
    pub entry: Option<PathBuf>,
}

/// A file of the cache.
#[derive(Clone, Debug)]
pub struct Item {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it holds, or why it cannot be used.
    pub about: std::result::Result<About, String>,
}

impl Cache {
    /// The user's cache: the folder named by `KNET_CACHE` (empty: no cache; a relative one is one of the
    /// working directory), else `knet/kernels` in the system's place for caches. As the XDG specification has
    /// it, an empty or relative `XDG_CACHE_HOME` counts as unset; so does such a `HOME`.
    pub fn user() -> Cache {
        Cache { folder: user_folder(|name| std::env::var_os(name)) }
    }

    /// A cache in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Refuses a folder that others can write to. One that is not there yet is sound.
    ///
    /// # Errors
    /// [`Error::Cuda`] naming the folder and what to do.
    pub fn check(&self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match std::fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => rights::check(folder, &metadata),
            Ok(_) => {
                let folder = folder.display();
                Err(Error::Cuda(format!(
                    "{folder}: no folder in the place of the kernel cache; name another by KNET_CACHE"
                )))
            }
            // What cannot be looked at cannot be loaded from either.
            Err(_) => Ok(()),
        }
    }

    /// Whether there is code of this form for devices of this compute capability: a hint that no compiler may
    /// be needed.
    ///
    /// # Errors
    /// As [`Cache::items`].
    pub fn serves(&self, compute: (u32, u32), code: Code) -> Result<bool> {
        let wanted = code.architecture(compute);
        let of_it = |item: Result<Item>| match item?.about {
            Ok(about) => Ok(about.options.contains(&wanted)),
            Err(_) => Ok(false),
        };
        for item in self.files()?.into_iter().map(Cache::item) {
            if of_it(item)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The code of `job`: the cache's, else what the compiler makes of it, which is kept. A cache that cannot
    /// be read or written costs time, not the result; `nvrtc` is asked for only if there is something to
    /// compile.
    ///
    /// # Errors
    /// As [`Cache::check`]; [`Error::Cuda`] naming an entry that others can write to or that is no regular
    /// file; as [`Nvrtc::compile`]; what `nvrtc` says, with what is missing.
    pub fn compile<'a>(&self, job: &Job, nvrtc: impl FnOnce() -> Result<&'a Nvrtc>) -> Result<Compiled> {
        self.check()?;
        let found = self.find(job)?;
        if let Found::Entry(Entry { about, code }) = found {
            return Ok(Compiled { code, compiler: about.compiler, entry: self.path(job) });
        }
        let nvrtc = nvrtc().map_err(|error| self.without_compiler(job, &found, error))?;
        self.renew(job, nvrtc)
    }

    /// Compiles `job`, whatever the cache holds, and keeps the code in place of that if it can.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`].
    pub fn renew(&self, job: &Job, nvrtc: &Nvrtc) -> Result<Compiled> {
        let (code, compiler) = (nvrtc.compile(job)?, nvrtc.version());
        // Without an entry it is compiled again next time.
        let _ = self.keep(job, compiler, &code);
        Ok(Compiled { code, compiler, entry: None })
    }

    /// Sees to it that the cache has the code of `job`; whether it had to be compiled.
    ///
    /// # Errors
    /// As [`Cache::compile`]; [`Error::Io`] if there is no place for it.
    pub fn fill<'a>(&self, job: &Job, nvrtc: impl FnOnce() -> Result<&'a Nvrtc>) -> Result<bool> {
        self.check()?;
        let found = self.find(job)?;
        if matches!(found, Found::Entry(_)) {
            return Ok(false);
        }
        let nvrtc = nvrtc().map_err(|error| self.without_compiler(job, &found, error))?;
        self.keep(job, nvrtc.version(), &nvrtc.compile(job)?)?;
        Ok(true)
    }

    /// Whether entries can be added, tried by a file that is removed again; the folder is made if it is not
    /// there.
    ///
    /// # Errors
    /// As [`Cache::check`]; [`Error::Io`] as the system says.
    pub fn try_write(&self) -> Result<()> {
        self.check()?;
        let Some(folder) = &self.folder else { return Ok(()) };
        rights::create_private(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join(format!(".try.{}", std::process::id()));
        let tried = std::fs::File::create_new(&path).and_then(|_| std::fs::remove_file(&path));
        tried.map_err(|e| Error::io(folder, e))
    }

    /// The file for the code of `job`.
    fn path(&self, job: &Job) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(key(job)))
    }

    fn find(&self, job: &Job) -> Result<Found> {
        self.path(job).map_or(Ok(Found::Nothing), |path| Entry::read(&path, &key(job)))
    }

    fn keep(&self, job: &Job, compiler: (u32, u32), code: &[u8]) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        rights::create_private(folder).map_err(|e| Error::io(folder, e))?;
        let about = About { source: job.source.into(), options: job.options(), compiler };
        let (key, entry) = (key(job), Entry { about, code: code.to_vec() });
        fsio::atomic_write(folder.join(&key), |out| {
            rights::make_private(out.get_ref())?;
            out.write_all(&entry.seal(&key)?)
        })
    }

    /// What is missing where neither the cache nor a compiler has the code of `job`.
    fn without_compiler(&self, job: &Job, found: &Found, error: Error) -> Error {
        let (Error::Cuda(reason) | Error::NoDevice(reason)) = error else { return error };
        let lacks = match (found, self.path(job)) {
            (Found::Damaged(damage), Some(path)) => {
                format!("its file in the cache, {}, is damaged ({damage})", path.display())
            }
            (_, Some(path)) => format!("its file in the cache, {}, is not there", path.display()),
            (_, None) => "there is no kernel cache".into(),
        };
        Error::NoDevice(format!("{}: {lacks}, and there is {reason}", job.title()))
    }

    /// All entries, by name, whatever version of the program made them.
    ///
    /// # Errors
    /// [`Error::Io`] for a folder that cannot be read; as [`Cache::check`]; [`Error::Cuda`] for an entry that
    /// others can write to.
    pub fn items(&self) -> Result<Vec<Item>> {
        self.files()?.into_iter().map(Cache::item).collect()
    }

    fn item(path: PathBuf) -> Result<Item> {
        let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        let about = match Entry::read(&path, &key)? {
            Found::Entry(entry) => Ok(entry.about),
            Found::Damaged(reason) => Err(reason),
            Found::Nothing => Err("it cannot be read".into()),
        };
        Ok(Item { path, bytes, about })
    }

    /// Files that bear an entry's name, in order.
    fn files(&self) -> Result<Vec<PathBuf>> {
        self.check()?;
        let mut found: Vec<PathBuf> =
            self.names()?.filter(|(name, _)| is_key(name)).map(|(_, path)| path).collect();
        found.sort();
        Ok(found)
    }

    /// Names in the folder and their paths.
    fn names(&self) -> Result<impl Iterator<Item = (String, PathBuf)>> {
        let entries = match &self.folder {
            None => None,
            Some(folder) => match std::fs::read_dir(folder) {
                Ok(entries) => Some(entries),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(Error::io(folder, error)),
            },
        };
        let named = |entry: std::fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
        Ok(entries.into_iter().flatten().flatten().filter_map(named))
    }

    /// Removes all entries, of whatever version of the program, and what processes that were killed left of
    /// them; nothing else. Gives how many files and bytes there were.
    ///
    /// # Errors
    /// As [`Cache::check`]; [`Error::Io`] for what cannot be removed.
    pub fn clear(&self) -> Result<(usize, u64)> {
        self.check()?;
        let (mut files, mut bytes) = (0, 0);
        for (name, path) in self.names()? {
            if is_key(&name) && starts_as_entry(&path) || is_leftover(&name) {
                bytes += std::fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
                files += 1;
            }
        }
        Ok((files, bytes))
    }
}

/// As [`Cache::user`] says.
fn user_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(named) = variable("KNET_CACHE") {
        // Made absolute now: the process may change its directory later. An empty path cannot be.
        return std::path::absolute(named).ok();
    }
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = if cfg!(windows) { absolute("LOCALAPPDATA") } else { None };
    let base = base.or_else(|| absolute("XDG_CACHE_HOME")).or_else(|| Some(absolute("HOME")?.join(".cache")));
    Some(base?.join("knet").join("kernels"))
}

/// Name of an entry: a hash over everything that decides the code but the compiler.
pub fn key(job: &Job) -> String {
    let (headers, options) = (sources::headers(job.source), job.options());
    let mut parts = vec![job.source, sources::text(job.source).unwrap_or_default()];
    parts.extend(headers.iter().flat_map(|(name, text)| [*name, *text]));
    parts.extend(options.iter().map(String::as_str));
    sources::digest(parts.into_iter().map(str::as_bytes))
}

fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `name` is that of an entry which was being written: `.KEY.PROCESS-NUMBER.tmp`, as
/// [`fsio::atomic_write`] calls it.
fn is_leftover(name: &str) -> bool {
    let parts = || name.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('.');
    parts().is_some_and(|(key, process)| {
        is_key(key) && process.split('-').all(|part| part.parse::<u64>().is_ok())
    })
}

/// Whether a file begins as entries do: other programs call files by their hashes too.
fn starts_as_entry(path: &Path) -> bool {
    let mut start = [0; FAMILY.len()];
    let regular = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    let read =
        |start: &mut [u8]| std::fs::File::open(path).and_then(|mut file| file.read_exact(start)).is_ok();
    regular && read(&mut start) && start == *FAMILY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let defines = vec![("STORAGE", 0), ("ACTIVATION", 1)];
        Job { source: "activation.cu", defines, compute: (8, 0), code: Code::Cubin }
    }

    #[test]
    fn the_key_depends_on_everything_of_ours_that_decides_the_code() {
        let mut others = vec![job(); 5];
        others[0].defines[1].1 = 2;
        others[1].compute = (9, 0);
        others[2].code = Code::Ptx;
        others[3].source = "cast.cu";
        let different: std::collections::HashSet<String> = others.iter().map(key).collect();
        assert_eq!(different.len(), others.len());
        assert_eq!(different.iter().filter(|name| is_key(name)).count(), others.len());
    }

    #[test]
    fn the_user_s_folder_is_absolute_or_there_is_none() {
        let folder = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
            user_folder(|name| find(name).map(|(_, value)| value.into()))
        };
        let here = std::env::current_dir().unwrap();
        let home = ("HOME", "/home/ann");
        let usual = Some(PathBuf::from("/home/ann/.cache/knet/kernels"));
        assert_eq!(folder(&[home]), usual);
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/knet/kernels".into()));
        for unset in ["", "cache", "./x"] {
            assert_eq!(folder(&[home, ("XDG_CACHE_HOME", unset)]), usual, "XDG_CACHE_HOME={unset}");
            assert_eq!(folder(&[("HOME", unset)]), None, "HOME={unset}");
        }
        assert_eq!(folder(&[]), None);
        assert_eq!(folder(&[home, ("KNET_CACHE", "/k")]), Some("/k".into()));
        assert_eq!(folder(&[home, ("KNET_CACHE", "k")]), Some(here.join("k")));
        assert_eq!(folder(&[home, ("KNET_CACHE", "")]), None);
    }

    #[test]
    fn clearing_removes_what_the_cache_made_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (old, other) = ("a".repeat(64), "b".repeat(64));
        let (left, foreign) = (format!(".{old}.12-3.tmp"), format!(".{old}.tmp"));
        for (name, text) in [
            (old.as_str(), "knetk001 of an older version"),
            (&other, "a file of another program, called by its hash"),
            (&left, "half"),
            (&foreign, "of whom?"),
            ("tuned-nvidia-l4-sm89-f16.json", "{}"),
        ] {
            std::fs::write(at(name), text).unwrap();
        }
        std::fs::create_dir(at(&"c".repeat(64))).unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!(cache.clear().unwrap(), (2, 28 + 4));
        assert!(!at(&old).exists() && !at(&left).exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
        assert_eq!(Cache::at(at("missing")).clear().unwrap(), (0, 0));
    }
}
