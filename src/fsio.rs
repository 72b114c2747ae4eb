//! Files that are written whole or not at all, and read only if they are files: a pipe would be waited for
//! without end.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Removes the temporary file unless it was renamed into place.
struct Temporary {
    path: PathBuf,
    armed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.armed {
            // Nothing sensible is left to do if even the removal fails; the first error is reported.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// [`Error::Io`], also for folders, pipes and devices.
pub fn open_file(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.file_type();
    let reason = if kind.is_dir() { "is a folder, not a file" } else { "is no regular file" };
    match kind.is_file() {
        true => File::open(path).map_err(|e| Error::io(path, e)),
        false => Err(Error::io(path, io::Error::new(io::ErrorKind::InvalidInput, reason))),
    }
}

/// The bytes of a regular file.
///
/// # Errors
/// As [`open_file`].
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    open_file(path)?.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// The text of a regular file.
///
/// # Errors
/// As [`open_file`]; [`Error::Io`] if it is not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let invalid = |_| Error::io(path, io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8 text"));
    String::from_utf8(read_file(path)?).map_err(invalid)
}

/// Writes `path` through `write` so that a reader sees the old file or the complete new one, never a part.
///
/// The bytes go to a temporary file in the same folder, which is synced to disk and then renamed over `path`;
/// the folder is synced last, so that the rename survives a power cut. On any error (disk full, `write`
/// failing, a panic in `write`) the temporary file is removed and an existing `path` is left as it was. A
/// symbolic link at `path` stays, and the file it leads to is replaced. What is there and is no regular file
/// (a device, a pipe, `/dev/stdout`) is never replaced: it is written into as it is.
///
/// # Errors
/// [`Error::Io`] on `path` if the folder is missing or not writable, the disk is full or `write` fails;
/// [`Error::Usage`] if `path` has no file name.
pub fn atomic_write(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let target = target(path).map_err(|source| Error::io(path, source))?;
    let Target::File(file) = target else {
        return write_into(path, write).map_err(|source| Error::io(path, source));
    };
    let name = file
        .file_name()
        .ok_or_else(|| Error::usage(format!("cannot write to {}: not a file name", path.display())))?;
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    replace(&file, folder, name, write).map_err(|source| Error::io(path, source))
}

/// What a path to write to leads to.
enum Target {
    /// A regular file, or nothing yet.
    File(PathBuf),
    /// Something that is only to be written into.
    Stream,
}

fn target(path: &Path) -> io::Result<Target> {
    let Ok(metadata) = std::fs::metadata(path) else {
        // A link to nothing: the file it would be.
        return Ok(Target::File(std::fs::read_link(path).map_or(
            path.to_path_buf(),
            |to| match path.parent() {
                Some(folder) => folder.join(to),
                None => to,
            },
        )));
    };
    if !metadata.is_file() && !metadata.is_dir() {
        return Ok(Target::Stream);
    }
    if !std::fs::symlink_metadata(path)?.is_symlink() {
        return Ok(Target::File(path.to_path_buf()));
    }
    // `/dev/stdout` and its like lead to whatever file the shell has opened, which its other writers keep
    // open.
    let absolute = std::path::absolute(path)?;
    match ["/dev", "/proc"].iter().any(|folder| absolute.starts_with(folder)) {
        true => Ok(Target::Stream),
        false => Ok(Target::File(path.canonicalize()?)),
    }
}

/// Writes into what is there.
fn write_into(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 18, OpenOptions::new().append(true).open(path)?);
    write(&mut writer)?;
    writer.flush()
}

fn replace(
    path: &Path,
    folder: &Path,
    name: &std::ffi::OsStr,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a folder"));
    }
    let (file, mut temporary) = create_beside(folder, name)?;
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    write(&mut writer)?;
    writer.flush()?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary.path, path)?;
    temporary.armed = false;
    sync_folder(folder)
}

/// A fresh file in `folder`. The process id and a counter keep writers of the same path apart.
fn create_beside(folder: &Path, name: &std::ffi::OsStr) -> io::Result<(File, Temporary)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let path = folder.join(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, Temporary { path, armed: true })),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
}

/// Removes from `folder` what killed writers of the files whose names `is_mine` knows have left. No writer of
/// them may be alive.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read or a file cannot be removed.
pub fn sweep(folder: &Path, is_mine: impl Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if written_to(&entry.file_name().to_string_lossy()).is_some_and(&is_mine) {
            std::fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

/// The name of the file that a temporary one was to become: `.NAME.PROCESS-NUMBER.tmp`, see
/// [`create_beside`].
fn written_to(temporary: &str) -> Option<&str> {
    let (name, numbers) = temporary.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, number) = numbers.split_once('-')?;
    (process.parse::<u32>().is_ok() && number.parse::<u64>().is_ok()).then_some(name)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Folders cannot be opened as files elsewhere; the rename itself is all that can be asked for.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn replaces_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        atomic_write(&path, |w| w.write_all(b"a longer first version")).unwrap();
        atomic_write(&path, |w| w.write_all(b"second")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, b"old").unwrap();
        let error = atomic_write(&path, |w| {
            w.write_all(&[7; 1 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("a.txt"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_panic_in_the_writer_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let outcome = std::panic::catch_unwind(|| atomic_write(&path, |_| panic!("writer gave up")));
        assert!(outcome.is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    #[cfg(unix)]
    fn pipes_are_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), folder.path()] {
            let error = read_text(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file).unwrap(), "text");
        std::fs::write(&file, [0xff]).unwrap();
        assert!(read_text(&file).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    #[cfg(unix)]
    fn links_stay_and_streams_are_written_into() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("elsewhere")).unwrap();
        std::fs::write(at("elsewhere/file"), b"old").unwrap();
        symlink("elsewhere/file", at("link")).unwrap();
        symlink("elsewhere/later", at("dangling")).unwrap();
        for (link, file) in [("link", "elsewhere/file"), ("dangling", "elsewhere/later")] {
            atomic_write(at(link), |w| w.write_all(b"new")).unwrap();
            assert!(std::fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
            assert_eq!(std::fs::read(at(file)).unwrap(), b"new");
        }
        assert_eq!(names(&at("elsewhere")).len(), 2);

        let pipe = at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        atomic_write(&pipe, |w| w.write_all(b"through a pipe")).unwrap();
        assert_eq!(reader.join().unwrap(), b"through a pipe");
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
        // A device: a link to one, so that nothing is lost if this fails.
        symlink("/dev/null", at("null")).unwrap();
        atomic_write(at("null"), |w| w.write_all(b"gone")).unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }

    #[test]
    fn what_dead_writers_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let kept =
            ["last.state", ".last.state.tmp", ".last.state.1-x.tmp", ".other.1-2.tmp", "last.state.1-2.tmp"];
        for name in kept.iter().chain(&[".last.state.17-3.tmp", ".a b.4-0.tmp"]) {
            std::fs::write(folder.path().join(name), b"x").unwrap();
        }
        sweep(folder.path(), |name| ["last.state", "a b"].contains(&name)).unwrap();
        let mut left = names(folder.path());
        left.sort();
        let mut kept = kept.map(String::from);
        kept.sort();
        assert_eq!(left, kept);
    }

    #[test]
    fn unusable_targets_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        for path in [folder.path().join("missing/a"), file.join("below-a-file"), folder.path().to_path_buf()]
        {
            let error = atomic_write(&path, |w| w.write_all(b"x")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        assert_eq!(atomic_write("/", |_| Ok(())).unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(names(folder.path()), ["file"]);
    }
}
