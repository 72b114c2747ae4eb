//! Compiled code in a bundle: entries as the cache has them, under names that say what they are.

use super::Job;
use super::cache::{Compiled, key};
use super::entry::{About, Entry};
use crate::bundle::Bundle;
use crate::error::{Error, Result};

/// The name of a job's code: for people, and with a hash over all of ours that decides the code.
pub fn name(job: &Job) -> String {
    format!("code {} {}", job.title(), key(job))
}

/// The entry for code of this job.
///
/// # Errors
/// [`Error::Cuda`] if it does not become JSON.
pub fn seal(job: &Job, compiled: &Compiled) -> Result<Vec<u8>> {
    let about = About { source: job.source.into(), options: job.options(), compiler: compiled.compiler };
    let entry = Entry { about, code: compiled.code.clone() };
    entry.seal(&key(job)).map_err(|error| Error::Cuda(format!("{}: {error}", job.title())))
}

/// The code of a job.
///
/// # Errors
/// As [`Bundle::bytes`]; [`Error::Checkpoint`] for code that is not whole.
pub fn find(bundle: &Bundle, job: &Job) -> Result<Compiled> {
    let name = name(job);
    let entry =
        Entry::open(&key(job), bundle.bytes(&name)?).map_err(|reason| bundle.refused(&name, reason))?;
    Ok(Compiled {
        code: entry.code,
        compiler: entry.about.compiler,
        entry: Some(bundle.file().path().to_path_buf()),
    })
}
