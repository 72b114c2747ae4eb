//! No command replaces one of its inputs, or a file that it did not make.

use knet::checkpoint::Checkpoint;
use knet::{Error, Result};
use serde_json::Value;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a command reads, and no output may replace.
pub struct Inputs {
    named: Vec<PathBuf>,
    /// Where they lie without links, with what they were called: found when the first output is there
    /// already.
    found: OnceCell<HashMap<PathBuf, PathBuf>>,
}

impl FromIterator<PathBuf> for Inputs {
    fn from_iter<I: IntoIterator<Item = PathBuf>>(inputs: I) -> Inputs {
        Inputs { named: inputs.into_iter().collect(), found: OnceCell::new() }
    }
}

impl Inputs {
    /// How many were named.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// What the file at `path` was called, if it is an input.
    fn at(&self, path: &Path) -> Option<&PathBuf> {
        let place = |path: &Path| path.canonicalize().unwrap_or(path.to_path_buf());
        let found = || self.named.iter().map(|input| (place(input), input.clone())).collect();
        self.found.get_or_init(found).get(&place(path))
    }
}

/// Refuses to write to `path` if one of `inputs` lies there, or a file that `is_own` does not know for one
/// that this command made; the latter unless `overwrite` is set. What is no regular file is left to the write
/// itself.
pub fn check(path: &Path, inputs: &Inputs, is_own: impl Fn(&Path) -> bool, overwrite: bool) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    if let Some(input) = inputs.at(path) {
        let reason = format!("is an input ({}), and would be replaced by an output", input.display());
        return Err(Error::usage(format!("{}: {reason}: write elsewhere by --out", path.display())));
    }
    if overwrite || is_own(path) {
        return Ok(());
    }
    let reason =
        "is there already, and this command did not make it: write elsewhere, or allow it by --overwrite";
    Err(Error::usage(format!("{}: {reason}", path.display())))
}

/// Whether the file is a JSON object with all of these fields at its top.
pub fn is_json_with(path: &Path, fields: &[&str]) -> bool {
    let value = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    value.is_some_and(|value| fields.iter().all(|field| value.get(field).is_some()))
}

/// Whether the file is a checkpoint with all of these entries in its metadata.
pub fn is_checkpoint_with(path: &Path, keys: &[&str]) -> bool {
    Checkpoint::open(path).is_ok_and(|file| keys.iter().all(|key| file.metadata().contains_key(*key)))
}
