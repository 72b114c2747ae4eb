//! A model compiled into one file: constants as kernels read them, and code for GPUs, by name.
//!
//! This is what the back ends see of it: bytes that lie mapped, found by what a plan asks for. What a bundle
//! is made for and whether it may be used here is the [engine](crate::engine::bundle)'s to say. A name holds
//! all that its bytes depend on, so that a plan made otherwise than at compilation finds nothing instead of
//! something else.

use crate::checkpoint::{Checkpoint, StorageType};
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// An opened bundle. Everything in it was checked against its checksum.
pub struct Bundle {
    file: Checkpoint,
    made_for: String,
}

impl Bundle {
    /// The bundle in a sealed file. `made_for` ends the error of what is not in it.
    pub fn new(file: Checkpoint, made_for: String) -> Bundle {
        Bundle { file, made_for }
    }

    /// The file.
    pub fn file(&self) -> &Checkpoint {
        &self.file
    }

    /// The first `len` floats of an entry, which holds no more of them than up to the next line of the
    /// processor's cache.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the entry if there is none, or not such a one.
    pub fn floats(self: &Arc<Self>, name: &str, len: usize) -> Result<Floats> {
        let info = self.file.info(name).ok_or_else(|| self.missing(name))?;
        let line = crate::checkpoint::ALIGNMENT / size_of::<f32>();
        let held = info.bytes / size_of::<f32>();
        if info.dtype != StorageType::F32 || held != len.next_multiple_of(line) {
            let reason = format!("{held} elements of {}, the plan reads {len} of f32", info.dtype);
            return Err(self.refused(name, reason));
        }
        let range = info.offset as usize..info.offset as usize + len * size_of::<f32>();
        let floats = Floats { bundle: self.clone(), range };
        match bytemuck::try_cast_slice::<u8, f32>(floats.bytes()) {
            Ok(_) => Ok(floats),
            Err(_) => Err(self.refused(name, "not on the boundary of a float".into())),
        }
    }

    /// The bytes of an entry.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the entry if there is none.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        self.file.bytes(name).ok_or_else(|| self.missing(name))
    }

    /// The error for an entry that is there and cannot be used.
    pub fn refused(&self, name: &str, reason: String) -> Error {
        let path = self.file.path().to_path_buf();
        Error::Checkpoint { path, key: Some(name.to_string()), offset: None, reason }
    }

    fn missing(&self, name: &str) -> Error {
        self.refused(
            name,
            format!(
                "not in the bundle, which holds what {} need: `knet compile` makes one for others",
                self.made_for
            ),
        )
    }
}

/// Floats of a bundle, where they are mapped.
#[derive(Clone)]
pub struct Floats {
    bundle: Arc<Bundle>,
    /// Bytes of the file.
    range: Range<usize>,
}

impl Floats {
    /// The floats.
    pub fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(self.bytes())
    }

    fn bytes(&self) -> &[u8] {
        &self.bundle.file.contents()[self.range.clone()]
    }
}
