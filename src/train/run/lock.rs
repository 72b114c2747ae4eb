//! One run a folder: a file that says whose it is, locked for as long as that process lives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Observer;
use crate::error::{Error, Result};

/// Name of the file.
pub const LOCK_FILE: &str = "run.lock";

/// Who holds a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Process id.
    pid: u32,
    /// Name of the machine.
    host: String,
    /// Start, seconds since 1970.
    started: u64,
}

impl Holder {
    fn this() -> Holder {
        let host = ["/proc/sys/kernel/hostname", "/etc/hostname"];
        let host = host.iter().find_map(|path| std::fs::read_to_string(path).ok());
        let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Holder { pid: std::process::id(), host: host.trim().to_string(), started }
    }

    fn describe(&self) -> String {
        let ago = Holder::this().started.saturating_sub(self.started);
        let host = if self.host.is_empty() { "an unknown machine" } else { &self.host };
        format!("process {} on {host}, begun {} min ago", self.pid, ago / 60)
    }
}

/// A folder that is this run's. Dropping it removes the file, and the folder too if it was made for the run
/// and is empty.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    made: bool,
    /// The operating system takes the lock back when the process ends, however it ends.
    _file: File,
}

impl Lock {
    /// Takes the folder `out`, which is made if it is not there. What a dead run of this machine left is
    /// taken over, with a note.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the run that holds the folder; [`Error::Io`].
    pub fn take(out: &Path, observer: &mut dyn Observer) -> Result<Lock> {
        let made = !out.exists();
        std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        let path = out.join(LOCK_FILE);
        let (mut file, locked) = loop {
            let mut open = OpenOptions::new();
            let open = open.read(true).write(true).create(true).truncate(false);
            let file = open.open(&path).map_err(|e| Error::io(&path, e))?;
            let locked = file.try_lock();
            // The holder may have removed the file between the two: then the lock is on a file that nobody
            // sees.
            if locked.is_err() || is_at(&file, &path) {
                break (file, locked);
            }
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|e| Error::io(&path, e))?;
        let holder: Option<Holder> = serde_json::from_str(&text).ok();
        let this = Holder::this();
        let held = |who: &str, way: &str| {
            Err(Error::usage(format!("{} is in use by another run ({who}): {way}", out.display())))
        };
        let elsewhere = holder.as_ref().filter(|holder| holder.host != this.host);
        match (locked, elsewhere, &holder) {
            (Err(TryLockError::WouldBlock), _, holder) => {
                let who = holder.as_ref().map_or("unknown".into(), Holder::describe);
                return held(&who, "choose another folder by --out, or end that run");
            }
            // A lock does not reach every machine that sees the folder.
            (_, Some(holder), _) => {
                let way = format!("if that run is gone, remove {}", path.display());
                return held(&holder.describe(), &way);
            }
            // A file system without locks: what the process table says has to do.
            (Err(TryLockError::Error(_)), _, Some(holder)) if is_alive(holder.pid) => {
                let way = format!("if that is no run, remove {}", path.display());
                return held(&holder.describe(), &way);
            }
            (_, _, Some(holder)) => {
                observer.note(&format!(
                    "{}: taken over from a dead run ({})",
                    out.display(),
                    holder.describe()
                ));
            }
            (_, _, None) => {}
        }
        let text = serde_json::to_string(&this).unwrap_or_default();
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        };
        write(&mut file).map_err(|e| Error::io(&path, e))?;
        Ok(Lock { path, made, _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays says a process that is gone: the next run takes the folder over.
        let _ = std::fs::remove_file(&self.path);
        if let (true, Some(folder)) = (self.made, self.path.parent()) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Whether the open file is the one at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (open, there) = (file.metadata().map(id), std::fs::metadata(path).map(id));
    open.is_ok_and(|open| there.is_ok_and(|there| open == there))
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::run::RunReport;

    #[derive(Default)]
    struct Notes(Vec<String>);

    impl Observer for Notes {
        fn note(&mut self, text: &str) {
            self.0.push(text.into());
        }
        fn step(&mut self, _: &RunReport<'_>) {}
    }

    #[test]
    fn one_holder_at_a_time_and_dead_ones_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let mut notes = Notes::default();
        let lock = Lock::take(&out, &mut notes).unwrap();
        let error = Lock::take(&out, &mut notes).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert!(!out.exists(), "the empty folder was made for the run");

        std::fs::create_dir(&out).unwrap();
        let path = out.join(LOCK_FILE);
        let dead = Holder { pid: 4_000_000_000, ..Holder::this() };
        std::fs::write(&path, serde_json::to_string(&dead).unwrap()).unwrap();
        drop(Lock::take(&out, &mut notes).unwrap());
        assert!(notes.0.len() == 1 && notes.0[0].contains("dead run (process 4000000000"), "{:?}", notes.0);
        assert!(out.exists() && !path.exists());

        let far = Holder { host: "another-machine".into(), ..Holder::this() };
        std::fs::write(&path, serde_json::to_string(&far).unwrap()).unwrap();
        let error = Lock::take(&out, &mut notes).unwrap_err().to_string();
        assert!(error.contains("another-machine") && error.contains("remove"), "{error}");
        // A file cut short by a crash says nothing of anyone.
        std::fs::write(&path, "{\"pid\":1").unwrap();
        drop(Lock::take(&out, &mut notes).unwrap());
    }
}
