//! Photos of a folder.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Endings of files that are taken for pictures, in lower case.
pub const ENDINGS: [&str; 7] = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff"];

/// What a folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its picture files, by name.
    pub pictures: Vec<PathBuf>,
    /// Its other files, hidden ones left out, by name.
    pub others: Vec<PathBuf>,
    /// Number of hidden files (a dot first), whatever their ending: thumbnails and what copying leaves
    /// behind.
    pub hidden: usize,
}

impl Listing {
    /// Lists a folder, not what is below it. Pictures are told by their ending ([`ENDINGS`]).
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub fn of(folder: &Path) -> Result<Listing> {
        let mut listing = Listing::default();
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
            let path = entry.map_err(|e| Error::io(folder, e))?.path();
            if !path.is_file() {
                continue;
            }
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                listing.hidden += 1;
            } else if is_picture(&path) {
                listing.pictures.push(path);
            } else {
                listing.others.push(path);
            }
        }
        listing.pictures.sort();
        listing.others.sort();
        Ok(listing)
    }

    /// As [`Listing::of`] with everything below the folder, folder by folder. Hidden folders are passed over,
    /// and links to folders, which could lead in a circle.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder cannot be read.
    pub fn below(folder: &Path) -> Result<Listing> {
        let mut all = Listing::of(folder)?;
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
            let entry = entry.map_err(|e| Error::io(folder, e))?;
            let kind = entry.file_type().map_err(|e| Error::io(entry.path(), e))?;
            if kind.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
                folders.push(entry.path());
            }
        }
        folders.sort();
        for below in folders {
            let Listing { pictures, others, hidden } = Listing::below(&below)?;
            all.pictures.extend(pictures);
            all.others.extend(others);
            all.hidden += hidden;
        }
        Ok(all)
    }

    /// What was passed over, for people; `None` if nothing was.
    pub fn passed_over(&self) -> Option<String> {
        let mut parts = Vec::new();
        if let Some(first) = self.others.first().and_then(|path| path.file_name()) {
            let count = self.others.len();
            parts.push(format!("{count} files that are no pictures (first: {})", first.to_string_lossy()));
        }
        if self.hidden > 0 {
            parts.push(format!("{} hidden files", self.hidden));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// True for a name with one of [`ENDINGS`].
pub fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ENDINGS.contains(&e.to_string_lossy().to_lowercase().as_str()))
}
