//! What is wrong with a file, before its path is known: parsers see bytes alone.

use crate::error::Error;
use std::path::Path;

/// A fault in a checkpoint's bytes.
pub(in crate::checkpoint) struct Fault {
    pub(in crate::checkpoint) key: Option<String>,
    pub(in crate::checkpoint) offset: Option<u64>,
    pub(in crate::checkpoint) reason: String,
}

impl Fault {
    /// A fault of the file as a whole.
    pub(in crate::checkpoint) fn file(offset: impl Into<Option<u64>>, reason: impl Into<String>) -> Self {
        Fault { key: None, offset: offset.into(), reason: reason.into() }
    }

    /// A fault of one tensor, at a known place.
    pub(in crate::checkpoint) fn tensor(name: &str, offset: u64, reason: impl Into<String>) -> Self {
        Fault::file(offset, reason).of_tensor(name)
    }

    /// The same fault, of this tensor.
    pub(in crate::checkpoint) fn of_tensor(mut self, name: &str) -> Self {
        self.key = Some(name.to_string());
        self
    }

    /// The error, now that the file's path is known.
    pub(in crate::checkpoint) fn at(self, path: &Path) -> Error {
        Error::Checkpoint {
            path: path.to_path_buf(),
            key: self.key,
            offset: self.offset,
            reason: self.reason,
        }
    }
}
